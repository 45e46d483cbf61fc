"""The parts of a move that need no libvirt: what domjobinfo says, and orders that are none."""

import pytest

from hostagent.migration import MoveOrder, MoveProgress, MoveStep, migrate
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
