"""The Merkle tree and the checkpoints that `ta` and the hosts believe (RFC 6962, C2SP)."""

import base64
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from trustauthority.codec import tlog
from trustauthority.errors import CheckpointInvalid

ENTRIES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
LEAVES = [tlog.leaf_hash(entry) for entry in ENTRIES]
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
ORIGIN = "authority.example/audit"


def sign(text: str, name: str = ORIGIN) -> str:
    return tlog.encode_note(
        text=text, name=name, public_key=PUBLIC, signature=KEY.sign(text.encode())
    )


@pytest.mark.parametrize("size", range(9))
def test_roots_equal_the_published_ones(size: int) -> None:
    """S11: the tree is RFC 6962's, so third parties verify it; the empty root is sha256('')."""
    assert ROOTS[size] == tlog.tree_root(LEAVES[:size]).hex()


def test_published_proofs() -> None:
    """S11: audit path of entry 5 of 8 and consistency of 6 with 8, as in the reference vectors."""
    shared = [
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]
    inclusion = ["bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b", *shared]
    consistency = ["0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a", *shared]
    assert inclusion == [node.hex() for node in tlog.inclusion_proof(LEAVES, 5)]
    assert consistency == [node.hex() for node in tlog.consistency_proof(LEAVES, 6)]


def leaves_of(size: int) -> list[bytes]:
    return [tlog.leaf_hash(str(number).encode()) for number in range(size)]


@given(size=st.integers(1, 70), data=st.data())
@settings(max_examples=150, deadline=None)
def test_an_honest_inclusion_proof_holds_and_no_other_does(size: int, data: st.DataObject) -> None:
    """S11: the proof holds for its entry, index and size, and breaks when any of them is changed."""
    index = data.draw(st.integers(0, size - 1))
    leaves = leaves_of(size)
    proof, root = tlog.inclusion_proof(leaves, index), tlog.tree_root(leaves)
    tlog.check_inclusion(leaf=leaves[index], index=index, size=size, proof=proof, root=root)
    lies = [
        {"leaf": tlog.leaf_hash(b"another entry")},
        {"root": bytes(32)},
        {"index": size},
        {"index": -1},
        {"proof": (*proof, bytes(32))},
        {"proof": (*proof, b"short")},
        {"size": size * 2 + 1},
    ]
    if proof:
        lies += [{"proof": proof[:-1]}, {"proof": (bytes(32), *proof[1:])}]
        lies += [{"index": (index + 1) % size}]
    for lie in lies:
        honest = {"leaf": leaves[index], "index": index, "size": size, "proof": proof, "root": root}
        with pytest.raises(CheckpointInvalid):
            tlog.check_inclusion(**(honest | lie))


@given(size=st.integers(0, 70), data=st.data())
@settings(max_examples=150, deadline=None)
def test_an_honest_consistency_proof_holds_and_a_rewritten_log_does_not(
    size: int, data: st.DataObject
) -> None:
    """N91, S11: a log that was cut, forked or rewritten can't show the older tree as its prefix."""
    old_size = data.draw(st.integers(0, size))
    leaves = leaves_of(size)
    honest = {
        "old_size": old_size,
        "old_root": tlog.tree_root(leaves[:old_size]),
        "size": size,
        "root": tlog.tree_root(leaves),
        "proof": tlog.consistency_proof(leaves, old_size),
    }
    tlog.check_consistency(**honest)
    lies = [
        {"old_root": bytes(32)},
        {"old_size": size + 1},
        {"proof": (*honest["proof"], bytes(32))},
    ]
    if old_size:
        forked = [tlog.leaf_hash(b"rewritten"), *leaves[1:]]
        lies.append(
            {"root": tlog.tree_root(forked), "proof": tlog.consistency_proof(forked, old_size)}
        )
    if honest["proof"]:
        lies += [{"proof": honest["proof"][:-1]}, {"proof": ()}, {"root": bytes(32)}]
    for lie in lies:
        with pytest.raises(CheckpointInvalid):
            tlog.check_consistency(**(honest | lie))


