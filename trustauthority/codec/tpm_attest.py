"""TPMS_ATTEST from bytes: quotes, certifications, and a name for everything else.

Stage: codec. Trusts nothing on entry; any bytes give an ``Attest`` or ``MalformedEvidence``.
Guarantees that magic and type were read first and that the whole buffer was consumed. Wrong magic
or another type is an ``OtherAttest``, so no caller can mistake it for a quote (pitfalls 1, 2).
Does not check signatures, nonces or which PCRs were selected: ``verification.quote`` does.
Source: TCG TPM 2.0 Library, Part 2, section 10.12.
"""

import struct
from functools import lru_cache

from trustauthority.codec.tpm_reader import TpmReader
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.tpm import (
    ATTEST_MAGIC,
    Attest,
    CertifyAttest,
    ClockInfo,
    OtherAttest,
    PcrSelection,
    QuoteAttest,
)

TYPE_QUOTE = 0x8018
"""TPM_ST_ATTEST_QUOTE."""
TYPE_CERTIFY = 0x8017
"""TPM_ST_ATTEST_CERTIFY."""

_PART = "TPMS_ATTEST"
_MAX_NAME = 66
"""TPM2B_NAME: hash id and the longest digest."""
_MAX_DATA = 66
"""TPM2B_DATA: as long as a TPMT_HA of the longest digest."""
_MAX_DIGEST = 64
_MAX_SELECTIONS = 16
"""HASH_COUNT of any known TPM is below this."""
_HEADER = struct.Struct(">IH")
_USUAL = struct.Struct(">IHH34sH32sQIIBQIHB3sH32s")
_USUAL_SHAPE = (ATTEST_MAGIC, TYPE_QUOTE, 34, 32, 1, 3, 32)
"""magic, type, lengths of qualifiedSigner and extraData, count, sizeofSelect, length of pcrDigest."""
_CLOCK = struct.Struct(">QIIBQ")
"""TPMS_CLOCK_INFO followed by firmwareVersion."""


def decode_attest(data: bytes) -> Attest:
    """Decode a TPMS_ATTEST that fills ``data``."""
    if len(data) == _USUAL.size and (quote := _read_usual_quote(data)):
        return quote
    reader = TpmReader(data, _PART)
    magic, kind = _HEADER.unpack(reader.take(_HEADER.size, "magic and type"))
    if magic == ATTEST_MAGIC and kind == TYPE_QUOTE:
        return _read_quote(reader, data)
    if magic == ATTEST_MAGIC and kind == TYPE_CERTIFY:
        return _read_certify(reader, data)
    return OtherAttest(magic=magic, type=kind, raw=data)


def _read_usual_quote(data: bytes) -> QuoteAttest | None:
    """A quote of the usual shape in one step, half the cost; None leaves it to the general way.

    The usual shape: an AK and a nonce of SHA-256 size, one bank with three bytes of bitmap, digests
    of SHA-256 size. A test shows that both ways always agree.
    """
    fields = _USUAL.unpack(data)
    magic, kind, signer_size, signer, data_size, extra_data, clock, reset_count = fields[:8]
    restart_count, safe, firmware_version, count, bank_id, size, bitmap, digest_size = fields[8:16]
    bank = HashAlgorithm.from_tpm_id(bank_id)
    shape = (magic, kind, signer_size, data_size, count, size, digest_size)
    if shape != _USUAL_SHAPE or safe > 1 or bank is None:
        return None
    return QuoteAttest(
        qualified_signer=signer,
        extra_data=extra_data,
        clock_info=ClockInfo(
            clock=clock, reset_count=reset_count, restart_count=restart_count, safe=safe == 1
        ),
        firmware_version=firmware_version,
        selection=(_selection(bank, bitmap),),
        pcr_digest=fields[16],
        raw=data,
    )


def _read_quote(reader: TpmReader, data: bytes) -> QuoteAttest:
    signer = reader.sized("qualifiedSigner", _MAX_NAME)
    extra_data = reader.sized("extraData", _MAX_DATA)
    clock_info, firmware_version = _read_clock(reader)
    selection = _read_selections(reader)
    pcr_digest = reader.sized("pcrDigest", _MAX_DIGEST)
    reader.finish()
    return QuoteAttest(
        qualified_signer=signer,
        extra_data=extra_data,
        clock_info=clock_info,
        firmware_version=firmware_version,
        selection=selection,
        pcr_digest=pcr_digest,
        raw=data,
    )


def _read_certify(reader: TpmReader, data: bytes) -> CertifyAttest:
    signer = reader.sized("qualifiedSigner", _MAX_NAME)
    extra_data = reader.sized("extraData", _MAX_DATA)
    clock_info, firmware_version = _read_clock(reader)
    name = reader.sized("name", _MAX_NAME)
    qualified_name = reader.sized("qualifiedName", _MAX_NAME)
    reader.finish()
    return CertifyAttest(
        qualified_signer=signer,
        extra_data=extra_data,
        clock_info=clock_info,
        firmware_version=firmware_version,
        name=name,
        qualified_name=qualified_name,
        raw=data,
    )


def _read_clock(reader: TpmReader) -> tuple[ClockInfo, int]:
    start = reader.offset
    fields = reader.take(_CLOCK.size, "clockInfo and firmwareVersion")
    clock, reset_count, restart_count, safe, firmware_version = _CLOCK.unpack(fields)
    if safe > 1:
        reader.fail(f"safe is {safe}, neither YES nor NO", at=start + 16)
    clock_info = ClockInfo(
        clock=clock, reset_count=reset_count, restart_count=restart_count, safe=safe == 1
    )
    return clock_info, firmware_version


def _read_selections(reader: TpmReader) -> tuple[PcrSelection, ...]:
    start = reader.offset
    count = reader.integer(4, "count of PCR selections")
    if count > _MAX_SELECTIONS:
        reader.fail(f"{count} PCR selections, at most {_MAX_SELECTIONS} are allowed", at=start)
    return tuple(_read_selection(reader) for _ in range(count))


def _read_selection(reader: TpmReader) -> PcrSelection:
    bank = reader.hash_algorithm("PCR bank")
    size = reader.take(1, "sizeofSelect")[0]
    if not 1 <= size <= 4:
        reader.fail(f"sizeofSelect is {size}, not 1 to 4", at=reader.offset - 1)
    return _selection(bank, reader.take(size, "pcrSelect"))


@lru_cache(maxsize=256)
def _selection(bank: HashAlgorithm, bitmap: bytes) -> PcrSelection:
    """PCRs of a bitmap: bit n of byte m is PCR 8m + n. Remembered: a fleet asks for few."""
    indices = tuple(
        8 * position + bit
        for position, byte in enumerate(bitmap)
        for bit in range(8)
        if byte >> bit & 1
    )
    return PcrSelection(bank=bank, indices=indices)
