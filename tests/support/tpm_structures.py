"""Builds TPM structures byte by byte and signs them with software keys, well or badly on purpose.

Nothing here uses ``trustauthority.codec``: the encoders are a second opinion on it. A ``SignedQuote``
is what a host sends; every field of it can be replaced before it is signed.

    key = SoftwareKey.ecdsa()
    quote = make_quote(key, pcrs={"sha256": {0: bytes(32)}}, extra_data=b"n" * 32)
"""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
)
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from support.deterministic_keys import rsa_private_key, sign_pss

HASH_IDS = {"sha1": 0x0004, "sha256": 0x000B, "sha384": 0x000C, "sha512": 0x000D, "sm3_256": 0x12}
HASHES = {
    "sha1": hashes.SHA1(),  # noqa: S303  # a TPM may use it, and we must refuse it
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}
SCHEMES = {"rsassa": 0x0014, "rsapss": 0x0016, "ecdsa": 0x0018}
CURVES = {
    "P-256": (0x0003, ec.SECP256R1(), 32),
    "P-384": (0x0004, ec.SECP384R1(), 48),
    "P-521": (0x0005, ec.SECP521R1(), 66),
}
NULL = struct.pack(">H", 0x0010)
AES_128_CFB = struct.pack(">HHH", 0x0006, 128, 0x0043)
AES_256_CFB = struct.pack(">HHH", 0x0006, 256, 0x0043)

FIXED_TPM, FIXED_PARENT, SENSITIVE_DATA_ORIGIN = 0x2, 0x10, 0x20
USER_WITH_AUTH, ADMIN_WITH_POLICY, NO_DA = 0x40, 0x80, 0x400
RESTRICTED, DECRYPT, SIGN = 0x10000, 0x20000, 0x40000
RESIDENT = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | USER_WITH_AUTH | NO_DA
AK_ATTRIBUTES = RESIDENT | RESTRICTED | SIGN
TLS_ATTRIBUTES = RESIDENT | SIGN
STORAGE_ATTRIBUTES = RESIDENT | RESTRICTED | DECRYPT
POLICY_A = hashlib.sha256(
    # PolicySecret(TPM_RH_ENDORSEMENT): policyUpdate(TPM_CC_PolicySecret, handle, "")
    hashlib.sha256(bytes(32) + struct.pack(">II", 0x151, 0x4000000B)).digest()
).digest()

MAGIC = 0xFF544347
QUOTE, CERTIFY = 0x8018, 0x8017


def sized(data: bytes) -> bytes:
    """A TPM2B."""
    return struct.pack(">H", len(data)) + data


def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    """One RSA key per size for the whole run: making them is slow."""
    return rsa_private_key("tests", bits)


@dataclass(frozen=True)
class SoftwareKey:
    """A private key with the TPMT_PUBLIC that a TPM would show for it."""

    private: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
    scheme: str = "ecdsa"
    hash: str = "sha256"
    attributes: int = AK_ATTRIBUTES
    curve: str = "P-256"

    @classmethod
    def ecdsa(cls, curve: str = "P-256", hash_name: str = "sha256", **fields) -> "SoftwareKey":
        """A new elliptic-curve AK."""
        private = ec.generate_private_key(CURVES[curve][1])
        return cls(private=private, curve=curve, hash=hash_name, **fields)

    @classmethod
    def rsa(cls, scheme: str = "rsassa", hash_name: str = "sha256", bits: int = 2048, **fields):
        """An RSA AK; keys of one size are shared."""
        return cls(private=rsa_key(bits), scheme=scheme, hash=hash_name, **fields)

    @property
    def public(self) -> bytes:
        """TPMT_PUBLIC of an AK: nameAlg SHA-256, no symmetric, its scheme and hash."""
        scheme = struct.pack(">HH", SCHEMES[self.scheme], HASH_IDS[self.hash])
        return public_area(self.private.public_key(), self.attributes, scheme=scheme)

    @property
    def pem(self) -> bytes:
        """The bare public key."""
        return self.private.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )

    def sign(self, message: bytes, *, scheme: str = "", hash_name: str = "") -> bytes:
        """TPMT_SIGNATURE over ``message``."""
        scheme, hash_name = scheme or self.scheme, hash_name or self.hash
        header = struct.pack(">HH", SCHEMES[scheme], HASH_IDS[hash_name])
        algorithm = HASHES[hash_name]
        if isinstance(self.private, rsa.RSAPrivateKey):
            if scheme == "rsapss":
                return header + sized(sign_pss(self.private, message, hash_name))
            return header + sized(self.private.sign(message, padding.PKCS1v15(), algorithm))
        ecdsa = ec.ECDSA(algorithm, deterministic_signing=True)
        r, s = decode_dss_signature(self.private.sign(message, ecdsa))
        return header + self.encode_rs(r, s)

    def encode_rs(self, r: int, s: int) -> bytes:
        """R and s at the size of the curve, without the header."""
        size = CURVES[self.curve][2]
        return sized(r.to_bytes(size, "big")) + sized(s.to_bytes(size, "big"))


