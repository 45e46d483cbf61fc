"""The log that userspace keeps of its own measurements: TCG CEL in JSON, as systemd writes it.

Trusts nothing on entry. On exit each record names a PCR up to 23 and has digests of the right size, no
JSON object had a key twice, and nothing but records was in the file. Records of NV indices extend no
PCR and are left out. It is a second log: its events follow those of the firmware's (pitfalls 49).

Source: TCG Canonical Event Log 1.0, section 4 (JSON); systemd-measure(1), systemd-pcrphase.service(8);
RFC 7464 (record separators).
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from trustauthority.errors import MalformedEvidence
from trustauthority.model.bootlog import HIGHEST_PCR, UserspaceRecord
from trustauthority.model.digest import HashAlgorithm

MAX_CEL_BYTES = 4 << 20
MAX_RECORDS = 65_536
PART = "userspace log"
_HEX = re.compile(r"(?:[0-9a-fA-F]{2})*")
_RECORD_SEPARATOR = b"\x1e"
_BANKS = {str(algorithm): algorithm for algorithm in HashAlgorithm}


def decode_userspace_log(data: bytes) -> tuple[UserspaceRecord, ...]:
    """Decode a whole file: one JSON object per line, with or without a record separator before it.

    Raises:
        MalformedEvidence: with the offset of the line that is no record.
    """
    if len(data) > MAX_CEL_BYTES:
        raise _malformed(f"{len(data)} bytes, at most {MAX_CEL_BYTES} are read", MAX_CEL_BYTES)
    records: list[UserspaceRecord] = []
    offset = 0
    for line in data.split(b"\n"):
        text = line.removeprefix(_RECORD_SEPARATOR).strip()
        if text:
            record = _record(text, offset, len(records))
            if record is not None:
                records.append(record)
            if len(records) > MAX_RECORDS:
                raise _malformed(f"more than {MAX_RECORDS} records", offset)
        offset += len(line) + 1
    return tuple(records)


def _malformed(message: str, offset: int) -> MalformedEvidence:
    return MalformedEvidence(message, part=PART, offset=offset)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key twice")
    return found


def _record(text: bytes, offset: int, number: int) -> UserspaceRecord | None:
    try:
        record = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _malformed(f"no JSON record ({error})"[:200], offset) from None
    if not isinstance(record, dict):
        raise _malformed("a record is an object", offset)
    pcr = record.get("pcr")
    if pcr is None and ("nv_index" in record or "nvIndex" in record or "nvIndexName" in record):
        return None
    if not isinstance(pcr, int) or isinstance(pcr, bool) or not 0 <= pcr <= HIGHEST_PCR:
        raise _malformed("a record names a PCR from 0 to 23", offset)
    return UserspaceRecord(
        number=number,
        offset=offset,
        pcr=pcr,
        digests=_digests(record.get("digests"), offset),
        content=_content(record.get("content")),
    )


def _digests(value: object, offset: int) -> Mapping[str, bytes]:
    if not isinstance(value, list) or not value:
        raise _malformed("a record has digests", offset)
    found: dict[str, bytes] = {}
    for item in value:
        bank, digest = _digest(item)
        if bank is None or digest is None or bank in found:
            raise _malformed("a digest has a bank of its own and hex of its size", offset)
        found[bank] = digest
    return found


def _digest(item: object) -> tuple[str | None, bytes | None]:
    if not isinstance(item, dict):
        return None, None
    bank, text = item.get("hashAlg"), item.get("digest")
    if not isinstance(bank, str) or not isinstance(text, str) or not _HEX.fullmatch(text):
        return None, None
    known = _BANKS.get(bank)
    digest = bytes.fromhex(text)
    fits = known is None or known.size == len(digest)
    return (bank, digest) if fits and digest else (None, None)


def _content(value: object) -> bytes:
    """The text systemd measured; other contents have a form of their own and prove nothing here."""
    text = value.get("string") if isinstance(value, dict) else None
    return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else b""
