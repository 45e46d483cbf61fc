"""Evidence is kept as long as the configuration says, and what is kept can be judged again (rule 67)."""

import asyncio
import hashlib

import pytest
from support.simulated_authority import SimulatedAuthority
from support.simulated_host import BOOTS, SimulatedHost

from trustauthority.appraisal.rejudge import Grounds, judge_bundle
from trustauthority.codec.bundle import decode_bundle
from trustauthority.errors import NotFound, StoreUnavailable
from trustauthority.model.retention import Retention
from trustauthority.services import retention
from trustauthority.services.bundles import evidence_bundle
from trustauthority.services.retention import Purged, RetentionService
from trustauthority.settings import EvidenceSettings

DAY_MS = 24 * 3_600_000
MANY = 1 << 60


def service(authority: SimulatedAuthority, **changes: int) -> RetentionService:
    """Ten days for those that passed, a hundred for those that failed, room for all."""
    values = {"keep_passed_ms": 10 * DAY_MS, "keep_failed_ms": 100 * DAY_MS, "max_bytes": MANY}
    wanted = Retention(**(values | changes))
    return RetentionService(authority.store, authority.journal, wanted, "node-1")


async def purge(authority: SimulatedAuthority, **changes: int) -> Purged:
    """One purge."""
    return await service(authority, **changes).purge(asyncio.Event())


async def attest(authority: SimulatedAuthority, host: SimulatedHost) -> str:
    """One round; gives the id of the verdict."""
    return (await authority.attest(host)).verdict_id


async def kept(authority: SimulatedAuthority, verdict_id: str) -> bool:
    """Whether a verdict is there with everything it rests on."""
    async with authority.store.snapshot() as tx:
        stored = await tx.archive.get_verdict(verdict_id)
        if stored is None:
            return False
        parts = [bytes.fromhex(str(stored["evidence_sha256"]))]
        parts += [bytes(stored[f"{name}_log_sha256"]) for name in ("boot", "ima")]
        return all([await tx.archive.get_blob(each) is not None for each in parts])


async def test_old_verdicts_go_and_failed_ones_later(authority):
    """Each kind has its time; the newest of a host stays whatever its age."""
    (host,) = await authority.trusted("esx-1")
    passed = await attest(authority, host)
    host.reboot(BOOTS / "changed-cmdline")
    failed = await attest(authority, host)
    host.reboot()
    newest = await attest(authority, host)
    assert (await purge(authority)).verdicts == 0
    authority.pass_ms(10 * DAY_MS + 1, host)
    assert (await purge(authority)).verdicts == 2  # those that passed
    assert [await kept(authority, each) for each in (passed, failed, newest)] == [
        False,
        True,
        True,
    ]
    authority.pass_ms(1_000 * DAY_MS, host)
    await purge(authority)
    assert [await kept(authority, each) for each in (failed, newest)] == [False, True]
    await evidence_bundle(authority.store, host.name)


async def test_a_newest_verdict_that_failed_stays(authority):
    """A host that fell silent after it failed can be explained years later."""
    (host,) = await authority.trusted("esx-1")
    host.reboot(BOOTS / "changed-cmdline")
    failed = await attest(authority, host)
    authority.pass_ms(9_000 * DAY_MS, host)
    await purge(authority, max_bytes=1)
    assert await kept(authority, failed)


async def test_what_stays_is_judged_to_the_same_verdict(authority):
    """Purging others damages nothing: logs are shared by their content."""
    (host, other) = await authority.trusted("esx-1", "esx-2")
    host.measure_file("/usr/bin/news", b"news")
    delta = (await authority.attest(host)).verdict
    authority.pass_ms(20 * DAY_MS, host, other)
    await purge(authority)
    for each in (host, other):
        bundle = decode_bundle(await evidence_bundle(authority.store, each.name))
        assert judge_bundle(bundle, Grounds(), 1).verdict.passed
    assert delta.passed
    assert (await authority.attest(host)).verdict.passed


async def test_an_earlier_verdict_can_be_fetched_and_judged_while_it_is_kept(authority):
    """Rule 67: of each verdict that the audit log names, until its time is over."""
    (host, other) = await authority.trusted("esx-1", "esx-2")
    host.reboot(BOOTS / "changed-cmdline")
    failed = await attest(authority, host)
    host.reboot()
    await attest(authority, host)
    bundle = decode_bundle(await evidence_bundle(authority.store, "esx-1", verdict_id=failed))
    assert not judge_bundle(bundle, Grounds(), 1).verdict.passed
    assert bundle.manifest["verdict_id"] == failed
    with pytest.raises(NotFound, match="no verdict"):
        await evidence_bundle(authority.store, other.name, verdict_id=failed)
    authority.pass_ms(101 * DAY_MS, host)
    await purge(authority)
    with pytest.raises(NotFound, match="is kept"):
        await evidence_bundle(authority.store, "esx-1", verdict_id=failed)


