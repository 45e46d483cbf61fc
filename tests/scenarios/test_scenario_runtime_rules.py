"""Runtime rules end to end: a program nobody approved costs the host its trust until it is gone."""

import asyncio
import hashlib
import threading
from pathlib import Path
from typing import Any

import pytest
from support.simulated_authority import BY, SimulatedAuthority
from support.simulated_host import SimulatedHost

from trustauthority.appraisal import appraise
from trustauthority.cli.runtime_sources import from_log
from trustauthority.codec.runtimerules import decode_runtime_rules, encode_runtime_rules
from trustauthority.errors import FailedPrecondition, LogRejected, NotFound, PolicyInvalid
from trustauthority.model.runtimerules import RuntimeRules
from trustauthority.model.verdict import Check, Verdict
from trustauthority.report.token import check_report
from trustauthority.services import judgement, runtimerules
from trustauthority.services.runtimerules import RuntimeRulesService
from trustauthority.verification.pipeline import verify_evidence

TOOL = b"a tool that we ship"


def files_check(verdict: Verdict) -> Check:
    (group,) = (check for check in verdict.checks if check.id == "runtime")
    (found,) = (check for check in group.children if check.id == "runtime.files")
    return found


async def put_in_force(authority: SimulatedAuthority, host: SimulatedHost, **more: bytes) -> str:
    """Rules made from the host's log, and more files by name; in force for the cluster."""
    files, _ = from_log(host.ima_log)
    for name, content in more.items():
        files["/usr/bin/" + name] = {"sha256:" + hashlib.sha256(content).hexdigest()}
    service = RuntimeRulesService(authority.store)
    rules, _ = await service.upload(encode_runtime_rules(files, {}), by=BY, dry_run=False)
    await authority.apply_policy(
        f'name = "default"\n[runtime]\nfiles = "required"\nrules = "{rules.sha256}"\n'
    )
    return rules.sha256


async def test_known_files_pass(authority: SimulatedAuthority) -> None:
    """A host whose every measured file is approved passes, and its report says so (rule 62)."""
    (host,) = await authority.trusted("a")
    before = (await authority.attest(host)).report
    await put_in_force(authority, host)
    attested = await authority.attest(host)
    assert attested.verdict.passed
    assert "0 refused" in files_check(attested.verdict).found
    vectors = [
        check_report(
            report,
            keys=authority.verdict_keys,
            issuer="authority.test/audit",
            audience="trustauthority",
            now_ms=authority.clock.now_ms(),
        ).claims["submods"]["host"]["ear.trustworthiness-vector"]
        for report in (before, attested.report)
    ]
    assert [each["file-system"] for each in vectors] == [0, 2]
    assert [each["executables"] for each in vectors] == [3, 2]


async def test_an_unknown_program_fails_the_host_until_it_reboots(
    authority: SimulatedAuthority,
) -> None:
    """N55, rule 54: the delta that names it fails, so do the next ones; a reboot without it passes."""
    (host,) = await authority.trusted("a")
    await put_in_force(authority, host)
    assert (await authority.attest(host)).verdict.passed
    host.measure_file("/usr/local/bin/miner", b"not ours")
    for _ in range(2):
        verdict = (await authority.attest(host)).verdict
        assert not verdict.passed
        check = files_check(verdict)
        assert [child.title for child in check.children] == ["/usr/local/bin/miner"]
        assert "/usr/local/bin/miner: the rules do not name this file" in verdict.reason
    host.measure_file("/usr/local/bin/other", b"not ours either")
    verdict = (await authority.attest(host)).verdict
    assert "2 refused" in files_check(verdict).found
    host.reboot()
    assert (await authority.attest(host)).verdict.passed


async def test_new_rules_look_at_the_whole_log_again(authority: SimulatedAuthority) -> None:
    """What the old rules approved or refused is judged by the new ones, from the first entry on."""
    (host,) = await authority.trusted("a")
    lax = await put_in_force(authority, host, tool=TOOL)
    host.measure_file("/usr/bin/tool", TOOL)
    assert (await authority.attest(host)).verdict.passed
    files, _ = from_log(host.ima_log)
    del files["/usr/bin/tool"]
    service = RuntimeRulesService(authority.store)
    strict, _ = await service.upload(encode_runtime_rules(files, {}), by=BY, dry_run=False)
    policy = 'name = "default"\n[runtime]\nfiles = "required"\nrules = "{}"\n'
    await authority.apply_policy(policy.format(strict.sha256))
    assert (await authority.invite(host)).known_logs.ima_offset == 0
    verdict = (await authority.attest(host)).verdict
    assert [child.title for child in files_check(verdict).children] == ["/usr/bin/tool"]
    await authority.apply_policy(policy.format(lax))
    assert (await authority.attest(host)).verdict.passed


