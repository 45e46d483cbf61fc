"""The parts of a move that need no libvirt: what domjobinfo says, and orders that are none."""

import asyncio

import pytest

from hostagent.migration import MoveOrder, MoveProgress, MoveStep, migrate, stop_copy
from hostagent.virsh import Virsh, job_percent

RUNNING = """\
Job type:         Unbounded
Operation:        Outgoing migration
Time elapsed:     1503         ms
Data processed:   4.210 MiB
Data remaining:   32.000 MiB
Data total:       80.000 MiB
Memory processed: 4.210 MiB
Memory remaining: 16.000 MiB
Memory total:     64.000 MiB
"""
DOMAIN = """<domain><name>web</name><uuid>7b000000-0000-4000-8000-000000000001</uuid>
<metadata>{mark}</metadata><devices/></domain>"""
MARK = '<ta:vm xmlns:ta="urn:trustauthority:vm:1" id="web"/>'


@pytest.mark.parametrize(
    ("said", "percent"),
    [
        (RUNNING, 75),
        (RUNNING.replace("16.000 MiB", "0.000 B"), 100),
        (RUNNING.replace("64.000 MiB", "0.062 GiB"), 75),
        ("Job type:         None\n", None),
        ("", None),
        (RUNNING.replace("Memory total:     64.000 MiB", "Memory total:     0.000 B"), None),
        (RUNNING.replace("64.000 MiB", "64.000 XiB"), None),
        (RUNNING.replace("16.000 MiB", "96.000 MiB"), 0),
    ],
)
def test_progress_is_what_libvirt_says_or_unknown(said: str, percent: int | None) -> None:
    """A progress bar shows libvirt's numbers, and nothing where there are none."""
    assert job_percent(said) == percent


