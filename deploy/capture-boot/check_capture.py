"""Accept a fresh capture: complete, small, consistent; write its PCRs as JSON.

usage: check_capture.py DIRECTORY     (with tests/ on PYTHONPATH; standard library only)

The event log and the IMA log must reproduce every PCR the guest read, in both banks, and the
quote's PCR digest must be that of the same values. A capture that does not is a mistake of the
capture, not a vector.
"""

import hashlib
import json
import re
import sys
from pathlib import Path

from support.bootlogs import read_event_log, read_ima_log, replay

NEEDED = (
    *(
        "eventlog.bin",
        "ima.bin",
        "cmdline",
        "uname",
        "nonce",
        "clock.yaml",
        "pcrs.yaml",
        "errors.txt",
    ),
    *("quote.msg", "quote.sig", "quote-both-banks.msg", "quote-both-banks.sig"),
    *("ak.pub", "ak.pem", "ak.name", "ek.pub", "ek-rsa.cert.der", "ek-p384.cert.der"),
)
LARGEST = 1 << 20  # bytes a capture may have in all


def read_pcrs(text: str) -> dict[str, dict[int, str]]:
    """The output of tpm2_pcrread as bank -> index -> lower-case hex."""
    banks: dict[str, dict[int, str]] = {}
    bank = ""
    for line in text.splitlines():
        if heading := re.fullmatch(r"\s+(sha\d+):\s*", line):
            bank = heading[1]
        elif value := re.fullmatch(r"\s+(\d+)\s*: 0x([0-9A-F]+)", line):
            banks.setdefault(bank, {})[int(value[1])] = value[2].lower()
    return banks


def problems(directory: Path) -> list[str]:
    """Everything that is wrong with the capture, in words; empty when it may be kept."""
    missing = [name for name in NEEDED if not (directory / name).exists()]
    if missing:
        return [f"missing: {', '.join(missing)}"]
    found = []
    pcrs = read_pcrs((directory / "pcrs.yaml").read_text())
    events = read_event_log((directory / "eventlog.bin").read_bytes())
    measurements = read_ima_log((directory / "ima.bin").read_bytes())
    for bank, values in pcrs.items():
        replayed = replay(events, measurements, bank)
        differing = [index for index in sorted(values) if replayed[index].hex() != values[index]]
        if differing:
            found.append(f"{bank}: the logs do not reproduce PCR {differing}")
    both = b"".join(
        bytes.fromhex(pcrs[bank][index]) for bank in ("sha1", "sha256") for index in range(24)
    )
    sha256_only = both[24 * 20 :]
    for name, covered in (("quote.msg", sha256_only), ("quote-both-banks.msg", both)):
        if not (directory / name).read_bytes().endswith(hashlib.sha256(covered).digest()):
            found.append(f"{name} does not cover the PCRs that were read")
    errors = (directory / "errors.txt").read_text().splitlines()
    found += [f"in the guest: {line}" for line in errors if not line.startswith("WARN: ")]
    if sum(path.stat().st_size for path in directory.iterdir()) > LARGEST:
        found.append("larger than 1 MiB")
    print(f"check: {len(events)} firmware events, {len(measurements)} IMA entries")
    (directory / "pcrs.json").write_text(json.dumps(pcrs, indent=1) + "\n")
    return found


def main() -> int:
    """Check one capture; exit status 1 when it must not be kept."""
    directory = Path(sys.argv[1])
    found = problems(directory)
    for problem in found:
        print(f"check: {problem}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
