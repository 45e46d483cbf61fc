"""One small, good piece of evidence and the verdict on it, so that every bit of it can be tried.

The boot log has two banks and an event or more in each firmware PCR; the runtime log names the boot and a
few files; a software AK signs. A verdict takes about two milliseconds, a refused quote a tenth of one.
"""

import hashlib
from dataclasses import dataclass, replace

from support.ek_certificates import ec_private_key
from support.logbuilder import LogBuilder, good_log, ima_record, ng_data, sized
from support.tpm_structures import SoftwareKey, make_quote
from trustauthority.appraisal.appraise import AppraisalContext, appraise, judge_runtime
from trustauthority.appraisal.baseline import capture_baselines
from trustauthority.codec.runtimerules import decode_runtime_rules, encode_runtime_rules
from trustauthority.model.baseline import Baseline
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.evidence import Evidence
from trustauthority.model.identifiers import ClusterId, HostId
from trustauthority.model.policy import (
    BootPolicy,
    EvidencePolicy,
    Policy,
    Requirement,
    RuntimePolicy,
)
from trustauthority.model.verdict import Check, CheckState, Verdict
from trustauthority.verification.pipeline import ExpectedEvidence, verify_evidence

BANKS = ("sha1", "sha256")
FILES = {b"/usr/bin/qemu": b"qemu", b"/usr/sbin/libvirtd": b"libvirtd", b"/usr/bin/ssh": b"ssh"}
NONCE = hashlib.sha256(b"the challenge").digest()
QUALIFIED_NAME = b"\0\x0b" + bytes(32)
RULES_DOCUMENT = encode_runtime_rules(
    {
        path.decode(): [f"sha256:{hashlib.sha256(content).hexdigest()}"]
        for path, content in FILES.items()
    },
    {},
)
POLICY = Policy(
    name="strict",
    evidence=EvidencePolicy(),
    boot=BootPolicy(debug=Requirement.REQUIRED, baseline_pcrs=(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14)),
    runtime=RuntimePolicy(
        boot_aggregate=Requirement.REQUIRED,
        violations=Requirement.REQUIRED,
        files=Requirement.REQUIRED,
        rules=hashlib.sha256(RULES_DOCUMENT).hexdigest(),
    ),
)
"""All that can be asked for is asked for: nothing of the bundle is beside the point."""


def ima_log(log: LogBuilder) -> bytes:
    """The boot aggregate and one entry per file."""
    registers = b"".join(log.registers["sha256"].get(pcr, bytes(32)) for pcr in range(10))
    aggregate = b"sha256:\0" + hashlib.sha256(registers).digest()
    entries = [sized(aggregate) + sized(b"boot_aggregate\0")]
    entries += [ng_data(path, content) for path, content in FILES.items()]
    return b"".join(map(ima_record, entries))


def runtime_register(raw: bytes, bank: str) -> bytes:
    """PCR 10 after each entry's data was hashed into it."""
    value, at = bytes(hashlib.new(bank).digest_size), 0
    while at < len(raw):
        name = int.from_bytes(raw[at + 24 : at + 28], "little")
        start = at + 28 + name + 4
        size = int.from_bytes(raw[start - 4 : start], "little")
        value = hashlib.new(
            bank, value + hashlib.new(bank, raw[start : start + size]).digest()
        ).digest()
        at = start + size
    return value


def quoted(nonce: bytes, signer: bytes, *, clock: int = 1_000) -> dict[str, bytes]:
    """A genuine quote of the registers after both logs: attest, signature and values."""
    log = good_log(BANKS)
    runtime = ima_log(log)
    pcrs = {
        bank: {
            pcr: log.registers[bank].get(pcr, bytes(hashlib.new(bank).digest_size))
            for pcr in POLICY.evidence.pcrs
        }
        | {10: runtime_register(runtime, bank)}
        for bank in BANKS
    }
    quote = make_quote(KEY, pcrs=pcrs, extra_data=nonce, signer=signer, clock=(clock, 5, 2, 1))
    return {
        "attest": quote.attest,
        "signature": quote.signature,
        "pcr_values": quote.pcr_values,
    }


def good_evidence() -> Evidence:
    """What an honest host sends."""
    log = good_log(BANKS)
    return Evidence(
        challenge=b"c" * 32,
        boot_log=log.bytes,
        ima_offset=0,
        ima_log=ima_log(log),
        **quoted(NONCE, QUALIFIED_NAME),
    )


KEY = SoftwareKey(private=ec_private_key(5))
GOOD = good_evidence()
EXPECTED = ExpectedEvidence(
    ak_public=KEY.public,
    ak_qualified_name=QUALIFIED_NAME,
    qualifying_data=NONCE,
    last_clock=None,
    progress=None,
)
CONTEXT = AppraisalContext(
    host_id=HostId("h-1"),
    cluster=ClusterId("prod"),
    endorsement="accepted",
    policy_sha256="00",
    policy_epoch=1,
    issued_at_ms=1_000,
    now_ms=2_000,
)
RULES = decode_runtime_rules(RULES_DOCUMENT)


def approved() -> tuple[Baseline, ...]:
    """The good boot, approved as it is."""
    log = verify_evidence(GOOD, EXPECTED, POLICY).boot[HashAlgorithm.SHA256].log
    assert log is not None
    return capture_baselines("golden", ClusterId("prod"), log, POLICY.boot.baseline_pcrs)


BASELINES = approved()


def judge(
    evidence: Evidence, expected: ExpectedEvidence = EXPECTED, policy: Policy = POLICY
) -> Verdict:
    """The whole way: verification, the runtime files, the appraisal."""
    verified = verify_evidence(evidence, expected, policy, RULES)
    files = judge_runtime(verified.runtime, RULES, None)
    return appraise(verified, policy, BASELINES, replace(CONTEXT, files=files))


def failures(checks: tuple[Check, ...]) -> list[Check]:
    """The failed checks without failed children."""
    return [
        leaf
        for check in checks
        if check.state is CheckState.FAILED
        for leaf in (failures(check.children) or [check])
    ]


@dataclass(frozen=True)
class Place:
    """A field of the boot log: what it is, of which event (-1: header) and PCR."""

    start: int
    end: int
    what: str
    event: int
    pcr: int


def boot_log_places(raw: bytes) -> list[Place]:
    """Every byte of a two-bank log belongs to one place."""
    header = 32 + int.from_bytes(raw[28:32], "little")
    places, at, number = [Place(0, header, "header", -1, -1)], header, 1
    sizes = {0x04: 20, 0x0B: 32}

    def add(size: int, what: str) -> None:
        nonlocal at
        places.append(Place(at, at + size, what, number, pcr))
        at += size

    while at < len(raw):
        pcr = int.from_bytes(raw[at : at + 4], "little")
        add(4, "pcr")
        add(4, "type")
        count = int.from_bytes(raw[at : at + 4], "little")
        add(4, "count")
        for _ in range(count):
            algorithm = int.from_bytes(raw[at : at + 2], "little")
            add(2, "algorithm")
            add(sizes[algorithm], "sha1" if algorithm == 0x04 else "sha256")
        size = int.from_bytes(raw[at : at + 4], "little")
        add(4, "size")
        add(size, "data")
        number += 1
    return places