def test_an_endless_proof_is_refused_before_it_is_hashed() -> None:
    """Pitfalls: work on hostile input is bounded."""
    with pytest.raises(CheckpointInvalid, match="too long"):
        tlog.check_inclusion(
            leaf=LEAVES[0], index=0, size=1, proof=[bytes(32)] * 10_000, root=LEAVES[0]
        )


@pytest.mark.parametrize("index", [-1, 8])
def test_no_proof_for_an_entry_that_is_not_there(index: int) -> None:
    """A caller's mistake is an error, not an empty proof."""
    with pytest.raises(ValueError, match="no entry"):
        tlog.inclusion_proof(LEAVES, index)
    with pytest.raises(ValueError, match="no prefix"):
        tlog.consistency_proof(LEAVES, 9)


@pytest.mark.parametrize(
    ("size", "nodes"), [(1, ()), (3, (bytes(32),)), (1, (b"short",)), (-1, (bytes(32),))]
)
def test_a_frontier_from_a_damaged_row_is_refused(size: int, nodes: tuple[bytes, ...]) -> None:
    """S11: a frontier that can't be one is not silently continued."""
    with pytest.raises(ValueError, match="node"):
        tlog.Frontier(size=size, nodes=nodes)


def test_a_note_of_another_implementation_opens() -> None:
    """The published example of golang.org/x/mod/sumdb/note verifies: the format is the world's."""
    public = base64.b64decode("ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")[1:]
    text = (
        "If you think cryptography is the answer to your problem,\n"
        "then you don't know what your problem is.\n"
    )
    note = (
        f"{text}\n— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXg"
        "KvqfqdngotpRZb6KE6RyyBwJnAM=\n"
    )
    assert text == tlog.open_note(note, name="PeterNeumann", public_key=public)
    assert bytes.fromhex("c74f20a3") == tlog.key_id("PeterNeumann", public)


def test_a_checkpoint_round_trips_with_extensions() -> None:
    """A checkpoint is read back as it was written, whatever a later version adds."""
    root = tlog.tree_root(LEAVES)
    checkpoint = tlog.Checkpoint(origin=ORIGIN, size=8, root=root, extensions=("node a",))
    note = sign(tlog.encode_checkpoint(checkpoint))
    assert checkpoint == tlog.open_checkpoint(note, origin=ORIGIN, public_key=PUBLIC)
    assert checkpoint == tlog.unverified_checkpoint(note)


def test_signatures_of_witnesses_are_ignored() -> None:
    """C2SP: a note that other keys signed too still opens, and only by our key."""
    text = tlog.encode_checkpoint(tlog.Checkpoint(origin=ORIGIN, size=0, root=tlog.EMPTY_ROOT))
    witness = base64.b64encode(bytes(68)).decode()
    note = sign(text) + f"— witness.example {witness}\n"
    assert text == tlog.open_note(note, name=ORIGIN, public_key=PUBLIC)
    with pytest.raises(CheckpointInvalid, match="not signed by"):
        tlog.open_note(note, name="other.example", public_key=PUBLIC)


