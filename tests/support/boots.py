"""Put a really measured boot into a freshly started TPM: the software host's way to boot.

A capture (tests/vectors/boots) holds the event log and the IMA log of one boot. Extending both
into a TPM in their order leaves it with exactly the PCRs of the captured host, in well under a
second, and the two log files are what its agent reads. What is replayed was measured by real
firmware, shim, GRUB and kernel; only the time at which the TPM heard of it differs.

    boot = replay_boot(tpm.tcti, GOOD, into=tmp_path / "host-a")
    assert boot.differing_pcrs(tpm.tcti) == {}
    agent reads boot.event_log and boot.ima_log
"""

import hashlib
import json
import re
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tpm2_pytss import ESAPI, ESYS_TR
from tpm2_pytss.constants import TPM2_ALG
from tpm2_pytss.types import TPML_DIGEST_VALUES, TPML_PCR_SELECTION, TPMT_HA, TPMU_HA

from support.bootlogs import (
    IMA_PCR,
    IMA_VIOLATION,
    ImaMeasurement,
    initial_pcr,
    read_event_log,
    read_ima_log,
    replay,
    startup_locality,
)

BOOTS = Path(__file__).parent.parent / "vectors" / "boots"
"""Where the project's own captures are; see its README.md."""

_ALGORITHMS = {
    "sha1": TPM2_ALG.SHA1,
    "sha256": TPM2_ALG.SHA256,
    "sha384": TPM2_ALG.SHA384,
    "sha512": TPM2_ALG.SHA512,
}
_DEFAULT_BANKS = ("sha1", "sha256")  # of a boot that left an empty event log
_PCR_COUNT = 24
_PCRS_PER_READ = 8  # TPM2_PCR_Read answers at most eight digests

Pcrs = Mapping[str, Mapping[int, bytes]]


