"""Writes certificates with any field wrong, byte by byte, so that each defect is exactly one.

No X.509 library writes what some vendors write (an encoded FALSE, RSAES-OAEP keys, negative serials), so
this is a small DER encoder. Keys come from ``deterministic_keys``; ECDSA signatures are RFC 6979 ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from support.deterministic_keys import rsa_private_key, sign_pss

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

EK_PURPOSE = "2.23.133.8.1"
AIK_PURPOSE = "2.23.133.8.3"
SHA256_RSA = "1.2.840.113549.1.1.11"
SHA384_RSA = "1.2.840.113549.1.1.12"
SHA512_RSA = "1.2.840.113549.1.1.13"
SHA1_RSA = "1.2.840.113549.1.1.5"
PSS = "1.2.840.113549.1.1.10"
SHA256_ECDSA = "1.2.840.10045.4.3.2"
SHA384_ECDSA = "1.2.840.10045.4.3.3"
SHA512_ECDSA = "1.2.840.10045.4.3.4"
_HASHES: dict[str, hashes.HashAlgorithm] = {
    SHA1_RSA: hashes.SHA1(),  # noqa: S303
    SHA256_RSA: hashes.SHA256(),
    SHA384_RSA: hashes.SHA384(),
    SHA512_RSA: hashes.SHA512(),
    SHA256_ECDSA: hashes.SHA256(),
    SHA384_ECDSA: hashes.SHA384(),
    SHA512_ECDSA: hashes.SHA512(),
}
_CURVES = {256: ec.SECP256R1(), 384: ec.SECP384R1(), 521: ec.SECP521R1()}


def tlv(tag: int, *contents: bytes) -> bytes:
    """Tag, shortest length, content."""
    content = b"".join(contents)
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def oid(dotted: str) -> bytes:
    """OBJECT IDENTIFIER."""
    arcs = [int(one) for one in dotted.split(".")]
    out = b""
    for arc in (40 * arcs[0] + arcs[1], *arcs[2:]):
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(0x80 | arc & 0x7F)
        out += bytes(reversed(groups))
    return tlv(0x06, out)


def integer(value: int) -> bytes:
    """INTEGER."""
    magnitude = value if value >= 0 else ~value
    return tlv(0x02, value.to_bytes(magnitude.bit_length() // 8 + 1, "big", signed=True))


def sequence(*parts: bytes) -> bytes:
    """SEQUENCE."""
    return tlv(0x30, *parts)


def bits(content: bytes, unused: int = 0) -> bytes:
    """BIT STRING."""
    return tlv(0x03, bytes([unused]), content)


def name(*attributes: tuple[str, str], tag: int = 0x0C) -> bytes:
    """A Name with one attribute per RDN."""
    return sequence(
        *(tlv(0x31, sequence(oid(kind), tlv(tag, text.encode()))) for kind, text in attributes)
    )


def common_name(text: str, tag: int = 0x0C) -> bytes:
    """A Name that is only a CN."""
    return name(("2.5.4.3", text), tag=tag)


def algorithm(identifier: str, parameters: bytes | None = b"\x05\x00") -> bytes:
    """AlgorithmIdentifier."""
    return sequence(oid(identifier), parameters or b"")


def pss_parameters(hash_oid: str = "2.16.840.1.101.3.4.2.1", salt: int = 32) -> bytes:
    """RSASSA-PSS-params."""
    inner = algorithm(hash_oid)
    return sequence(
        tlv(0xA0, inner),
        tlv(0xA1, sequence(oid("1.2.840.113549.1.1.8"), inner)),
        tlv(0xA2, integer(salt)),
    )


def extension(identifier: str, value: bytes, *, critical: bool | None = None) -> bytes:
    """Extension; ``critical=False`` encodes the default, as some vendors do."""
    flag = b"" if critical is None else tlv(0x01, b"\xff" if critical else b"\x00")
    return sequence(oid(identifier), flag, tlv(0x04, value))


def basic_constraints(*, authority: bool, path_length: int | None = None) -> bytes:
    """basicConstraints, critical."""
    parts = [tlv(0x01, b"\xff")] if authority else []
    if path_length is not None:
        parts.append(integer(path_length))
    return extension("2.5.29.19", sequence(*parts), critical=True)


def key_usage(*numbers: int) -> bytes:
    """keyUsage with these bits, critical: 0 digitalSignature, 2 keyEncipherment, 4 keyAgreement, 5, 6."""
    value = sum(0x80 >> number for number in numbers)
    unused = (value & -value).bit_length() - 1
    return extension("2.5.29.15", bits(bytes([value]), unused), critical=True)


def purposes(*identifiers: str, critical: bool | None = None) -> bytes:
    """extKeyUsage."""
    return extension("2.5.29.37", sequence(*map(oid, identifiers)), critical=critical)


def tpm_name(
    manufacturer: str | None = "id:49465800",
    model: str | None = "SLB 9670",
    version: str | None = "id:00070055",
    *,
    critical: bool | None = True,
) -> bytes:
    """subjectAltName with the TPM attributes."""
    texts = (("2.23.133.2.1", manufacturer), ("2.23.133.2.2", model), ("2.23.133.2.3", version))
    directory = name(*((kind, text) for kind, text in texts if text is not None))
    return extension("2.5.29.17", sequence(tlv(0xA4, directory)), critical=critical)


def key_identifiers(subject: bytes | None, authority: bytes | None) -> list[bytes]:
    """subjectKeyIdentifier and authorityKeyIdentifier."""
    out = []
    if subject is not None:
        out.append(extension("2.5.29.14", tlv(0x04, subject)))
    if authority is not None:
        out.append(extension("2.5.29.35", sequence(tlv(0x80, authority))))
    return out


@cache
def ec_private_key(seed: int, size: int = 256) -> ec.EllipticCurvePrivateKey:
    """The EC key of a number."""
    return ec.derive_private_key(seed + 10_000, _CURVES[size])


def public_key_info(key: PrivateKey) -> bytes:
    """SubjectPublicKeyInfo."""
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def oaep_key_info(key: rsa.RSAPrivateKey) -> bytes:
    """SubjectPublicKeyInfo of type RSAES-OAEP, as in older TPM certificates."""
    numbers = key.public_key().public_numbers()
    inner = sequence(integer(numbers.n), integer(numbers.e))
    return sequence(algorithm("1.2.840.113549.1.1.7", sequence()), bits(inner))


def sign(key: PrivateKey, message: bytes, identifier: str) -> bytes:
    """A signature that comes out the same on every run."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(message, ec.ECDSA(_HASHES[identifier], deterministic_signing=True))
    if identifier == PSS:
        return sign_pss(key, message, "sha256")
    return key.sign(message, padding.PKCS1v15(), _HASHES[identifier])


