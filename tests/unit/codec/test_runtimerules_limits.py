"""Runtime rules documents at their limits, and keys that no library likes (rules 53, 57, 65)."""

import base64
import hashlib
import json

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from support import ek_certificates as make

from trustauthority.codec.ima import encode_digest_and_path
from trustauthority.codec.runtimerules import (
    MAX_KEYS,
    MAX_PATTERNS,
    decode_runtime_rules,
    encode_runtime_rules,
    key_id,
)
from trustauthority.errors import PolicyInvalid

EC_KEY = make.public_key_info(make.ec_private_key(3))
DIGEST = "sha256:" + "00" * 32


def document(**values) -> bytes:
    """A document of version 1."""
    return json.dumps({"version": 1} | values).encode()


def with_key(key: str) -> bytes:
    """A document with one keyring of one key."""
    return document(keyrings={"ring": {"keys": [key], "paths": ["/*"]}})


def encoded(der: bytes) -> str:
    """A key as documents hold it."""
    return base64.b64encode(der).decode()


def refused(data: bytes, text: str) -> None:
    """The document is invalid, and says where and why."""
    with pytest.raises(PolicyInvalid, match=text):
        decode_runtime_rules(data)


def spki(algorithm: bytes) -> bytes:
    """A SubjectPublicKeyInfo of some algorithm."""
    return make.sequence(algorithm, make.bits(b"\4" * 65))


@pytest.mark.parametrize(
    "der",
    [
        b"",
        b"\x30",
        spki(make.algorithm("1.2.3.4")),
        spki(make.sequence(make.oid("1.2.840.10045.2.1"), make.oid("1.3.36.3.3.2.8.1.1.99"))),
        make.root(public_key_info=spki(make.algorithm("1.2.3.4"))),
        make.root(version=7),
        make.root(extensions=[*make.authority_extensions(), *make.authority_extensions()]),
    ],
    ids=["empty", "cut", "kind", "curve", "kind in a certificate", "version", "extensions twice"],
)
def test_what_is_no_key_that_we_use(der):
    """Unknown kinds, curves, versions and doubled extensions are refused by name, not by a crash (rule 57)."""
    refused(with_key(encoded(der)), "ring: a key is")


@pytest.mark.parametrize("text", ["ж", "AAA", "A===", "AA=A", " ", "AA\nAA"])
def test_what_is_no_base64(text):
    """Strict base64 of DER."""
    refused(with_key(text), "ring: a key is")


@pytest.mark.parametrize("data", [EC_KEY, make.root()], ids=["key", "certificate"])
def test_a_key_with_any_bit_flipped_is_a_key_or_refused(data):
    """Whatever the bytes: a document or PolicyInvalid (N45)."""
    read = 0
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        try:
            decode_runtime_rules(with_key(encoded(bytes(changed))))
            read += 1
        except PolicyInvalid:
            continue
    assert read < len(data)


def test_weak_keys_are_refused():
    """RSA below 2048 bits and curves outside of the three do not sign files."""
    weak = make.public_key_info(make.rsa_private_key("weak", 1024))
    refused(with_key(encoded(weak)), "RSA of 2048 bits or more")


def test_number_of_keys():
    """A keyring has 1 to 256 keys, no two with one id."""
    keys = [encoded(make.public_key_info(make.ec_private_key(n + 1))) for n in range(MAX_KEYS + 1)]
    ring = {"keys": keys[:-1], "paths": ["/usr/*"]}
    assert len(decode_runtime_rules(document(keyrings={"r": ring})).keyrings[0].keys) == MAX_KEYS
    for wrong in (keys, []):
        refused(document(keyrings={"r": ring | {"keys": wrong}}), "1 to 256 keys")
    refused(document(keyrings={"r": ring | {"keys": keys[:1] * 2}}), "same key id")


