"""Merkle tree of the audit log, its proofs, and the signed checkpoints that commit to it.

Stage: codec. Trusts nothing on entry: entries, proofs and notes may come from a rolled-back or
lying authority. Guarantees on exit: ``check_inclusion`` and ``check_consistency`` return only when
the proof holds, ``open_note`` only when the named Ed25519 key signed that text. Does not store,
sign or fetch anything, and does not decide which key or origin to believe: both are arguments.
Sources: RFC 6962 section 2.1 (tree, proofs), RFC 9162 section 2.1.3.2 and 2.1.4.2 (verification),
C2SP tlog-checkpoint and signed-note.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from trustauthority.errors import CheckpointInvalid

HASH_SIZE = 32
"""Bytes of a node: SHA-256."""
EMPTY_ROOT = hashlib.sha256(b"").digest()
"""Root of the tree without entries."""
MAX_NOTE_SIZE = 16_384
"""Bytes; a checkpoint is about 200, and it rides in gRPC metadata, which is bounded too."""
MAX_NOTE_SIGNATURES = 100
"""As C2SP signed-note suggests: bounds the work on a hostile note."""
MAX_PROOF_LENGTH = 128
"""Nodes of a proof: twice the height of the largest tree that a 64-bit size can name."""

ERA = "era "
"""How our extension line in checkpoints begins."""
_ED25519 = b"\x01"
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}")
_KEY_NAME = re.compile(r"[^\s+]{1,255}")
_ORIGIN = re.compile(r"[!-~](?:[ -~]{0,253}[!-~])?")


# --- the tree --------------------------------------------------------------------------------


def leaf_hash(content: bytes) -> bytes:
    """Hash one entry: SHA-256(0x00 ‖ content)."""
    return hashlib.sha256(b"\x00" + content).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash two subtrees: SHA-256(0x01 ‖ left ‖ right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontier:
    """The right edge of a tree: all that is needed to append and to know the root.

    ``nodes`` are the roots of the perfect subtrees from the largest (leftmost) to the smallest, one
    for each 1 bit of ``size``; both are small and can be stored in a row.
    """

    size: int = 0
    """Entries so far."""
    nodes: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if self.size < 0 or len(self.nodes) != self.size.bit_count():
            raise ValueError("a frontier has one node for each 1 bit of its size")
        if any(len(node) != HASH_SIZE for node in self.nodes):
            raise ValueError(f"nodes have {HASH_SIZE} bytes")

    def append(self, leaf: bytes) -> "Frontier":
        """The frontier after one more entry, given its ``leaf_hash``."""
        nodes, size, node = self.nodes, self.size, leaf
        while size & 1:
            node = node_hash(nodes[-1], node)
            nodes, size = nodes[:-1], size >> 1
        return Frontier(size=self.size + 1, nodes=(*nodes, node))

    def root(self) -> bytes:
        """The root of the tree."""
        if not self.nodes:
            return EMPTY_ROOT
        root = self.nodes[-1]
        for node in reversed(self.nodes[:-1]):
            root = node_hash(node, root)
        return root


def frontier_of(leaves: Iterable[bytes]) -> Frontier:
    """The frontier of a tree given all its leaf hashes in order."""
    frontier = Frontier()
    for leaf in leaves:
        frontier = frontier.append(leaf)
    return frontier


def tree_root(leaves: Sequence[bytes]) -> bytes:
    """The root over leaf hashes: MTH of RFC 6962."""
    return frontier_of(leaves).root()


# --- proofs ----------------------------------------------------------------------------------


def inclusion_proof(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """The audit path of entry ``index`` in the tree over ``leaves``: PATH(m, D[n]) of RFC 6962.

    Raises ValueError when there is no such entry.
    """
    if not 0 <= index < len(leaves):
        raise ValueError(f"no entry {index} in a tree of {len(leaves)}")
    path: list[bytes] = []
    while len(leaves) > 1:
        middle = _split(len(leaves))
        if index < middle:
            path.append(tree_root(leaves[middle:]))
            leaves = leaves[:middle]
        else:
            path.append(tree_root(leaves[:middle]))
            leaves, index = leaves[middle:], index - middle
    return tuple(reversed(path))


def consistency_proof(leaves: Sequence[bytes], old_size: int) -> tuple[bytes, ...]:
    """Show that the first ``old_size`` leaves are a prefix: PROOF(m, D[n]) of RFC 6962.

    Empty for ``old_size`` 0 and for the tree itself. Raises ValueError for a larger one.
    """
    if not 0 <= old_size <= len(leaves):
        raise ValueError(f"a tree of {len(leaves)} has no prefix of {old_size}")
    if old_size == 0:
        return ()
    path: list[bytes] = []
    whole = True  # whether the verifier already knows the root of the old part that remains
    while old_size != len(leaves):
        middle = _split(len(leaves))
        if old_size <= middle:
            path.append(tree_root(leaves[middle:]))
            leaves = leaves[:middle]
        else:
            path.append(tree_root(leaves[:middle]))
            leaves, old_size, whole = leaves[middle:], old_size - middle, False
    if not whole:
        path.append(tree_root(leaves))
    return tuple(reversed(path))


def check_inclusion(
    *, leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes
) -> None:
    """Return when ``leaf`` is entry ``index`` of the tree (``size``, ``root``).

    Raises CheckpointInvalid otherwise. RFC 9162 section 2.1.3.2.
    """
    _require_nodes(leaf, root, *proof)
    if not 0 <= index < size:
        raise CheckpointInvalid("the entry lies outside of the tree", index=index, size=size)
    fn, sn, node = index, size - 1, leaf
    for sibling in proof:
        if sn == 0:
            raise CheckpointInvalid("the inclusion proof is too long", index=index, size=size)
        if fn & 1 or fn == sn:
            node = node_hash(sibling, node)
            fn, sn = _skip_left_edge(fn, sn)
        else:
            node = node_hash(node, sibling)
        fn, sn = fn >> 1, sn >> 1
    if sn != 0 or node != root:
        raise CheckpointInvalid(
            "the entry is not in the tree of the checkpoint", index=index, size=size
        )


def check_consistency(
    *, old_size: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]
) -> None:
    """Return when the tree (``old_size``, ``old_root``) is a prefix of the tree (``size``, ``root``).

    Raises CheckpointInvalid otherwise. RFC 9162 section 2.1.4.2.
    """
    _require_nodes(old_root, root, *proof)
    where = {"oldSize": old_size, "size": size}
    if not 0 <= old_size <= size:
        raise CheckpointInvalid("the log became shorter", **where)
    if old_size in (0, size):
        expected = EMPTY_ROOT if old_size == 0 else root
        if old_root != expected or proof or (size == 0 and root != EMPTY_ROOT):
            raise CheckpointInvalid("two trees of this size differ", **where)
        return
    if not _is_extension(old_size, old_root, size, root, proof):
        raise CheckpointInvalid("the log was rewritten: the older tree is not a prefix", **where)


def _is_extension(
    old_size: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]
) -> bool:
    # A tree whose size is a power of two is itself the first node of the path.
    path = [old_root, *proof] if old_size.bit_count() == 1 else list(proof)
    if not path:
        return False
    fn, sn = old_size - 1, size - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    old_node = new_node = path[0]
    for sibling in path[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            old_node, new_node = node_hash(sibling, old_node), node_hash(sibling, new_node)
            fn, sn = _skip_left_edge(fn, sn)
        else:
            new_node = node_hash(new_node, sibling)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and old_node == old_root and new_node == root


def _skip_left_edge(fn: int, sn: int) -> tuple[int, int]:
    """Climb past the levels at which a last, lonely node has no sibling."""
    while not fn & 1 and fn != 0:
        fn, sn = fn >> 1, sn >> 1
    return fn, sn


def _split(size: int) -> int:
    """The largest power of two smaller than ``size``."""
    return 1 << ((size - 1).bit_length() - 1)


def _require_nodes(*nodes: bytes) -> None:
    if len(nodes) > MAX_PROOF_LENGTH:
        raise CheckpointInvalid("the proof is too long", length=len(nodes))
    if any(len(node) != HASH_SIZE for node in nodes):
        raise CheckpointInvalid(f"a node of the proof has not {HASH_SIZE} bytes")


# --- checkpoints -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a log says of itself: so many entries, under this root (C2SP tlog-checkpoint)."""

    origin: str
    """Identity of the log: one line of printable ASCII."""
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()
    """Further lines, signed too; ``era N`` is ours, others are left alone."""

    def __post_init__(self) -> None:
        if not _ORIGIN.fullmatch(self.origin):
            raise ValueError("the origin is one line of printable ASCII")
        if not 0 <= self.size < 1 << 63 or len(self.root) != HASH_SIZE:
            raise ValueError(f"a checkpoint has a size of 63 bits and a root of {HASH_SIZE} bytes")
        if any(not line or "\n" in line for line in self.extensions):
            raise ValueError("extension lines are not empty and hold no newline")

    @property
    def era(self) -> int:
        """Grows when operators accept a loss; trees of two eras need not contain each other."""
        numbers = [line.removeprefix(ERA) for line in self.extensions if line.startswith(ERA)]
        return int(numbers[0]) if numbers and _DECIMAL.fullmatch(numbers[0]) else 0