@dataclass(frozen=True, kw_only=True)
class Template:
    """Everything in a certificate; ``extensions`` None makes it one without that field."""

    signer: PrivateKey
    public_key_info: bytes
    issuer: bytes
    subject: bytes
    extensions: Sequence[bytes] | None
    serial: int = 4711
    version: int | None = 2
    not_before: bytes = field(default=tlv(0x17, b"200101000000Z"))
    not_after: bytes = field(default=tlv(0x18, b"99991231235959Z"))
    algorithm_id: str = SHA256_RSA
    algorithm_parameters: bytes | None = b"\x05\x00"
    inner_algorithm: bytes | None = None


def build(template: Template) -> bytes:
    """The DER of a certificate, signed."""
    outer = algorithm(template.algorithm_id, template.algorithm_parameters)
    version = b"" if template.version is None else tlv(0xA0, integer(template.version))
    extensions = b"" if template.extensions is None else tlv(0xA3, sequence(*template.extensions))
    signed = sequence(
        version,
        integer(template.serial),
        template.inner_algorithm or outer,
        template.issuer,
        sequence(template.not_before, template.not_after),
        template.subject,
        template.public_key_info,
        extensions,
    )
    signature = sign(template.signer, signed, template.algorithm_id)
    return sequence(signed, outer, bits(signature))