def fake_virsh(tmp_path, monkeypatch, mark: str) -> Virsh:
    """A virsh that knows one domain and can do nothing else."""
    definition = tmp_path / "domain.xml"
    definition.write_text(DOMAIN.format(mark=mark))
    program = tmp_path / "virsh"
    program.write_text(f"#!/bin/sh\ncase $4 in dumpxml) cat {definition};; *) exit 1;; esac\n")
    program.chmod(0o755)
    monkeypatch.setattr(
        "hostagent.virsh._ENVIRONMENT", {"PATH": f"{tmp_path}:/usr/bin:/bin", "LC_ALL": "C"}
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return Virsh(uri="test:///default", timeout_s=5)


ORDER = MoveOrder(domain="web", destination="host-b", to_uri="test:///default")


class Agent:
    def __init__(self, **answers: dict) -> None:
        self.answers, self.asked = answers, []

    async def __call__(self, request: dict) -> dict:
        self.asked.append(request["do"])
        return self.answers[request["do"]]


class TestOrders:
    async def test_an_unprotected_vm_is_not_moved(self, tmp_path, monkeypatch) -> None:
        """Nothing is offered for a VM without our mark."""
        agent = Agent()
        done = await migrate(ORDER, virsh=fake_virsh(tmp_path, monkeypatch, ""), ask=agent)
        assert (done.ok, done.reason, done.exit_code) == (False, "NOT_PROTECTED", 2)
        assert agent.asked == []

    async def test_a_refused_offer_copies_nothing(self, tmp_path, monkeypatch) -> None:
        """The authority's reason reaches the caller."""
        refused = {"ok": False, "reason": "HOST_REVOKED", "detail": "d", "exit_code": 1}
        agent, seen = Agent(**{"move-offer": refused}), []
        virsh = fake_virsh(tmp_path, monkeypatch, MARK)
        done = await migrate(ORDER, virsh=virsh, ask=agent, observe=seen.append)
        assert (done.ok, done.reason, done.vm) == (False, "HOST_REVOKED", "web")
        assert (agent.asked, seen) == (["move-offer"], [])

    async def test_a_failed_copy_ends_the_offer(self, tmp_path, monkeypatch) -> None:
        """L2: what did not leave stays, and no offer stays open."""
        agent = Agent(
            **{"move-offer": {"ok": True, "move_id": "m" * 32}, "move-abort": {"ok": True}}
        )
        seen: list[MoveProgress] = []
        virsh = fake_virsh(tmp_path, monkeypatch, MARK)
        done = await migrate(ORDER, virsh=virsh, ask=agent, observe=seen.append)
        assert (done.ok, done.exit_code) == (False, 1)
        assert agent.asked == ["move-offer", "move-abort"]
        assert [each.step for each in seen] == [MoveStep.OFFERED, MoveStep.STAYS]


OTHER = "Job type:         Unbounded\nOperation:        Dump\n"


def copying_virsh(tmp_path, monkeypatch, *, job: str = RUNNING, abortable: bool = True) -> Virsh:
    """A virsh whose copy goes on until it is aborted or, where it can't be, comes to its end."""
    virsh = fake_virsh(tmp_path, monkeypatch, MARK)
    (tmp_path / "job").write_text(job)
    ends = "exit 1" if abortable else "touch left; exit 0"
    (tmp_path / "virsh").write_text(
        f"#!/bin/sh\ncd {tmp_path}; echo $4 >> said\n"
        "case $4 in\n"
        "dumpxml) cat domain.xml;;\n"
        "metadata) exit 0;;\n"
        "domstate) if [ -e left ] && [ \"$3\" = test:///here ]; then echo 'failed to get domain' >&2; exit 1; fi; echo 'running (booted)';;\n"
        "domjobinfo) cat job;;\n"
        f"domjobabort) touch aborted; {'exit 0' if abortable else 'exit 1'};;\n"
        f"migrate) n=0; while [ ! -e aborted ] && [ $n -lt 100 ]; do sleep 0.05; n=$((n+1)); done; {ends};;\n"
        "esac\n"
    )
    return Virsh(uri="test:///here", timeout_s=virsh.timeout_s)


def offering() -> Agent:
    return Agent(**{"move-offer": {"ok": True, "move_id": "m" * 32}, "move-abort": {"ok": True}})


def said(tmp_path) -> list[str]:
    return (tmp_path / "said").read_text().split()


class TestStop:
    async def test_a_copy_is_ended(self, tmp_path, monkeypatch) -> None:
        """libvirt ends the copy, the offer is ended, and the VM goes on here."""
        agent, stop, seen = offering(), asyncio.Event(), []

        def observe(progress: MoveProgress) -> None:
            seen.append(progress.step)
            if progress.step is MoveStep.COPYING:
                stop.set()

        virsh = copying_virsh(tmp_path, monkeypatch)
        done = await migrate(ORDER, virsh=virsh, ask=agent, observe=observe, stop=stop)
        assert (done.ok, done.reason) == (False, "CANCELLED")
        assert agent.asked == ["move-offer", "move-abort"]
        assert (seen[-1], MoveStep.HANDING_OVER in seen) == (MoveStep.STAYS, False)

    async def test_too_late(self, tmp_path, monkeypatch) -> None:
        """QEMU has left: the offer stands, or nobody could run the VM, and the move is finished."""
        agent, stop = offering(), asyncio.Event()

        def observe(progress: MoveProgress) -> None:
            if progress.step is MoveStep.COPYING:
                stop.set()

        virsh = copying_virsh(tmp_path, monkeypatch, abortable=False)
        done = await migrate(ORDER, virsh=virsh, ask=agent, observe=observe, stop=stop)
        assert (done.ok, done.reason) == (True, "")
        assert agent.asked == ["move-offer"]
        assert "domjobabort" in said(tmp_path)

    async def test_before_anything_is_copied(self, tmp_path, monkeypatch) -> None:
        """The offer is ended, and libvirt hears nothing of it."""
        agent, stop = offering(), asyncio.Event()
        stop.set()
        virsh = copying_virsh(tmp_path, monkeypatch)
        done = await migrate(ORDER, virsh=virsh, ask=agent, stop=stop)
        assert done.reason == "CANCELLED"
        assert agent.asked == ["move-offer", "move-abort"]
        assert said(tmp_path) == ["dumpxml"]

    @pytest.mark.parametrize("job", ["", "Job type:         None\n", OTHER])
    async def test_only_what_leaves(self, tmp_path, monkeypatch, job: str) -> None:
        """No job yet, or a dump of somebody: nothing is aborted."""
        virsh = copying_virsh(tmp_path, monkeypatch, job=job)
        await stop_copy(virsh, "web")
        assert said(tmp_path) == ["domjobinfo"]
        await stop_copy(virsh, "web", RUNNING)
        assert said(tmp_path) == ["domjobinfo", "domjobabort"]
