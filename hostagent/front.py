"""What the control socket of a running agent answers.

Stage: between ``control`` and the agent. Trusts nothing in a request. Guarantees that nothing new is
asked of an authority that the machine does not believe now.
"""

import asyncio
from pathlib import Path

from hostagent.control import Json, refusal
from hostagent.daemon import Agent
from hostagent.disk_desk import DiskDesk
from hostagent.events import AttestWanted, Phase
from hostagent.protect_desk import ProtectDesk
from hostagent.rekey_desk import RekeyDesk
from hostagent.status import describe, failed_checks
from hostagent.virsh import Virsh
from trustauthority.v1.common_pb2 import STANDING_PASSED

_NEEDS_NOBODY = frozenset({"key-open", "key-give-back"})
"""Requests that are right whatever the authority does: opening is the TPM's answer, and a VM may
always be stopped."""


async def handle(agent: Agent, request: Json) -> Json:
    """Answer one request of this host. Raises as ``VmDesk.handle``."""
    do = request["do"]
    if do == "status":
        return {"ok": True, **describe(agent)}
    if do == "attest":
        return await _attest_now(agent)
    if not agent.machine.may_ask and do not in _NEEDS_NOBODY:
        doubts = agent.machine.phase is Phase.DOUBT
        detail = f"the agent is «{agent.machine.phase.value}»: {agent.machine.last_failure}"
        return refusal("NOT_READY", detail, 1 if doubts else 5)
    if do in {"vm-protect", "vm-rekey", "vm-encrypt"}:
        return await _disks(agent, request)
    return await agent.desk.handle(request)


async def _disks(agent: Agent, request: Json) -> Json:
    desk = agent.desk
    if request["do"] == "vm-encrypt":
        source, target = Path(request["disk"]), Path(request["out"])
        return await DiskDesk(desk=desk).encrypt(request["vm"], source, target)
    virsh, identity = _virsh(agent), agent.host.enrolled()
    if request["do"] == "vm-rekey":
        return await RekeyDesk(desk=desk, virsh=virsh, held=agent.passphrases).handle(request)
    folders = agent.host.settings.libvirt.disk_folders
    protecting = ProtectDesk(desk=desk, virsh=virsh, host_name=identity.name, disk_folders=folders)
    return await protecting.handle(request)


def _virsh(agent: Agent) -> Virsh:
    libvirt = agent.host.settings.libvirt
    if libvirt.uri is None:
        raise ValueError("libvirt.uri is not configured on this host")
    return Virsh(uri=libvirt.uri, timeout_s=libvirt.timeout_ms / 1000)


async def _attest_now(agent: Agent) -> Json:
    before = agent.machine.verdict_at_ms
    agent.judged.clear()
    agent.feed(AttestWanted())
    try:
        limit_s = agent.host.settings.intervals.attest_timeout_ms / 1000
        await asyncio.wait_for(agent.judged.wait(), limit_s)
    except TimeoutError:
        return refusal("NO_ANSWER", "no verdict came in time; see the log of the agent", 5)
    if agent.verdict is None or agent.machine.verdict_at_ms == before:
        reason = agent.machine.last_failure or "NO_ANSWER"
        return refusal(reason, "no verdict came; see the log of the agent", 5)
    passed = agent.verdict.standing == STANDING_PASSED
    return {"ok": True, "passed": passed, "failed": failed_checks(agent.verdict)}