BODY = tlog.encode_checkpoint(tlog.Checkpoint(origin=ORIGIN, size=8, root=bytes(32)))
NOTE = sign(BODY)
DEFECTS = {
    "empty": "",
    "body_changed": NOTE.replace("\n8\n", "\n9\n"),
    "no_blank_line": NOTE.replace("\n\n", "\n"),
    "no_final_newline": NOTE[:-1],
    "signature_missing": BODY + "\n",
    "signature_cut": NOTE.replace("=\n", "\n") if NOTE.endswith("=\n") else NOTE[:-6] + "\n",
    "signature_twice": NOTE + NOTE.rpartition("\n\n")[2],
    "hyphen_for_dash": NOTE.replace("—", "-"),
    "name_missing": NOTE.replace(f"— {ORIGIN} ", "— "),
    "base64_spaces": NOTE.replace("— ", "—  "),
    "ansi": NOTE.replace(ORIGIN, "\x1b[31m" + ORIGIN),
    "nul": NOTE + "\x00",
    "delete": NOTE + "\x7f",
    "escape": NOTE + "\x1b",
    "tab": NOTE + "\t",
    "lone_surrogate": "\udc80" + NOTE,
    "too_long": NOTE + "— w " + "A" * 20_000 + "\n",
    "too_many": NOTE + f"— w {base64.b64encode(bytes(5)).decode()}\n" * 101,
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_damaged_note_never_opens(defect: str) -> None:
    """N91: a checkpoint raises the kept one only when the pinned key signed exactly this text."""
    with pytest.raises(CheckpointInvalid):
        tlog.open_checkpoint(DEFECTS[defect], origin=ORIGIN, public_key=PUBLIC)


def test_another_key_of_the_same_name_does_not_open_it() -> None:
    """N91: the pinned key decides, not the name in the note."""
    other = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key().public_bytes_raw()
    with pytest.raises(CheckpointInvalid, match="not signed by"):
        tlog.open_note(NOTE, name=ORIGIN, public_key=other)


def test_a_signature_by_our_key_over_another_log_is_refused() -> None:
    """S11: the same key may sign for two logs; their checkpoints don't mix."""
    text = tlog.encode_checkpoint(tlog.Checkpoint(origin="other log", size=8, root=bytes(32)))
    with pytest.raises(CheckpointInvalid, match="another log"):
        tlog.open_checkpoint(sign(text), origin=ORIGIN, public_key=PUBLIC)


@pytest.mark.parametrize(
    "body",
    [
        f"{ORIGIN}\n08\n{base64.b64encode(bytes(32)).decode()}\n",
        f"{ORIGIN}\n-1\n{base64.b64encode(bytes(32)).decode()}\n",
        f"{ORIGIN}\n٣\n{base64.b64encode(bytes(32)).decode()}\n",
        f"{ORIGIN}\n9999999999999999999\n{base64.b64encode(bytes(32)).decode()}\n",
        f"{ORIGIN}\n8\n{base64.b64encode(bytes(31)).decode()}\n",
        f"{ORIGIN}\n8\n{base64.b64encode(bytes(32)).decode()[:-2]}B=\n",
        f"{ORIGIN}\n8\n",
        f"\n8\n{base64.b64encode(bytes(32)).decode()}\n",
        f"{ORIGIN}\n8\n{base64.b64encode(bytes(32)).decode()}\n\nx\n",
        f"{ORIGIN}\n8\n{base64.b64encode(bytes(32)).decode()}",
        f"evil\u202e\n8\n{base64.b64encode(bytes(32)).decode()}\n",
    ],
)
def test_a_body_that_is_not_canonical_is_refused(body: str) -> None:
    """N44: sizes, roots and origins have one spelling."""
    with pytest.raises(CheckpointInvalid):
        tlog.decode_checkpoint(body)


def test_what_can_not_be_a_note_is_not_encoded() -> None:
    """The signer refuses a text that would not be read back."""
    for text, name in (("no newline", ORIGIN), ("a\x1b\n", ORIGIN), ("a\n", "has space")):
        with pytest.raises(ValueError, match="note"):
            tlog.encode_note(text=text, name=name, public_key=PUBLIC, signature=bytes(64))


@given(st.binary(max_size=300))
def test_any_bytes_open_or_are_refused(data: bytes) -> None:
    """S12: no other exception leaves the reader of notes."""
    with pytest.raises(CheckpointInvalid):
        tlog.open_note(data.decode("utf-8", "surrogateescape"), name="n", public_key=PUBLIC)


def test_appends_continue_a_stored_frontier() -> None:
    """S11: a frontier kept in a row goes on as if it had never been stored."""
    first = tlog.frontier_of(LEAVES[:5])
    stored = tlog.Frontier(size=first.size, nodes=first.nodes)
    for leaf in LEAVES[5:]:
        stored = stored.append(leaf)
    assert ROOTS[8] == stored.root().hex()
    assert hashlib.sha256(b"").digest() == tlog.Frontier().root()
