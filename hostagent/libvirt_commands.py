"""``hostagent vm``: encrypt a VM's disk, print its profile, move it by libvirt.

Stage: edge. A passphrase is never printed and never stands in a file. Exit status as in
``hostagent.main``.
"""

import asyncio
import json
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from hostagent.control import Json, NoDaemon, ask, refusal
from hostagent.direct import ask_or_do
from hostagent.domain import DefinitionInvalid, read_domain
from hostagent.migration import Ask, MoveOrder, MoveProgress, MoveStep
from hostagent.migration import migrate as move
from hostagent.protect_desk import disks_shown
from hostagent.rekey_desk import rekey_shown
from hostagent.settings import DEFAULT_CONFIG, Settings, load
from hostagent.terminal import narrate, refused, say
from hostagent.virsh import Virsh

Config = Annotated[Path, Parameter(name="--config", help="Configuration file (TOML).")]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON.")]
Flag = Annotated[bool, Parameter(negative="")]

PROTECT_S = 12 * 3600.0
"""Large disks are written in between."""

vm_app = App(name="vm", help="Protected VMs of libvirt on this host.")


@vm_app.command
def encrypt(vm: str, *, disk: Path, out: Path, config: Config = DEFAULT_CONFIG) -> int:
    """Write a disk again, encrypted with the VM's key. The key is fetched for it and given back.

    Args:
        vm: The VM.
        disk: The disk as it is: raw or qcow2, and one file without a backing file.
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
def protect(
    domain: str,
    *,
    vm: str,
    plan: Flag = False,
    passphrase_file: Path | None = None,
    erase_old_passphrase: Flag = False,
    new_disk: str = "",
    new_size: str = "",
    new_target: str = "",
    new_thin: Flag = False,
    config: Config = DEFAULT_CONFIG,
    as_json: AsJson = False,
) -> int:
    """Encrypt a domain's disks with the VM's key and define it as that VM. Needs the running agent.

    Plain disks are written again beside themselves and stay where they are; a new disk (qcow2) is made, empty
    and encrypted, and attached. ta vm protect --domain does this and the authority's part.

    Args:
        domain: The libvirt domain; shut off, without snapshots and managed save.
        vm: The VM at the authority; it has a key and this host a reason to get it.
        plan: Only say what would be done, with the digest of the profile that comes of it.
        passphrase_file: File (mode 600) whose first line opens disks that are LUKS already.
        erase_old_passphrase: Take that passphrase out of the disks when the VM's opens them.
        new_disk: Also make this disk: an absolute path, or POOL/VOLUME.
        new_size: Its size, as 20GiB.
        new_target: What the guest calls it, vda … vdz or sda … sdz; the first free vdX when not given.
        new_thin: It may be larger than what is free there now.
        config: Configuration file (TOML).
        as_json: Print JSON.
    """
    secret = str(passphrase_file.absolute()) if passphrase_file is not None else ""
    request = {"do": "vm-protect", "vm": vm, "domain": domain, "plan": plan}
    request |= {"passphrase": secret, "erase_old": erase_old_passphrase}
    if new_disk or new_size or new_target or new_thin:
        place = {"place": new_disk, "size": new_size, "target": new_target, "thin": new_thin}
        request |= {"new_disk": place}
    answer = _ask_agent(load(config), request)
    if not answer["ok"]:
        return refused(answer)
    if as_json:
        say(json.dumps(answer, indent=1))
    else:
        for line in disks_shown(answer["disks"]):
            narrate(line)
        say(str(answer["profile_sha256"]))
    return 0


@vm_app.command
def rekey(
    domain: str,
    *,
    to: int,
    erase_others: Flag = False,
    config: Config = DEFAULT_CONFIG,
    as_json: AsJson = False,
) -> int:
    """Have a VM's new key open its disks. Needs the running agent.

    Run it before ta key roll VM --to N: it sees that the old key opens the disks and holds that passphrase in
    memory for 15 minutes. Run it again afterwards: each disk gets a key slot for the new key. Repeat both if it
    was cut off. Nothing is re-encrypted: copies of the disks made before still open with the old key, and
    after a compromise only re-encrypting the disks helps.

    Args:
        domain: The libvirt domain; shut off, without vTPM, snapshots and managed save.
        to: Key epoch of the new key.
        erase_others: When the new key opens every disk, erase all other key slots, the old key's and your own.
        config: Configuration file (TOML).
        as_json: Print JSON.
    """
    request = {"do": "vm-rekey", "domain": domain, "to": to, "leave_only": erase_others}
    answer = _ask_agent(load(config), request)
    if not answer["ok"]:
        return refused(answer)
    if as_json:
        say(json.dumps(answer, indent=1))
    else:
        for line in rekey_shown(answer, to):
            narrate(line)
        say(str(answer["step"]))
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


def _ask_agent(settings: Settings, request: Json) -> Json:
    """The answer of the running agent, however large the disks are."""
    try:
        return asyncio.run(ask(settings.paths.run_dir, request, PROTECT_S))
    except NoDaemon as failure:
        return refusal("NO_AGENT", str(failure), 5)


def _ask(settings: Settings, request: Json) -> Json:
    answer, _ = asyncio.run(ask_or_do(settings, request))
    return answer
