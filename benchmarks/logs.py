"""What boot logs and IMA logs cost, in RSA-2048 verifications: ``python benchmarks/logs.py``.

One run on one core, CPU time, medians; each round times the bare RSA verification beside each stage, so
that the ratios are paired. Aims: parse, replay and facts of a boot log of 120 events at most 20
verifications per bank; 300,000 IMA entries per second through parse, replay and the lookup of path and
digest.
"""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time_ns

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.logbuilder import ima_record, ng_data

from trustauthority.appraisal.bootfacts import boot_facts
from trustauthority.codec.eventlog import decode_boot_log
from trustauthority.codec.ima import decode_ima_binary, path_and_digest
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.ima import ImaEntry
from trustauthority.verification.replay import replay, verify_boot_log
from trustauthority.verification.runtime import entry_findings, extend_entries

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 60
BANK = HashAlgorithm.SHA256
IMA_ENTRIES = 20_000


def _microseconds(call: Callable[[], object], batch: int) -> float:
    start = process_time_ns()
    for _ in range(batch):
        call()
    return (process_time_ns() - start) / batch / 1_000


def _rsa() -> Callable[[], object]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pad, algorithm = padding.PKCS1v15(), hashes.SHA256()
    signature, public = key.sign(b"quote", pad, algorithm), key.public_key()
    return lambda: public.verify(signature, b"quote", pad, algorithm)


def _boot_stages(raw: bytes) -> dict[str, Callable[[], object]]:
    log = decode_boot_log(raw)
    values = replay(log, BANK).values
    verified = verify_boot_log(log, values, bank=BANK, pcrs=values)

    def whole() -> None:
        checked = verify_boot_log(decode_boot_log(raw), values, bank=BANK, pcrs=values)
        boot_facts(checked)

    return {
        "parse": lambda: decode_boot_log(raw),
        "replay, one bank": lambda: replay(log, BANK),
        "facts": lambda: boot_facts(verified),
        "parse + replay + facts": whole,
        "a known log: its hash": lambda: hashlib.sha256(raw).digest(),
    }


def _paired(bare: Callable[[], object], stage: Callable[[], object]) -> tuple[float, float]:
    """Median microseconds of a stage, and the median ratio to the verification beside it."""
    times, ratios = [], []
    for _ in range(ROUNDS):
        reference = _microseconds(bare, 20)
        spent = _microseconds(stage, 3)
        times.append(spent)
        ratios.append(spent / reference)
    return median(times), median(ratios)


def _lookup(entries: tuple[ImaEntry, ...], known: dict[str, bytes]) -> int:
    return sum(known.get(path) == digest for path, _, digest in map(path_and_digest, entries))


def _ima(bare: Callable[[], object]) -> None:
    items = [ng_data(f"/usr/lib/x86_64-linux-gnu/lib{n}.so".encode()) for n in range(IMA_ENTRIES)]
    raw = b"".join(ima_record(item) for item in items)
    entries = decode_ima_binary(raw)
    known = {path: digest for path, _, digest in map(path_and_digest, entries)}
    stages: dict[str, Callable[[], object]] = {
        "parse": lambda: decode_ima_binary(raw),
        "replay, one bank": lambda: extend_entries(entries, BANK),
        "path and digest, lookup": lambda: _lookup(entries, known),
        "check of template digests": lambda: entry_findings(entries),
        "parse + replay + lookup": lambda: (
            _lookup(decode_ima_binary(raw), known) and extend_entries(entries, BANK)
        ),
    }
    print(f"\nIMA log, {IMA_ENTRIES} entries ima-ng, {len(raw) // 1024} KiB")
    for name, stage in stages.items():
        rounds = [(_microseconds(stage, 1), _microseconds(bare, 20)) for _ in range(9)]
        spent = median(time for time, _ in rounds)
        ratio = median(time / reference for time, reference in rounds)
        rate = IMA_ENTRIES / spent * 1_000_000
        print(f"  {name:28} {rate:10,.0f} entries/s  {ratio / IMA_ENTRIES:6.3f} RSA/entry")


def main() -> None:
    """Print every stage for the project's own captures, then IMA."""
    bare = _rsa()
    print(f"RSA-2048 verification: {median(_microseconds(bare, 50) for _ in range(40)):.1f} µs")
    for folder in sorted((ROOT / "tests" / "vectors" / "boots").iterdir()):
        path = folder / "eventlog.bin"
        if not path.is_file():
            continue
        raw = path.read_bytes()
        events = len(decode_boot_log(raw).events)
        print(f"\nboot log {folder.name}, {events} events, {len(raw) // 1024} KiB")
        for name, stage in _boot_stages(raw).items():
            spent, ratio = _paired(bare, stage)
            print(f"  {name:28} {spent:8.1f} µs {ratio:7.2f} RSA")
    _ima(bare)


if __name__ == "__main__":
    main()