def encode_checkpoint(checkpoint: Checkpoint) -> str:
    """The body of a checkpoint: the text that gets signed, newline at its end included."""
    root = base64.b64encode(checkpoint.root).decode()
    lines = (checkpoint.origin, str(checkpoint.size), root, *checkpoint.extensions)
    return "".join(f"{line}\n" for line in lines)


def decode_checkpoint(body: str) -> Checkpoint:
    """Read the body of a checkpoint. Raises CheckpointInvalid."""
    if not body.endswith("\n"):
        raise CheckpointInvalid("the checkpoint does not end with a newline")
    lines = body[:-1].split("\n")
    if len(lines) < 3:
        raise CheckpointInvalid("a checkpoint has at least three lines")
    origin, size, root, *extensions = lines
    if not _DECIMAL.fullmatch(size):
        raise CheckpointInvalid("the size of the checkpoint is not a plain decimal number")
    try:
        return Checkpoint(
            origin=origin, size=int(size), root=_base64(root), extensions=tuple(extensions)
        )
    except ValueError as error:
        raise CheckpointInvalid(f"not a checkpoint: {error}") from error


# --- signed notes ----------------------------------------------------------------------------


def key_id(name: str, public_key: bytes) -> bytes:
    """The 4 bytes by which a note's signature line names an Ed25519 key (``public_key``: 32 bytes)."""
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + public_key).digest()[:4]


