"""What the agent says about itself: for ``hostagent status``, systemd and people.

Stage: presentation; reads, changes nothing, holds no secret.
"""

from typing import TYPE_CHECKING

from hostagent.control import Json
from hostagent.lease_model import Phase as VmPhase
from hostagent.machine import AgentMachine
from hostagent.vm_keeper import VmKeeper
from trustauthority.v1.common_pb2 import CHECK_STATE_FAILED, Check, Verdict

if TYPE_CHECKING:
    from hostagent.daemon import Agent


def failed_checks(verdict: Verdict) -> list[dict[str, str]]:
    """The failed leaves of the check tree, in its order."""
    found: list[dict[str, str]] = []
    for check in verdict.checks:
        _collect(check, found)
    return found


def one_line(machine: AgentMachine, keeper: VmKeeper) -> str:
    """One line for systemd: phase, VMs, newest failure."""
    held = [r.view.phase for r in keeper.records.values() if r.view.phase is not VmPhase.IDLE]
    paused = sum(phase is VmPhase.PAUSED for phase in held)
    failure = f", last failure {machine.last_failure}" if machine.last_failure else ""
    return f"{machine.phase.value}, {len(held)} VMs, {paused} paused{failure}"


def describe(agent: "Agent") -> Json:
    """Everything that status shows."""
    machine, identity, now = agent.machine, agent.host.identity, agent.clock_ms()
    at = machine.verdict_at_ms
    return {
        "phase": machine.phase.value,
        "admission": machine.admission.value,
        "host_id": identity.host_id if identity is not None else None,
        "name": identity.name if identity is not None else agent.host.settings.host.name,
        "cluster": agent.host.settings.host.cluster,
        "certificate_left_ms": agent.host.certificate_left_ms(),
        "verdict_age_ms": None if at is None else now - at,
        "failed_checks": failed_checks(agent.verdict) if agent.verdict is not None else [],
        "last_failure": machine.last_failure or None,
        "enforcement": agent.enforcement.name,
        "vms": agent.desk.describe(),
    }


def _collect(check: Check, found: list[dict[str, str]]) -> None:
    before = len(found)
    for child in check.children:
        _collect(child, found)
    if check.state == CHECK_STATE_FAILED and len(found) == before:
        found.append(
            {
                "id": check.id,
                "title": check.title,
                "expected": check.expected,
                "found": check.found,
                "remedy": check.remedy,
            }
        )