async def test_a_delta_from_before_the_new_rules_is_refused(
    authority: SimulatedAuthority,
) -> None:
    """Entries that only old rules judged never slip through under new ones: no verdict from them."""
    (host,) = await authority.trusted("a")
    host.measure_file("/usr/local/bin/miner", b"not ours")
    assert (await authority.attest(host)).verdict.passed  # nobody judges files yet
    invitation = await authority.invite(host)
    assert invitation.known_logs.ima_offset > 0
    await put_in_force(authority, await authority.enrolled("b"))
    with pytest.raises(LogRejected):
        await authority.attestation.attest(await authority.record(host), host.evidence(invitation))
    verdict = (await authority.attest(host)).verdict
    assert [child.title for child in files_check(verdict).children] == ["/usr/local/bin/miner"]


async def test_a_crash_while_judging_is_no_approval(
    authority: SimulatedAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """N04: entries that a crash left unjudged fail the host, and are judged the next time."""
    (host,) = await authority.trusted("a")
    await put_in_force(authority, host)

    def crash(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    host.measure_file("/usr/local/bin/miner", b"not ours")
    with monkeypatch.context() as patched:
        patched.setattr(appraise, "judge_files", crash)
        assert not (await authority.attest(host)).verdict.passed
    assert (await authority.invite(host)).known_logs.ima_offset == 0
    verdict = (await authority.attest(host)).verdict
    assert "1 refused" in files_check(verdict).found


async def test_a_log_that_does_not_replay_forgets_nothing(authority: SimulatedAuthority) -> None:
    """A refused file is not shaken off by sending a broken log next."""
    (host,) = await authority.trusted("a")
    await put_in_force(authority, host)
    host.measure_file("/usr/local/bin/miner", b"not ours")
    assert not (await authority.attest(host)).verdict.passed
    host.lie_about_pcr(10)
    assert not (await authority.attest(host)).verdict.passed
    host.lies.pcrs.clear()
    assert "1 refused" in files_check((await authority.attest(host)).verdict).found


async def test_only_a_warning_where_the_policy_says_so(authority: SimulatedAuthority) -> None:
    """A new check can be watched before it counts."""
    (host,) = await authority.trusted("a")
    sha256 = await put_in_force(authority, host)
    await authority.apply_policy(
        f'name = "default"\n[runtime]\nfiles = "warn"\nrules = "{sha256}"\n'
    )
    host.measure_file("/usr/local/bin/miner", b"not ours")
    verdict = (await authority.attest(host)).verdict
    assert verdict.passed
    assert files_check(verdict).state == "warning"


@pytest.mark.parametrize(
    ("runtime", "said"),
    [
        ('files = "required"', "the hash that ta policy runtime upload printed"),
        ('files = "required"\nrules = "abc"', "the hash that"),
        (f'rules = "{"0" * 64}"', "or the rules judge nothing"),
        (f'files = "warn"\nrules = "{"0" * 64}"', "was not uploaded here"),
    ],
)
async def test_policies_that_could_judge_nothing(
    authority: SimulatedAuthority, runtime: str, said: str
) -> None:
    """A policy that names no rules, or rules that are not here, is refused before it is in force."""
    with pytest.raises(PolicyInvalid, match=said):
        await authority.apply_policy(f'name = "default"\n[runtime]\n{runtime}\n')


async def test_documents(authority: SimulatedAuthority) -> None:
    """A document is kept once, audited once, given back as it came; nonsense is kept never."""
    service = RuntimeRulesService(authority.store)
    document = encode_runtime_rules({"/x": ["sha256:" + "00" * 32]}, {})
    dry, added = await service.upload(document, by=BY, dry_run=True)
    with pytest.raises(NotFound):
        await service.document(dry.sha256)
    assert not added
    assert [(await service.upload(document, by=BY, dry_run=False))[1] for _ in range(2)] == [
        True,
        False,
    ]
    assert await service.document(dry.sha256) == document
    with pytest.raises(PolicyInvalid):
        await service.upload(b"{}", by=BY, dry_run=False)
    async with authority.store.snapshot() as tx:
        entries = await tx.audit.about(
            operation="runtime-rules.upload", subject=dry.sha256, limit=9
        )
    assert len(entries) == 1


async def test_rules_that_are_gone_or_changed_judge_nothing(
    authority: SimulatedAuthority, tmp_path: Path
) -> None:
    """A document that is not what its hash says gives no verdict at all (N04)."""
    from sqlalchemy import update

    from trustauthority.adapters.sql import tables

    (host,) = await authority.trusted("a")
    sha256 = await put_in_force(authority, host)
    other = encode_runtime_rules({}, {"excluded": ["/usr/*"]})
    async with authority.store._engine.begin() as connection:
        await connection.execute(
            update(tables.runtime_rules)
            .where(tables.runtime_rules.c.sha256 == sha256)
            .values(document=other)
        )
    with pytest.raises(FailedPrecondition, match="not those of their hash"):
        await authority.attest(host)


async def test_a_fleet_loads_the_rules_once(
    authority: SimulatedAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many hosts attest, a document is decoded once per process."""
    from trustauthority.services import runtimerules

    hosts = await authority.trusted("a", "b", "c")
    await put_in_force(authority, hosts[0])
    decoded = []
    decode = runtimerules.decode_runtime_rules

    def counting(document: bytes) -> object:
        decoded.append(len(document))
        return decode(document)

    monkeypatch.setattr(runtimerules, "decode_runtime_rules", counting)
    for host in hosts:
        assert (await authority.attest(host)).verdict.passed
    assert len(decoded) == 1


async def test_a_long_log_is_verified_beside_the_event_loop(
    authority: SimulatedAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One host's long logs keep no other host waiting, and are judged all the same (N45)."""
    (host,) = await authority.trusted("a")
    await put_in_force(authority, host)
    threads: list[int] = []

    def verify(*arguments: Any) -> Any:
        threads.append(threading.get_ident())
        return verify_evidence(*arguments)

    monkeypatch.setattr(judgement, "verify_evidence", verify)
    assert (await authority.attest(host)).verdict.passed
    monkeypatch.setattr(judgement, "MAX_INLINE_BYTES", 10)
    host.measure_file("/usr/local/bin/miner", b"not ours")
    verdict = (await authority.attest(host)).verdict
    assert "1 refused" in files_check(verdict).found
    assert threads[0] == threading.get_ident() != threads[1]


async def test_a_document_is_loaded_once_for_all_hosts_and_few_stay(
    authority: SimulatedAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All hosts share one decoded document; what is kept is bounded by number and by bytes (N45)."""
    loads: list[int] = []

    def decode(document: bytes) -> RuntimeRules:
        loads.append(len(document))
        return decode_runtime_rules(document)

    service, loaded = RuntimeRulesService(authority.store), runtimerules.LoadedRules()
    documents = [encode_runtime_rules({f"/usr/bin/{n}": []}, {}) for n in range(4)]
    names = [(await service.upload(each, by=BY, dry_run=False))[0].sha256 for each in documents]
    monkeypatch.setattr(runtimerules, "decode_runtime_rules", decode)

    async def load(number: int) -> RuntimeRules | None:
        async with authority.store.snapshot() as tx:
            return await loaded.of(tx, names[number])

    first = await asyncio.gather(*(load(0) for _ in range(8)))
    assert len(loads) == 1
    assert all(rules is first[0] for rules in first)
    monkeypatch.setattr(runtimerules, "MAX_LOADED", 2)
    await load(1), await load(2), await load(1)
    assert len(loads) == 3
    await load(0)
    assert len(loads) == 4  # it was forgotten
    await load(1)
    assert len(loads) == 4  # it was not
    monkeypatch.setattr(runtimerules, "MAX_LOADED_BYTES", 1)
    assert await load(3) is await load(3)
    assert len(loads) == 5  # the newest stays, whatever its size
    await load(1)
    assert len(loads) == 6
