"""Ways into decoders that take more than bytes: an element, a text, an entry, a token, pieces."""

import hashlib
import json
from collections.abc import Callable

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc.jwk import ECKey, KeySet

from support import ek_certificates
from support.decoder_seeds import REPORT_KEY
from trustauthority.codec import der, ima, pe, tlog
from trustauthority.codec.bundle import Bundle, decode_bundle
from trustauthority.codec.efi_text import format_guid
from trustauthority.codec.tpm import (
    decode_public,
    encode_public,
    object_name,
    public_key,
)
from trustauthority.codec.x509 import (
    decode_certificate,
)
from trustauthority.codec.x509_keys import certificate_key, uses_sha1
from trustauthority.errors import (
    MalformedEvidence,
)
from trustauthority.model.ima import ImaEntry
from trustauthority.model.report import REPORT_TYPE
from trustauthority.report.token import check_report, sign_token

REPORT_PUBLIC = KeySet(
    [
        ECKey.import_key(
            ek_certificates.ec_private_key(1)
            .public_key()
            .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        )
    ]
)


def element(decode: Callable[[der.DerElement], object]) -> Callable[[bytes], object]:
    """A decoder of one DER element, over bytes."""

    def run(data: bytes) -> object:
        reader = der.DerReader(data, part="element")
        element = reader.read("element")
        return decode(element)

    return run


def text(decode: Callable[[str], object]) -> Callable[[bytes], object]:
    """A decoder of text, over bytes: surrogates and all."""
    return lambda data: decode(data.decode("utf-8", "surrogateescape"))


def stream(data: bytes) -> object:
    """The IMA log in pieces whose sizes the first bytes say."""
    stream = ima.ImaStream()
    sizes, at = data[:4] or b"\x01", 4
    entries = []
    for turn in range(len(data) + 4):
        size = 1 + sizes[turn % len(sizes)]
        entries += stream.feed(data[at : at + size])
        at += size
        if at >= len(data):
            break
    stream.finish()
    return entries


def windows(data: bytes) -> object:
    """The IMA log in the windows of the pipeline."""
    return list(ima.ima_windows(data, ima.ImaStream()))


def entry(read: Callable[[ImaEntry], object]) -> Callable[[bytes], object]:
    """A reader of one entry's template data: template name, NUL, data."""

    def run(data: bytes) -> object:
        name, _, body = data.partition(b"\0")
        template = name.decode("latin-1")
        return read(ImaEntry(0, 0, 10, bytes(20), template, body))

    return run


def whole_public(data: bytes) -> object:
    public = decode_public(data)
    return public_key(public), object_name(public), encode_public(public)


def bundle(data: bytes) -> Bundle:
    bundle = decode_bundle(data)
    for key in list(bundle.manifest)[:8]:
        for read in (bundle.text, bundle.hex, bundle.number, bundle.part):
            try:
                read(key)
            except MalformedEvidence:
                continue
    return bundle


def pe_image(data: bytes) -> object:
    image = pe.decode_pe(data)
    return image.image_hash(hashlib.sha256()), image.section(".linux"), image.section(".cmdline")


def consistency(data: bytes) -> None:
    """Sizes, roots and a proof out of one string."""
    sizes, rest = data[:2].ljust(2, b"\0"), data[2:]
    nodes = [rest[at : at + 32] for at in range(0, len(rest), 32)]
    root, old, *proof = nodes if len(nodes) > 1 else [b"", b""]
    tlog.check_consistency(old_size=sizes[0], old_root=old, size=sizes[1], root=root, proof=proof)


def inclusion(data: bytes) -> None:
    sizes, rest = data[:2].ljust(2, b"\0"), data[2:]
    nodes = [rest[at : at + 32] for at in range(0, len(rest), 32)]
    root, leaf, *proof = nodes if len(nodes) > 1 else [b"", b""]
    tlog.check_inclusion(leaf=leaf, index=sizes[0], size=sizes[1], proof=proof, root=root)


def certificate_and_key(data: bytes) -> object:
    certificate = decode_certificate(data)
    return certificate_key(certificate.public_key_info), uses_sha1(certificate.signature_algorithm)


def guid_text(data: bytes) -> str:
    """Sixteen bytes, as the callers of ``format_guid`` cut them."""
    return format_guid(data[:16].ljust(16, b"\0"))


def report(data: bytes) -> object:
    return check_report(
        data.decode("utf-8", "surrogateescape"),
        keys=REPORT_PUBLIC,
        issuer="ta",
        audience="kms",
        now_ms=1_800_000_000_000,
    )


def signed_claims(data: bytes) -> object:
    """The claims of a token that we ourselves signed: JSON of any shape behind a good signature."""
    try:
        claims = json.loads(data)
    except (ValueError, RecursionError):
        claims = {}
    if not isinstance(claims, dict):
        claims = {"ta": claims}
    whole = {"iss": "ta", "aud": "kms", "sub": "h", "iat": 1, "exp": 9e9, "jti": "v"} | claims
    try:
        token = sign_token(whole, token_type=REPORT_TYPE, key=REPORT_KEY)
    except (ValueError, TypeError, RecursionError):
        return None
    return report(token.encode())