def build_crl(
    signer: PrivateKey,
    issuer: bytes,
    serials: Sequence[int] = (),
    *,
    this_update: bytes = b"250101000000Z",
    next_update: bytes | None = b"490101000000Z",
    extensions: Sequence[bytes] = (),
    algorithm_id: str = SHA256_RSA,
) -> bytes:
    """The DER of a CRL, signed."""
    entries = [sequence(integer(one), tlv(0x17, b"240601000000Z")) for one in serials]
    signed = sequence(
        integer(1),
        algorithm(algorithm_id),
        issuer,
        tlv(0x17, this_update),
        b"" if next_update is None else tlv(0x17, next_update),
        sequence(*entries) if entries else b"",
        tlv(0xA0, sequence(*extensions)) if extensions else b"",
    )
    return sequence(signed, algorithm(algorithm_id), bits(sign(signer, signed, algorithm_id)))


# --- the house vendor: root, one intermediate CA, EKs below it ------------------------------------

ROOT_NAME = common_name("Vector TPM Root CA")
CA_NAME = common_name("Vector TPM EK CA 001")
EMPTY_NAME = sequence()
ROOT_ID, CA_ID = b"\x01" * 20, b"\x02" * 20


def root_key() -> rsa.RSAPrivateKey:
    """Key of the root."""
    return rsa_private_key("ekcerts/root")


def ca_key() -> rsa.RSAPrivateKey:
    """Key of the intermediate CA."""
    return rsa_private_key("ekcerts/ca")


def ek_key() -> rsa.RSAPrivateKey:
    """Key of the RSA EK."""
    return rsa_private_key("ekcerts/ek")


def authority_extensions(path_length: int | None = None) -> list[bytes]:
    """What a CA certificate needs."""
    return [basic_constraints(authority=True, path_length=path_length), key_usage(5, 6)]


def root(**changes: object) -> bytes:
    """The root certificate."""
    fields: dict[str, object] = {
        "signer": root_key(),
        "public_key_info": public_key_info(root_key()),
        "issuer": ROOT_NAME,
        "subject": ROOT_NAME,
        "serial": 1,
        "extensions": [*authority_extensions(), *key_identifiers(ROOT_ID, None)],
    }
    return build(Template(**(fields | changes)))  # type: ignore[arg-type]


def intermediate(**changes: object) -> bytes:
    """The intermediate CA's certificate."""
    fields: dict[str, object] = {
        "signer": root_key(),
        "public_key_info": public_key_info(ca_key()),
        "issuer": ROOT_NAME,
        "subject": CA_NAME,
        "serial": 2,
        "extensions": [
            *authority_extensions(0),
            purposes(EK_PURPOSE),
            *key_identifiers(CA_ID, ROOT_ID),
        ],
    }
    return build(Template(**(fields | changes)))  # type: ignore[arg-type]


def ek_extensions(**changes: bytes | None) -> list[bytes]:
    """What an RSA EK certificate needs; a change of None leaves one out, a new name adds one."""
    parts: dict[str, bytes | None] = {
        "san": tpm_name(),
        "basic": basic_constraints(authority=False),
        "usage": key_usage(2),
        "purpose": purposes(EK_PURPOSE),
        "authority": key_identifiers(None, CA_ID)[0],
    }
    return [one for one in (parts | changes).values() if one is not None]


def endorsement(**changes: object) -> bytes:
    """An RSA EK certificate below the intermediate CA."""
    fields: dict[str, object] = {
        "signer": ca_key(),
        "public_key_info": public_key_info(ek_key()),
        "issuer": CA_NAME,
        "subject": EMPTY_NAME,
        "extensions": ek_extensions(),
    }
    return build(Template(**(fields | changes)))  # type: ignore[arg-type]


def ecc_endorsement(size: int = 256, **changes: object) -> bytes:
    """An ECC EK certificate below the intermediate CA."""
    fields: dict[str, object] = {
        "public_key_info": public_key_info(ec_private_key(1, size)),
        "extensions": ek_extensions(usage=key_usage(4)),
    }
    return endorsement(**(fields | changes))


def pkcs7(*certificates: bytes, kind: str = "1.2.840.113549.1.7.2", behind: bytes = b"") -> bytes:
    """SignedData without signers, as authorities hand out certificates in it."""
    signed = sequence(
        tlv(0x02, b"\x01"),
        tlv(0x31, b""),
        sequence(oid("1.2.840.113549.1.7.1")),
        tlv(0xA0, b"".join(certificates)),
        tlv(0x31, b""),
    )
    return sequence(oid(kind), tlv(0xA0, signed + behind))