def test_number_of_patterns():
    """A thousand patterns are read, one more is not, here and in a keyring."""
    patterns = [f"/tmp/{number}/*" for number in range(MAX_PATTERNS)]
    assert len(decode_runtime_rules(document(excluded=patterns)).excluded) == MAX_PATTERNS
    refused(document(excluded=[*patterns, "/x"]), "^runtime policy, excluded: more than 1000")


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"files": []}, "files"),
        ({"files": {"/x": "no list"}}, "/x"),
        ({"anywhere": {}}, "anywhere"),
        ({"anywhere": [5]}, "anywhere"),
        ({"excluded": "/tmp"}, "excluded"),
        ({"excluded": ["tmp"]}, "excluded"),
        ({"excluded": ["/*"]}, "excluded"),
        ({"excluded": ["/a*b"]}, "excluded"),
        ({"excluded": ["/a/../b"]}, "excluded"),
        ({"keyrings": []}, "keyrings"),
        ({"keyrings": {"r": []}}, "r"),
        ({"keyrings": {"r": {"keys": []}}}, "r"),
        ({"keyrings": {"r": {"keys": [], "paths": [], "more": 1}}}, "r"),
        ({"buffers": []}, "buffers"),
        ({"buffers": {"/x": [DIGEST]}}, "buffers"),
        ({"buffers": {"boot_aggregate": [DIGEST]}}, "buffers"),
        ({"hashes": "sha256"}, "hashes"),
        ({"hashes": ["crc32"]}, "hashes"),
        ({"more": 1}, "document"),
        ({"version": 2}, "version"),
        ({"ж\n": 1}, "document"),
    ],
)
def test_a_value_of_another_form_is_named(values, where):
    """The field is named, whatever it holds, and a document never half counts."""
    with pytest.raises(PolicyInvalid) as caught:
        decode_runtime_rules(document(**values))
    assert caught.value.message.startswith(f"runtime policy, {where}: ")


def test_odd_field_names_are_shown_as_ascii():
    """A name that is a terminal's command is shown, not run (N44)."""
    data = document(keyrings={"\x1b[31mж": []})
    with pytest.raises(PolicyInvalid) as caught:
        decode_runtime_rules(data)
    assert "\\u0436" in caught.value.message
    assert caught.value.message.isascii()
    assert caught.value.message.isprintable()


def test_what_is_written_is_read():
    """Canonical bytes come back as the same rules."""
    rest = {"excluded": ["/tmp/*"], "hashes": ["sha256", "sha512"]}
    rules = decode_runtime_rules(encode_runtime_rules({"/b": [DIGEST], "/a": [DIGEST]}, rest))
    assert list(rules.digests) == ["/a", "/b"]
    assert rules.excluded == ("/tmp/*",)
    assert rules.hashes == {"sha256", "sha512"}


def test_the_quick_form_of_the_rules_holds_accepted_hashes_only() -> None:
    """Rule 53: a digest by a hash that does not count is in the document, and approves nothing quickly."""
    digests = [
        f"{name}:" + "ab" * size for name, size in (("sha1", 20), ("sha256", 32), ("sha512", 64))
    ]
    for hashes, known in (
        (None, {"sha256", "sha512"}),
        (["sha1"], {"sha1"}),
        (["sha256"], {"sha256"}),
    ):
        more = {} if hashes is None else {"hashes": hashes}
        found = decode_runtime_rules(document(files={"/bin/x": digests}, **more))
        expected = {
            encode_digest_and_path(b"/bin/x", name, bytes.fromhex(digest))
            for name, _, digest in (each.partition(":") for each in digests)
            if name in known
        }
        assert set(found.approved) == expected
        for fields, digest in found.approved.items():
            assert digest == hashlib.sha1(fields, usedforsecurity=False).digest()


def test_keys_are_named_by_the_end_of_their_identifier() -> None:
    """Linux: the last four bytes of the certificate's identifier, or of the SHA-1 of the key's bits."""
    private = make.ec_private_key(3)
    point = private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    by_key = hashlib.sha1(point, usedforsecurity=False).digest()[-4:]
    assert key_id(private.public_key()) == by_key
    identifier = bytes(range(20))
    for named, expected in ((identifier, identifier[-4:]), (None, by_key)):
        extensions = make.key_identifiers(named, None)
        der = make.root(public_key_info=EC_KEY, extensions=extensions)
        certificate = x509.load_der_x509_certificate(der)
        assert key_id(private.public_key(), certificate) == expected
