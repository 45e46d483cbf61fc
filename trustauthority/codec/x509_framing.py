"""Where a certificate starts and ends in a file, an NV index or a bundle.

Stage: codec. Trusts nothing on entry. On exit the bytes are one DER element that something constant
may have padded; anything else behind it is refused (pitfall 24). Does not look inside. Sources: RFC
7468 (PEM); RFC 5652 section 5.1 (PKCS #7); TCG PC Client Implementation Specification 1.21 section 7.3.2 (``TCG_PCCLIENT_STORED_CERT``,
the 7-byte header some vendors still write in front of the certificate in NV).
"""

import binascii
import re
from collections.abc import Iterator
from typing import Final

from trustauthority.codec.der import (
    INTEGER,
    OBJECT_IDENTIFIER,
    SEQUENCE,
    SET,
    DerElement,
    DerReader,
    context,
    object_identifier,
)
from trustauthority.errors import MalformedEvidence

MAX_CERTIFICATE: Final = 64 * 1024
"""Bytes of one certificate; the largest genuine one known has 2.5 KiB (N20)."""

_STORED_CERTIFICATE: Final = b"\x10\x01\x00"  # TCG_TAG_PCCLIENT_STORED_CERT, full certificate
_FULL_CERTIFICATE: Final = b"\x10\x02"  # TCG_TAG_PCCLIENT_FULL_CERT
_STORED_HEADER: Final = 7
_PEM: Final = re.compile(
    rb"-----BEGIN (?P<label>[A-Z0-9 ]+)-----[ \t]*\r?\n(?P<body>[A-Za-z0-9+/=\s]*?)"
    rb"-----END (?P=label)-----"
)
_SIGNED_DATA: Final = "1.2.840.113549.1.7.2"
_OLD_LABELS: Final = {b"X509 CERTIFICATE": b"CERTIFICATE"}  # SSLeay's, and of EKs in the wild
_PEM_MARK: Final = b"-----BEGIN "
_PADDING: Final = (b"\x00", b"\xff")


def unframe(data: bytes, *, part: str, label: bytes) -> bytes:
    """The DER in ``data``: DER, one PEM block with this ``label``, or DER with NV header and padding.

    Raises:
        MalformedEvidence: none of these, too long, or followed by anything but constant padding.
    """
    if len(data) > 2 * MAX_CERTIFICATE:
        raise MalformedEvidence("too long", part=part, offset=2 * MAX_CERTIFICATE)
    if data[:1] != b"\x30" and _PEM_MARK in data:
        blocks = [der for _, found, der in pem_blocks(data, part=part) if found == label]
        if len(blocks) != 1:
            raise MalformedEvidence(
                f"{len(blocks)} PEM blocks where one is due", part=part, offset=0
            )
        return _cut(blocks[0], 0, part)
    if data.startswith(_STORED_CERTIFICATE):
        return _stored(data, part)
    return _cut(data, 0, part)


def pem_blocks(data: bytes, *, part: str) -> Iterator[tuple[int, bytes, bytes]]:
    """(offset, label, bytes) of each PEM block; text between blocks is allowed (RFC 7468).

    Raises:
        MalformedEvidence: a block without an end, or bad base64.
    """
    position = 0
    while (start := data.find(_PEM_MARK, position)) >= 0:
        match = _PEM.match(data, start)
        if match is None:
            raise MalformedEvidence("a PEM block is broken", part=part, offset=start)
        try:
            der = binascii.a2b_base64(b"".join(match["body"].split()), strict_mode=True)
        except binascii.Error as error:
            raise MalformedEvidence("bad base64", part=part, offset=start) from error
        yield start, _OLD_LABELS.get(match["label"], match["label"]), der
        position = match.end()


def _stored(data: bytes, part: str) -> bytes:
    """Cut the certificate out of a TCG_PCCLIENT_STORED_CERT."""
    if len(data) < _STORED_HEADER:
        raise MalformedEvidence("the vendor header is cut", part=part, offset=len(data))
    if data[5:_STORED_HEADER] != _FULL_CERTIFICATE:
        raise MalformedEvidence("vendor header without a full certificate", part=part, offset=5)
    der = _cut(data, _STORED_HEADER, part)
    announced = int.from_bytes(data[3:5], "big") - len(_FULL_CERTIFICATE)
    if announced < len(der) or announced > len(data) - _STORED_HEADER:
        raise MalformedEvidence(
            f"vendor header announces {announced} bytes, the certificate has {len(der)}",
            part=part,
            offset=3,
        )
    return der


def der_sequence(data: bytes, *, part: str) -> Iterator[bytes]:
    """DER elements that stand one after the other, at least one; behind the last only padding.

    So a TPM keeps the CAs of its EK in NV, from index 0x01C00100 on (pitfall 25).

    Raises:
        MalformedEvidence: as ``unframe``.
    """
    position = 0
    while position == 0 or data[position : position + 1] == b"\x30":
        element = _element(data, position, part)
        yield element.raw
        position = element.end
    _check_padding(data, position, part)


def certificates_inside(der: bytes, *, part: str) -> Iterator[bytes]:
    """The element itself, or each certificate of a PKCS #7 file: Microsoft hands out CAs of vTPMs in such.

    Whatever it is signed with is not looked at: like any other bundle it is no reason to trust.

    Raises:
        MalformedEvidence: another PKCS #7 type, or none with certificates.
    """
    outer = DerReader(der, part=part).read(part, SEQUENCE).reader()
    if not outer.next_is(OBJECT_IDENTIFIER):
        yield der
        return
    kind = outer.read("contentType", OBJECT_IDENTIFIER)
    if object_identifier(kind) != _SIGNED_DATA:
        raise kind.malformed("PKCS #7 of another type than SignedData")
    content = outer.read("content", context(0)).reader()
    outer.finish()
    signed = content.read("SignedData", SEQUENCE).reader()
    content.finish()
    for field, tag in (("version", INTEGER), ("digestAlgorithms", SET), ("content", SEQUENCE)):
        signed.read(field, tag)
    certificates = signed.read("certificates", context(0)).reader()
    while not certificates.at_end:
        yield certificates.read("certificate", SEQUENCE).raw
    while not signed.at_end:
        signed.read("signerInfos")


def _cut(data: bytes, start: int, part: str) -> bytes:
    """The DER element at ``start``; behind it only padding of one constant octet, 00 or FF."""
    element = _element(data, start, part)
    _check_padding(data, element.end, part)
    return element.raw


def _element(data: bytes, start: int, part: str) -> DerElement:
    element = DerReader(data, part=part, start=start).read(part, SEQUENCE)
    if element.end - element.start > MAX_CERTIFICATE:
        raise MalformedEvidence(
            f"more than {MAX_CERTIFICATE} bytes", part=part, offset=MAX_CERTIFICATE
        )
    return element


def _check_padding(data: bytes, end: int, part: str) -> None:
    rest = data[end:]
    if rest and rest.strip(rest[:1]):
        different = len(data) - len(rest.lstrip(rest[:1]))
        raise MalformedEvidence("neither certificate nor padding", part=part, offset=different)
    if rest and rest[:1] not in _PADDING:
        raise MalformedEvidence("trailing bytes", part=part, offset=end)