async def test_above_the_bound_the_oldest_that_passed_go_first(authority, monkeypatch):
    """Room for less than all: passed before failed, down to the bound and no further."""
    monkeypatch.setattr(retention, "BATCH", 10)  # one at a time above the bound
    (host,) = await authority.trusted("esx-1")
    host.reboot(BOOTS / "changed-cmdline")
    failed = await attest(authority, host)
    host.reboot()
    ids = [await attest(authority, host) for _ in range(6)]
    stored = (await purge(authority)).stored_bytes
    done = await purge(authority, max_bytes=stored - 1)
    assert done.verdicts == 1
    assert done.stored_bytes < stored
    assert await kept(authority, failed)
    done = await purge(authority, max_bytes=1)
    assert not await kept(authority, failed)
    assert await kept(authority, ids[-1])
    assert done.stored_bytes > 1
    assert authority.journal.events[-1][1]["above_bound"] is True


async def test_each_batch_is_audited(authority, monkeypatch):
    """No verdict goes without an entry that says how many, how old and why (I-D)."""
    monkeypatch.setattr(retention, "BATCH", 2)
    (host,) = await authority.trusted("esx-1")
    for _ in range(4):
        await attest(authority, host)
    authority.pass_ms(11 * DAY_MS, host)
    done = await purge(authority)
    entries = await authority.log("evidence.purge")
    assert [entry["details"]["verdicts"] for entry in entries] == [2, 2]
    assert sum(entry["details"]["bytes"] for entry in entries) == done.freed_bytes
    assert {entry["reason"] for entry in entries} == {"past its time"}
    assert {(entry["actor"], entry["subject"]) for entry in entries} == {("authority", "node-1")}
    assert await authority.log("evidence.purge") == entries
    assert (await purge(authority)).verdicts == 0  # and nothing is written when nothing goes
    assert await authority.log("evidence.purge") == entries


async def test_one_purge_is_bounded(authority, monkeypatch):
    """A backlog of years must not hold the process: the rest goes with the next purge."""
    monkeypatch.setattr(retention, "BATCH", 1)
    monkeypatch.setattr(retention, "MAX_BATCHES", 3)
    (host,) = await authority.trusted("esx-1")
    for _ in range(5):
        await attest(authority, host)
    authority.pass_ms(11 * DAY_MS, host)
    assert [(await purge(authority)).verdicts for _ in range(3)] == [3, 2, 0]


async def test_a_purge_stops_when_the_process_ends(authority):
    """Between batches, never inside of one."""
    (host,) = await authority.trusted("esx-1")
    await attest(authority, host)
    authority.pass_ms(11 * DAY_MS, host)
    stopping = asyncio.Event()
    stopping.set()
    assert (await service(authority).purge(stopping)).verdicts == 0


@pytest.mark.parametrize("failure", [StoreUnavailable("no room"), RuntimeError("defect")])
async def test_a_purge_that_fails_is_told_and_tried_again(authority, monkeypatch, failure):
    """Housekeeping never ends the process that attests hosts."""
    stopping, calls = asyncio.Event(), []
    housekeeping = service(authority)

    async def fails(_: asyncio.Event) -> None:
        calls.append("called")
        if len(calls) == 3:
            stopping.set()
        raise failure

    monkeypatch.setattr(housekeeping, "purge", fails)
    await asyncio.wait_for(housekeeping.run(stopping, every_s=0), timeout=30)
    assert len(calls) == 3
    assert [event for event, _ in authority.journal.events].count("evidence-purge") == 3


async def test_attestation_and_purge_at_once(authority):
    """Both write; neither loses what the other needs: every newest verdict is whole."""
    hosts = await authority.trusted("esx-1", "esx-2", "esx-3")
    node = await authority.another_node()
    for _ in range(3):
        authority.pass_ms(11 * DAY_MS, *hosts)
        ids = await asyncio.gather(
            *(attest(authority, host) for host in hosts), purge(authority), purge(node)
        )
        for verdict_id in ids[:3]:
            assert await kept(authority, verdict_id)


async def test_evidence_changed_in_the_database_is_not_judged_as_what_it_was(authority):
    """Content addressing: the hash in the audit log names these bytes and no others (I-D)."""
    (host,) = await authority.trusted("esx-1")
    evidence = (await authority.last("host.attest"))["details"]["evidence"]
    async with authority.store.snapshot() as tx:
        content = await tx.archive.get_blob(bytes.fromhex(evidence))
    assert content is not None
    assert hashlib.sha256(content).hexdigest() == evidence
    assert host.name


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, Retention(keep_passed_ms=30 * DAY_MS, keep_failed_ms=365 * DAY_MS, max_bytes=1 << 33)),
        (
            {"keep_passed_days": 0, "keep_failed_days": 1, "max_mib": 1},
            Retention(keep_passed_ms=0, keep_failed_ms=DAY_MS, max_bytes=1 << 20),
        ),
    ],
)
def test_the_configuration_in_units_of_the_core(settings, wanted):
    """Days and MiB at the edge, milliseconds and bytes inside (N08)."""
    assert EvidenceSettings(**settings).retention == wanted
