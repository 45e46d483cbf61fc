"""Runtime rules documents: JSON bytes to ``RuntimeRules``, and the canonical bytes back.

Trusts nothing on entry. On exit: every path is absolute, every digest has the size of its hash,
every pattern can be matched in linear time, every key is one that may sign. What it does not do:
judge a log (``appraisal.runtimefiles``). Format: docs/reference/runtime-policy.md; pitfalls 65.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import load_der_public_key

from trustauthority.codec.ima import encode_digest_and_path
from trustauthority.errors import PolicyInvalid
from trustauthority.model.ima import BOOT_AGGREGATE, FILE_HASH_SIZES
from trustauthority.model.runtimerules import STRONG_HASHES, FileDigest, Keyring, RuntimeRules

MAX_DOCUMENT_BYTES = 64 << 20
MAX_PATHS = 1_000_000
MAX_PATTERNS = 1_000
MAX_KEYS = 256
LEAST_RSA_BITS = 2048
VERSION = 1
_KEYS = {"version", "files", "anywhere", "excluded", "keyrings", "buffers", "hashes"}
_SHARED_NAMES = {name: name for name in FILE_HASH_SIZES}
"""One text per hash for the 100,000 digests of a document."""
_CURVES = ("secp256r1", "secp384r1", "secp521r1")


def decode_runtime_rules(document: bytes) -> RuntimeRules:
    """Read a document.

    Raises:
        PolicyInvalid: with the field and what is wrong with it.
    """
    values = _object(_load(document), "document")
    unknown = values.keys() - _KEYS
    if unknown:
        raise _invalid("document", f"unknown keys: {', '.join(sorted(unknown))}")
    if values.get("version") != VERSION:
        raise _invalid("version", f"this program reads version {VERSION}")
    hashes = frozenset(_texts(values.get("hashes", sorted(STRONG_HASHES)), "hashes"))
    if not hashes <= FILE_HASH_SIZES.keys():
        names = ", ".join(sorted(hashes - FILE_HASH_SIZES.keys()))
        raise _invalid("hashes", f"unknown hash: {names}")
    digests = _by_path(values.get("files", {}), "files")
    return RuntimeRules(
        sha256=hashlib.sha256(document).hexdigest(),
        digests=digests,
        anywhere=_digests(values.get("anywhere", []), "anywhere"),
        excluded=_patterns(values.get("excluded", []), "excluded"),
        keyrings=_keyrings(values.get("keyrings", {})),
        buffers=_buffers(values.get("buffers", {})),
        hashes=hashes,
        approved=dict(_approved(digests, hashes)),
    )


def _approved(
    digests: Mapping[str, frozenset[FileDigest]], hashes: frozenset[str]
) -> Iterator[tuple[bytes, bytes]]:
    """What entries of accepted files look like, with its SHA-1; none for a path that no bytes decode to."""
    for path, accepted in digests.items():
        try:
            name = path.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            continue
        if name.decode("utf-8", "surrogateescape") != path:
            continue
        for algorithm, digest in accepted:
            if algorithm in hashes:
                fields = encode_digest_and_path(name, algorithm, digest)
                yield fields, hashlib.sha1(fields, usedforsecurity=False).digest()


def encode_runtime_rules(files: Mapping[str, Iterable[str]], rest: Mapping[str, Any]) -> bytes:
    """Canonical bytes of a document: one line per path, so that a diff can be read.

    Args:
        files: path → digests such as ``sha256:…``.
        rest: the document's other keys.
    """
    head = {"version": VERSION} | dict(rest)
    lines = [f"{json.dumps(key)}: {json.dumps(head[key], sort_keys=True)}" for key in sorted(head)]
    rows = [
        f"  {json.dumps(path)}: {json.dumps(sorted(set(digests)))}"
        for path, digests in sorted(files.items())
    ]
    return ("{\n" + ",\n".join(lines) + ',\n"files": {\n' + ",\n".join(rows) + "\n}}\n").encode()


def key_id(key: PublicKeyTypes, certificate: x509.Certificate | None = None) -> bytes:
    """The four bytes by which a file signature names its key.

    The end of the certificate's subject key identifier, or of the SHA-1 over the public key's bits.
    Source: Linux crypto/asymmetric_keys/signature; ima-evm-utils(1), KEYS.
    """
    if certificate is not None:
        try:
            extension = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        except (x509.ExtensionNotFound, ValueError):
            pass
        else:
            return extension.value.digest[-4:]
    return x509.SubjectKeyIdentifier.from_public_key(key).digest[-4:]  # type: ignore[arg-type]


def _load(document: bytes) -> Any:
    if len(document) > MAX_DOCUMENT_BYTES:
        raise _invalid("document", "more than 64 MiB")
    try:
        return json.loads(document.decode("utf-8"), object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        raise _invalid("document", "not UTF-8 text") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise _invalid("document", f"not JSON: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _invalid("document", "a key stands twice in one object")
    return found


def _by_path(value: Any, where: str) -> Mapping[str, frozenset[FileDigest]]:
    entries = _object(value, where)
    if len(entries) > MAX_PATHS:
        raise _invalid(where, f"more than {MAX_PATHS} paths")
    found = {}
    for path, digests in entries.items():
        if not path.startswith("/") or "\0" in path:
            raise _invalid(where, f"{path!r} is not an absolute path")
        found[path] = _digests(digests, path)
    return found


def _buffers(value: Any) -> Mapping[str, frozenset[FileDigest]]:
    found = {}
    for name, digests in _object(value, "buffers").items():
        if not name or name.startswith("/") or name == BOOT_AGGREGATE:
            raise _invalid("buffers", f"{name!r} is not the name of a measured buffer")
        found[name] = _digests(digests, name)
    return found


def _digests(value: Any, where: str) -> frozenset[FileDigest]:
    return frozenset(_digest(each, where) for each in _texts(value, where))


def _digest(text: str, where: str) -> FileDigest:
    algorithm, _, digits = text.partition(":")
    size = FILE_HASH_SIZES.get(algorithm)
    try:
        digest = bytes.fromhex(digits)
    except ValueError as error:
        raise _invalid(where, f"{text!r} is not hash:hex") from error
    if size is None or len(digest) != size or digits != digest.hex():
        raise _invalid(where, f"{text!r} is not hash:hex, lower case, of that hash's size")
    return _SHARED_NAMES[algorithm], digest


def _patterns(value: Any, where: str) -> tuple[str, ...]:
    patterns = _texts(value, where)
    if len(patterns) > MAX_PATTERNS:
        raise _invalid(where, f"more than {MAX_PATTERNS} patterns")
    for pattern in patterns:
        if not pattern.startswith("/") or "*" in pattern[:-1] or "/../" in pattern:
            raise _invalid(where, f"{pattern!r}: an absolute path, with * at its end or not at all")
        if pattern == "/*":
            raise _invalid(where, "/* would judge nothing at all")
    return patterns


def _keyrings(value: Any) -> tuple[Keyring, ...]:
    rings = []
    for name, content in _object(value, "keyrings").items():
        fields = _object(content, name)
        if fields.keys() != {"keys", "paths"}:
            raise _invalid(name, "a keyring has keys and paths")
        paths = _texts(fields["paths"], name)
        everywhere = paths == ("/*",)
        encoded = _texts(fields["keys"], name)
        if not 0 < len(encoded) <= MAX_KEYS:
            raise _invalid(name, f"a keyring has 1 to {MAX_KEYS} keys")
        keys = dict(_key(each, name) for each in encoded)
        if len(keys) != len(encoded):
            raise _invalid(name, "two keys have the same key id")
        rings.append(
            Keyring(
                name=name, keys=keys, paths=paths if everywhere else _patterns(list(paths), name)
            )
        )
    return tuple(rings)


def _key(text: str, where: str) -> tuple[bytes, PublicKeyTypes]:
    try:
        der = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise _invalid(where, "a key is base64 of DER") from error
    try:
        identifier, key = _read_key(der)
    except Exception as error:  # the library has many ways to say no, and not all are ValueErrors
        raise _invalid(where, "a key is an X.509 certificate or a public key") from error
    strong = (isinstance(key, rsa.RSAPublicKey) and key.key_size >= LEAST_RSA_BITS) or (
        isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES
    )
    if not strong:
        raise _invalid(where, "a key is RSA of 2048 bits or more, or ECDSA on P-256, P-384, P-521")
    return identifier, key


def _read_key(der: bytes) -> tuple[bytes, PublicKeyTypes]:
    try:
        certificate = x509.load_der_x509_certificate(der)
    except ValueError:
        key = load_der_public_key(der)
        return key_id(key), key
    return key_id(certificate.public_key(), certificate), certificate.public_key()


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _invalid(where, "must be an object")
    return value


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise _invalid(where, "must be a list of texts")
    return tuple(value)


def _invalid(where: str, why: str) -> PolicyInvalid:
    shown = ascii(where)[1:-1][:200]  # nothing that a terminal would obey (N44)
    return PolicyInvalid(f"runtime policy, {shown}: {why}", fields=shown)