def encode_note(*, text: str, name: str, public_key: bytes, signature: bytes) -> str:
    """Join a text and an Ed25519 signature over its UTF-8 bytes to a signed note.

    Raises ValueError when the text or the key's name can't stand in a note.
    """
    if not text.endswith("\n") or _has_controls(text):
        raise ValueError("the text of a note ends with a newline and holds no control characters")
    if not _KEY_NAME.fullmatch(name):
        raise ValueError("the name of a note's key holds no space and no plus sign")
    stamp = base64.b64encode(key_id(name, public_key) + signature).decode()
    return f"{text}\n— {name} {stamp}\n"


def open_note(note: str, *, name: str, public_key: bytes) -> str:
    """Return the text of ``note`` when the Ed25519 key ``name`` (32 bytes) signed it.

    Signatures of other keys are ignored, as the format asks: a note may carry those of witnesses.
    Raises CheckpointInvalid: malformed, not signed by this key, or the signature is wrong.
    """
    text, signatures = _split_note(note)
    wanted = key_id(name, public_key)
    mine = [stamp[4:] for signer, stamp in signatures if signer == name and stamp[:4] == wanted]
    if len(mine) != 1:
        raise CheckpointInvalid("the checkpoint is not signed by the pinned audit key", name=name)
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(mine[0], text.encode())
    except (InvalidSignature, ValueError) as error:
        raise CheckpointInvalid(
            "the signature of the checkpoint is wrong for the pinned audit key", name=name
        ) from error
    return text


def open_checkpoint(note: str, *, origin: str, public_key: bytes) -> Checkpoint:
    """Return the checkpoint of log ``origin`` in a note that the log's own key signed.

    Raises CheckpointInvalid: as ``open_note``, or the checkpoint is that of another log.
    """
    checkpoint = decode_checkpoint(open_note(note, name=origin, public_key=public_key))
    if checkpoint.origin != origin:
        raise CheckpointInvalid("the checkpoint is that of another log", origin=checkpoint.origin)
    return checkpoint


def unverified_checkpoint(note: str) -> Checkpoint:
    """Read a note without looking at its signatures: for display and for finding the pinned key.

    Raises CheckpointInvalid.
    """
    text, _signatures = _split_note(note)
    return decode_checkpoint(text)


def _split_note(note: str) -> tuple[str, tuple[tuple[str, bytes], ...]]:
    if len(note) > MAX_NOTE_SIZE or _has_controls(note):
        raise CheckpointInvalid("the note is too long or holds control characters")
    text, blank, block = note.rpartition("\n\n")
    if not blank or not block.endswith("\n"):
        raise CheckpointInvalid("a note is a text, an empty line and signature lines")
    lines = block[:-1].split("\n")
    if len(lines) > MAX_NOTE_SIGNATURES:
        raise CheckpointInvalid("the note has too many signatures")
    return text + "\n", tuple(_signature_line(line) for line in lines)


def _signature_line(line: str) -> tuple[str, bytes]:
    dash, name, stamp = [*line.split(" "), "", ""][:3]
    if dash != "—" or line.count(" ") != 2 or not _KEY_NAME.fullmatch(name):
        raise CheckpointInvalid("a signature line of the note is malformed")
    try:
        signature = _base64(stamp)
    except ValueError as error:
        raise CheckpointInvalid("a signature of the note is not base64") from error
    if len(signature) < 5:
        raise CheckpointInvalid("a signature of the note is too short")
    return name, signature


def _base64(text: str) -> bytes:
    """Strict base64: anything else that decodes to the same bytes is refused (ValueError)."""
    try:
        value = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError("not base64") from error
    if base64.b64encode(value).decode() != text:
        raise ValueError("not canonical base64")
    return value


def _has_controls(text: str) -> bool:
    return any((char < " " and char != "\n") or char == "\x7f" for char in text) or not _is_utf8(
        text
    )


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