def public_area(
    key,
    attributes: int,
    *,
    scheme: bytes = NULL,
    symmetric: bytes = NULL,
    policy: bytes = b"",
    name_alg: int = HASH_IDS["sha256"],
) -> bytes:
    """TPMT_PUBLIC of an RSA or EC public key."""
    if isinstance(key, rsa.RSAPublicKey):
        kind = 0x0001
        exponent = key.public_numbers().e
        tail = struct.pack(">HI", key.key_size, 0 if exponent == 65537 else exponent)
        tail += sized(key.public_numbers().n.to_bytes((key.key_size + 7) // 8, "big"))
    else:
        kind = 0x0023
        number, _, size = next(c for c in CURVES.values() if c[1].name == key.curve.name)
        point = key.public_numbers()
        tail = struct.pack(">H", number) + NULL
        tail += sized(point.x.to_bytes(size, "big")) + sized(point.y.to_bytes(size, "big"))
    return (
        struct.pack(">HHI", kind, name_alg, attributes) + sized(policy) + symmetric + scheme + tail
    )


def name_of(public: bytes) -> bytes:
    """The name of a TPMT_PUBLIC whose nameAlg is SHA-256."""
    return struct.pack(">H", HASH_IDS["sha256"]) + hashlib.sha256(public).digest()


def qualified(parent: bytes, name: bytes) -> bytes:
    """The qualified name of an object with nameAlg SHA-256; ``parent`` is a handle or a name."""
    return name[:2] + hashlib.sha256(parent + name).digest()


def selection(banks: Mapping[str, tuple[int, ...]], *, size: int = 3) -> bytes:
    """TPML_PCR_SELECTION."""
    entries = [selection_entry(HASH_IDS[bank], pcrs, size) for bank, pcrs in banks.items()]
    return struct.pack(">I", len(entries)) + b"".join(entries)


def selection_entry(bank: int, pcrs: tuple[int, ...], size: int = 3) -> bytes:
    """TPMS_PCR_SELECTION."""
    bitmap = sum(1 << pcr for pcr in pcrs)
    return struct.pack(">HB", bank, size) + bitmap.to_bytes(size, "little")


def attest(
    body: bytes,
    *,
    magic: int = MAGIC,
    kind: int = QUOTE,
    signer: bytes = b"",
    extra_data: bytes = b"",
    clock: tuple[int, int, int, int] = (1_000, 5, 2, 1),
    firmware: int = 0x2024_0000_0001,
) -> bytes:
    """TPMS_ATTEST around ``body``; ``clock`` is (clock, resetCount, restartCount, safe)."""
    head = struct.pack(">IH", magic, kind) + sized(signer) + sized(extra_data)
    return head + struct.pack(">QIIB", *clock) + struct.pack(">Q", firmware) + body


@dataclass(frozen=True)
class SignedQuote:
    """What a host sends, and what it is about."""

    attest: bytes
    signature: bytes
    pcr_values: bytes
    pcrs: Mapping[str, Mapping[int, bytes]]


def make_quote(
    key: SoftwareKey,
    *,
    pcrs: Mapping[str, Mapping[int, bytes]],
    extra_data: bytes,
    selected: bytes | None = None,
    digest: bytes | None = None,
    **fields,
) -> SignedQuote:
    """A quote over ``pcrs``; ``selected``, ``digest`` and fields of ``attest`` may lie."""
    values = b"".join(pcrs[bank][index] for bank in pcrs for index in sorted(pcrs[bank]))
    if selected is None:
        selected = selection({bank: tuple(sorted(pcrs[bank])) for bank in pcrs})
    if digest is None:
        digest = hashlib.new(key.hash, values).digest()
    message = attest(selected + sized(digest), extra_data=extra_data, **fields)
    return SignedQuote(attest=message, signature=key.sign(message), pcr_values=values, pcrs=pcrs)


def make_certification(
    key: SoftwareKey, *, name: bytes, qualified_name: bytes, **fields
) -> tuple[bytes, bytes]:
    """TPM2_Certify by ``key``: TPMS_ATTEST and TPMT_SIGNATURE."""
    message = attest(sized(name) + sized(qualified_name), **{"kind": CERTIFY, **fields})
    return message, key.sign(message)
