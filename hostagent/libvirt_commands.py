"""``hostagent vm``: encrypt a VM's disk, print its profile, move it by libvirt.

Stage: edge. A passphrase is never printed and never stands in a file. Exit status as in
``hostagent.main``.
"""

import asyncio
import json
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from hostagent.control import Json
from hostagent.direct import ask_or_do
from hostagent.domain import DefinitionInvalid, read_domain
from hostagent.migration import Ask, MoveOrder, MoveProgress, MoveStep
from hostagent.migration import migrate as move
from hostagent.settings import DEFAULT_CONFIG, Settings, load
from hostagent.terminal import narrate, refused, say
from hostagent.virsh import Virsh

Config = Annotated[Path, Parameter(name="--config", help="Configuration file (TOML).")]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON.")]
Flag = Annotated[bool, Parameter(negative="")]

vm_app = App(name="vm", help="Protected VMs of libvirt on this host.")


@vm_app.command
def encrypt(vm: str, *, disk: Path, out: Path, config: Config = DEFAULT_CONFIG) -> int:
    """Write a disk again, encrypted with the VM's key. The key is fetched for it and given back.

    Args:
        vm: The VM.
        disk: The disk as it is; any format that qemu-img knows.
        out: The encrypted disk (qcow2 with LUKS); must not exist.
        config: Configuration file (TOML).
    """
    request = {"do": "vm-encrypt", "vm": vm, "disk": str(disk.absolute())}
    answer = _ask(load(config), {**request, "out": str(out.absolute())})
    if not answer["ok"]:
        return refused(answer)
    say(answer["disk"])
    return 0


@vm_app.command
def profile(definition: Path, *, as_json: AsJson = False) -> int:
    """Print the profile digest of a definition, for ta vm protect --profile-sha256.

    Args:
        definition: The domain's XML, as virsh dumpxml --inactive prints it.
        as_json: Print JSON.
    """
    try:
        domain = read_domain(definition.read_bytes())
    except DefinitionInvalid as failure:
        narrate(f"{definition}: {failure}")
        return 2
    shown = {"vm": domain.vm_id, "uuid": domain.uuid, "profile_sha256": domain.profile_sha256.hex()}
    say(json.dumps(shown, indent=1) if as_json else shown["profile_sha256"])
    return 0


@vm_app.command
def migrate(
    domain: str,
    destination: str,
    to_uri: str,
    *,
    config: Config = DEFAULT_CONFIG,
    migrate_uri: str = "",
    tls: bool = True,
    unsafe: Flag = False,
) -> int:
    """Move a running VM to another host: offer, copy, switch, resume. Run it on the VM's host.

    Args:
        domain: The libvirt domain.
        destination: The host's name at the authority.
        to_uri: The destination's libvirt, as for virsh migrate.
        config: Configuration file (TOML).
        migrate_uri: Where the memory goes, as for virsh migrate --migrateuri.
        tls: Encrypt the memory on its way. It holds the key of the disk.
        unsafe: As for virsh migrate --unsafe.
    """
    settings = load(config)
    if settings.libvirt.uri is None:
        narrate("libvirt.uri is not configured on this host")
        return 2
    order = MoveOrder(
        domain=domain,
        destination=destination,
        to_uri=to_uri,
        migrate_uri=migrate_uri,
        tls=tls,
        unsafe=unsafe,
    )
    virsh = Virsh(uri=settings.libvirt.uri, timeout_s=settings.libvirt.timeout_ms / 1000)
    done = asyncio.run(move(order, virsh=virsh, ask=_asks(settings), observe=_Shown()))
    if not done.ok:
        narrate(f"{done.reason}: {done.detail}")
        return done.exit_code
    say(f"{done.vm} runs at its destination after {done.seconds:.1f} s")
    return 0


class _Shown:
    """Progress on stderr: a line per step, and one for each tenth of the memory."""

    def __init__(self) -> None:
        self._told: object = None

    def __call__(self, progress: MoveProgress) -> None:
        percent = progress.percent
        tenth = percent // 10 if percent is not None else None
        now = (progress.step, tenth if progress.step is MoveStep.COPYING else None)
        if now != self._told:
            self._told = now
            shown = f" {percent} %" if progress.step is MoveStep.COPYING and percent else ""
            detail = (
                progress.detail if progress.step is not MoveStep.STAYS else ""
            )  # said at the end
            narrate(f"{progress.step.value}{shown} {detail}".rstrip())


def _asks(settings: Settings) -> Ask:
    async def ask(request: Json) -> Json:
        return (await ask_or_do(settings, request))[0]

    return ask


def _ask(settings: Settings, request: Json) -> Json:
    answer, _ = asyncio.run(ask_or_do(settings, request))
    return answer