class BootNotReplayable(Exception):
    """The TPM was not freshly started, or started in another locality than the captured one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedBoot:
    """A boot that a TPM now holds, and the two log files its host would show."""

    event_log: Path
    ima_log: Path
    banks: tuple[str, ...]

    def expected_pcrs(self) -> dict[str, dict[int, bytes]]:
        """Bank -> index -> value as the two log files, as they are now, explain them."""
        events = read_event_log(self.event_log.read_bytes())
        measurements = read_ima_log(self.ima_log.read_bytes())
        return {bank: replay(events, measurements, bank) for bank in self.banks}

    def differing_pcrs(self, tcti: str) -> dict[str, list[int]]:
        """Bank -> indices whose value in the TPM is not what the logs explain; empty is good."""
        return differing_pcrs(self.expected_pcrs(), read_pcrs(tcti, self.banks))

    def append_ima(
        self, tcti: str, path: str, content: bytes = b"", *, violation: bool = False
    ) -> ImaMeasurement:
        """Measure a file as the running kernel would: one IMA log entry, one extend of PCR 10.

        `path` is the file as the guest names it, `content` what was read. A violation (file
        written while measured) is logged with a zero hash and extended as all ones.
        """
        entry = ima_entry(path, content, template=self._ima_template(), violation=violation)
        with self.ima_log.open("ab") as log:
            log.write(entry.encode())
        extend(tcti, IMA_PCR, {bank: entry.digest(bank) for bank in self.banks})
        return entry

    def _ima_template(self) -> str:
        entries = read_ima_log(self.ima_log.read_bytes())
        return entries[-1].template if entries else "ima-ng"


def replay_boot(tcti: str, capture: Path, *, into: Path | None = None) -> ReplayedBoot:
    """Extend the capture into a TPM that was just started; about 0.1 s for 430 measurements.

    The log files are copied to `into` when given, so that `append_ima` may write there; without
    it the files of the capture itself are named and must only be read.

    Raises:
        BootNotReplayable: a PCR is not at its reset value, or PCR 0 began in another locality.
    """
    source = capture
    if into is not None:
        into.mkdir(parents=True, exist_ok=True)
        for name in ("eventlog.bin", "ima.bin"):
            shutil.copyfile(capture / name, into / name)
        source = into
    events = read_event_log((source / "eventlog.bin").read_bytes())
    measurements = read_ima_log((source / "ima.bin").read_bytes())
    banks = tuple(events[0].digests) if events else _DEFAULT_BANKS
    with ESAPI(tcti) as tpm:
        _require_fresh(tpm, banks, startup_locality(events))
        for event in events:
            if event.is_measured:
                _extend(tpm, event.pcr, event.digests)
        for entry in measurements:
            _extend(tpm, IMA_PCR, {bank: entry.digest(bank) for bank in banks})
    return ReplayedBoot(event_log=source / "eventlog.bin", ima_log=source / "ima.bin", banks=banks)


def captured_pcrs(capture: Path) -> dict[str, dict[int, bytes]]:
    """Bank -> index -> value as the captured guest read them (pcrs.json, or tpm2_pcrread text)."""
    if (capture / "pcrs.json").exists():
        banks = json.loads((capture / "pcrs.json").read_text())
        return {
            bank: {int(index): bytes.fromhex(value) for index, value in values.items()}
            for bank, values in banks.items()
        }
    return dict(_pcrs_of_text((capture / "pcrs.txt").read_text()))


def read_pcrs(tcti: str, banks: Iterable[str]) -> dict[str, dict[int, bytes]]:
    """Bank -> index -> value of all 24 PCRs, from the TPM."""
    with ESAPI(tcti) as tpm:
        return {bank: _read_bank(tpm, bank) for bank in banks}


def differing_pcrs(one: Pcrs, other: Pcrs) -> dict[str, list[int]]:
    """Bank -> indices at which two hosts differ; only banks that differ are named."""
    found = {
        bank: [index for index in range(_PCR_COUNT) if one[bank][index] != other[bank][index]]
        for bank in one
    }
    return {bank: indices for bank, indices in found.items() if indices}


def extend(tcti: str, pcr: int, digests: Mapping[str, bytes]) -> None:
    """TPM2_PCR_Extend with one digest per bank: what anything running on the host may do."""
    with ESAPI(tcti) as tpm:
        _extend(tpm, pcr, digests)


def ima_entry(
    path: str, content: bytes, *, template: str = "ima-ng", violation: bool = False
) -> ImaMeasurement:
    """The IMA entry of a file with this content (templates ima-ng and ima-sig, no signature)."""
    digest = bytes(32) if violation else hashlib.sha256(content).digest()
    fields = [b"sha256:\0" + digest, path.encode() + b"\0"]
    if template == "ima-sig":
        fields.append(b"")
    data = b"".join(struct.pack("<I", len(field)) + field for field in fields)
    return ImaMeasurement(
        template_hash=IMA_VIOLATION if violation else hashlib.sha1(data).digest(),  # noqa: S324 — the log's format
        template=template,
        data=data,
    )


def _require_fresh(tpm: ESAPI, banks: tuple[str, ...], locality: int) -> None:
    for bank in banks:
        for index, value in _read_bank(tpm, bank).items():
            if value != initial_pcr(index, bank, locality):
                raise BootNotReplayable(
                    f"{bank} PCR {index} holds {value.hex()}: reset the TPM first"
                )


def _extend(tpm: ESAPI, pcr: int, digests: Mapping[str, bytes]) -> None:
    values = [
        TPMT_HA(hashAlg=_ALGORITHMS[bank], digest=TPMU_HA(**{bank: digest}))
        for bank, digest in digests.items()
    ]
    tpm.pcr_extend(ESYS_TR.PCR0 + pcr, TPML_DIGEST_VALUES(values))


def _read_bank(tpm: ESAPI, bank: str) -> dict[int, bytes]:
    values: dict[int, bytes] = {}
    for first in range(0, _PCR_COUNT, _PCRS_PER_READ):
        indices = range(first, first + _PCRS_PER_READ)
        selection = TPML_PCR_SELECTION.parse(f"{bank}:{','.join(map(str, indices))}")
        digests = tpm.pcr_read(selection)[2]
        values.update(zip(indices, (bytes(digest) for digest in digests), strict=True))
    return values


def _pcrs_of_text(text: str) -> Iterator[tuple[str, dict[int, bytes]]]:
    for section in re.split(r"(?m)^\s+(?=sha\d+:)", text)[1:]:
        bank = section[: section.index(":")]
        values = re.findall(r"(?m)^\s+(\d+)\s*: 0x([0-9A-F]+)", section)
        if values:
            yield bank, {int(index): bytes.fromhex(value) for index, value in values}
