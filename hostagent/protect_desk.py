"""Protect a domain of this host: encrypt its disks with the VM's key, or make one, then define it anew.

Stage: edge of the agent. Trusts qemu-img and libvirt of this host. Guarantees that nothing is lost on
failure: a plain disk is written again beside itself, compared, and stays where it is; a LUKS disk gets
the VM's passphrase beside the old one, which is erased only if that was asked for and after the
new one opened it; a new disk takes the place of nothing; the definition is replaced last, and put back if libvirt made another one of it.
A key that was fetched for it is given back whatever happened.
"""

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hostagent.control import Json
from hostagent.disk_image import DiskNotAlone, publish, require_alone, unfinished
from hostagent.disk_making import DiskNotMade, make, path_in_pool, require_place
from hostagent.domain import DefinitionInvalid, read_domain
from hostagent.failure import CallFailed, Failure, FailureKind
from hostagent.files import read_private
from hostagent.lease_model import Phase
from hostagent.libvirt_vms import disk_passphrase
from hostagent.luks import (
    ITERATIONS,
    LuksFailed,
    add_passphrase,
    escaped,
    luks_options,
    run_qemu,
    sync,
)
from hostagent.new_disk import NewDisk, NewDiskInvalid, Volume, asked_for, place_of, size_of
from hostagent.protection import DiskPlan, DiskState, Protection, protect_definition
from hostagent.virsh import Virsh
from hostagent.vm_desk import VM_ID, VmDesk

_VTPMS = Path("/var/lib/libvirt/swtpm")
_MAX_PASSPHRASE = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtectDesk:
    """Protects domains."""

    desk: VmDesk
    virsh: Virsh
    host_name: str
    disk_folders: tuple[Path, ...] = ()
    """Below which new disks may be made."""

    async def handle(self, request: Json) -> Json:
        """Plan, or do it. Raises CallFailed, or KeyError and TypeError for a request that is none."""
        vm_id, domain = str(request["vm"]), str(request["domain"])
        if not VM_ID.fullmatch(vm_id):
            raise _refused("INVALID_REQUEST", "vm: 1-63 of a-z 0-9 . _ -", 2)
        code, definition, problem = await self.virsh.run("dumpxml", "--inactive", domain)
        if code != 0:
            raise _refused("NO_SUCH_DOMAIN", problem, 3)
        new, pool = await self._new_disk(request)
        try:
            plan = protect_definition(definition.encode(), vm_id, new)
        except DefinitionInvalid as failure:
            raise _refused("DEFINITION_INVALID", f"{domain}: {failure}", 2) from failure
        if new is not None and plan.has(DiskState.NEW):
            await asyncio.to_thread(_require_place, new, self.disk_folders)
        if not request.get("plan"):
            await require_at_rest(self.virsh, plan.domain, plan.uuid)
            await asyncio.to_thread(_require_room, plan, request)
            await self._encrypt(plan, vm_id, request, new)
            if pool:  # it is a volume of it from now on; the disk does not depend on that
                await self.virsh.run("pool-refresh", pool)
            await self._define(plan, definition.encode(), vm_id)
        return {"ok": True, **self._described(plan, vm_id)}

    async def _new_disk(self, request: Json) -> tuple[NewDisk | None, str]:
        """The disk that is to be made, if any, and the pool that it is to be in. Raises CallFailed."""
        try:
            asked = asked_for(request)
            if asked is None:
                return None, ""
            place, size = place_of(str(asked["place"])), size_of(str(asked["size"]))
            pool = place.pool if isinstance(place, Volume) else ""
            path = await path_in_pool(self.virsh, place) if isinstance(place, Volume) else place
        except NewDiskInvalid as failure:
            raise _refused("INVALID_REQUEST", str(failure), 2) from failure
        except DiskNotMade as failure:
            raise _refused("NOT_NOW", str(failure), 1) from failure
        target, thin = str(asked.get("target", "")), bool(asked.get("thin"))
        return NewDisk(path=path, size_bytes=size, target=target, thin=thin), pool

    def _described(self, plan: Protection, vm_id: str) -> Json:
        disks = [
            {"target": d.target, "was": d.state.value, "plain": d.source, "disk": d.encrypted}
            for d in plan.disks
        ]
        shown = {"vm": vm_id, "domain": plan.domain, "host": self.host_name, "disks": disks}
        return {**shown, "profile_sha256": plan.profile_sha256.hex()}

    async def _encrypt(
        self, plan: Protection, vm_id: str, request: Json, made: NewDisk | None
    ) -> None:
        todo = [disk for disk in plan.disks if disk.state is not DiskState.DONE]
        phase = self.desk.keeper.view(vm_id).phase
        if phase is not Phase.IDLE:
            raise _not_now(plan.domain, f"this host is «{phase}» with the VM")
        if not todo:
            return
        old = _passphrase(request.get("passphrase"))
        erase = bool(request.get("erase_old"))

        def hand_out(key: bytearray) -> None:
            new = disk_passphrase(key, vm_id)
            for disk in todo:
                if disk.state is DiskState.PLAIN:
                    _write_again(disk, new)
                elif disk.state is DiskState.NEW and made is not None:
                    _make(made, new)
                else:
                    _add_passphrase(disk, old, new, erase=erase)

        async with self.desk.borrowing(vm_id):
            answer = await self.desk.lend_key(
                vm_id, move_id="", profile_sha256=plan.profile_sha256, hand_out=hand_out
            )
        if not answer["ok"]:
            raise _refused(answer["reason"], answer["detail"], int(answer["exit_code"]))

    async def _define(self, plan: Protection, before: bytes, vm_id: str) -> None:
        problem = await self._replace(plan.definition)
        if not problem:
            _, made, _ = await self.virsh.run("dumpxml", "--inactive", plan.uuid)
            now = read_domain(made.encode())
            if (now.vm_id, now.profile_sha256) == (vm_id, plan.profile_sha256):
                return
            problem = "libvirt made another definition of it"
            await self._replace(before)
        raise _failed(f"the disks are encrypted, but {plan.domain} is defined as before: {problem}")

    async def _replace(self, definition: bytes) -> str:
        """Define a domain; what went wrong, or nothing. A definition holds no secret."""
        with tempfile.NamedTemporaryFile(suffix=".xml") as file:
            await asyncio.to_thread(file.write, definition)
            file.flush()
            code, _, problem = await self.virsh.run("define", file.name)
        return "" if code == 0 else problem or "virsh define failed"


async def require_at_rest(virsh: Virsh, domain: str, uuid: str) -> None:
    """The domain is off, and nothing of it lies around in the clear. Raises CallFailed."""
    if not (await virsh.state(uuid) or "").startswith("shut off"):
        raise _not_now(domain, "shut it down first")
    code, info, _ = await virsh.run("dominfo", uuid)
    managed = [line for line in info.splitlines() if line.startswith("Managed save:")]
    if code != 0 or not managed or managed[0].split()[-1] != "no":
        raise _not_now(
            domain, "it has a managed save: its memory in the clear; start it, shut it down"
        )
    code, snapshots, _ = await virsh.run("snapshot-list", uuid, "--name")
    if code != 0 or snapshots.strip():
        raise _not_now(domain, "it has snapshots, which would stay as they are: delete them")


def _require_room(plan: Protection, request: Json) -> None:
    """What the files of this host have to be like. Raises CallFailed."""
    if plan.vtpm_new and (_VTPMS / plan.uuid).exists():
        state = _VTPMS / plan.uuid
        raise _not_now(
            plan.domain, f"its vTPM has a state in the clear: remove {state}, or the vTPM"
        )
    if any(d.state is DiskState.LUKS for d in plan.disks) and not request.get("passphrase"):
        raise _not_now(
            plan.domain, "it has a LUKS disk: give its passphrase with --passphrase-file"
        )
    for disk in plan.disks:
        if disk.state not in {DiskState.DONE, DiskState.NEW}:
            try:
                require_alone(Path(disk.source), disk.format)
            except DiskNotAlone as failure:
                raise _not_now(plan.domain, str(failure)) from failure
        if disk.state is DiskState.PLAIN and Path(disk.encrypted).exists():
            raise _not_now(plan.domain, f"{disk.encrypted} exists: remove what an earlier try left")


def _require_place(disk: NewDisk, folders: Sequence[Path]) -> None:
    try:
        require_place(disk, folders)
    except DiskNotMade as failure:
        raise _refused("NOT_NOW", f"new disk: {failure}", 1) from failure


def _not_now(domain: str, detail: str) -> CallFailed:
    return _refused("NOT_NOW", f"{domain}: {detail}", 1)


def _refused(reason: str, detail: str, exit_code: int) -> CallFailed:
    kind = FailureKind.REFUSED
    return CallFailed(Failure(kind=kind, reason=reason, detail=detail, exit_code=exit_code))


def _passphrase(path: object) -> bytes:
    """The first line of a private file. Raises CallFailed."""
    if not path:
        return b""
    try:
        content = read_private(Path(str(path)))
    except Exception as failure:  # InsecureFile, OSError: said, never guessed around
        raise _failed(f"the file of the passphrase: {failure}") from failure
    line = content.split(b"\n", 1)[0]
    if not 0 < len(line) <= _MAX_PASSPHRASE:
        raise _failed("the file of the passphrase has no first line, or a very long one")
    return line


def _write_again(disk: DiskPlan, new: bytes) -> None:
    """A plain disk beside itself, encrypted, and compared. Runs in the thread of the opened key."""
    target = Path(disk.encrypted)
    options = f"encrypt.format=luks,encrypt.key-secret=new,encrypt.{ITERATIONS}"
    words = ("-f", disk.format, "-O", "qcow2", "-o", options)
    with unfinished(target) as written:
        _qemu_img("convert", *words, disk.source, str(written), new=new)
        plain = f"driver={disk.format},file.filename={escaped(disk.source)}"
        _qemu_img("compare", "--image-opts", plain, luks_options(written), new=new)
        sync(written)
        _publish(written, target)


def _publish(written: Path, target: Path) -> None:
    try:
        publish(written, target)
    except OSError as failure:
        raise _failed(f"{target}: {failure.strerror}: remove it, then repeat") from failure


def _make(disk: NewDisk, new: bytes) -> None:
    try:
        make(disk, new)
    except DiskNotMade as failure:
        raise _failed(str(failure)) from failure


def _add_passphrase(disk: DiskPlan, old: bytes, new: bytes, *, erase: bool) -> None:
    """A LUKS disk that opens with the VM's passphrase too, or (erase) only."""
    image = Path(disk.source)
    try:
        add_passphrase(image, old, new)
    except LuksFailed as failure:
        raise _failed(str(failure)) from failure
    if erase:
        gone = ("-o", "encrypt.state=inactive,encrypt.old-secret=old")
        _qemu_img("amend", "--image-opts", luks_options(image), *gone, old=old, new=new)


def _qemu_img(command: str, *words: str, **secrets: bytes) -> str:
    """Run qemu-img. Raises CallFailed."""
    try:
        return run_qemu("qemu-img", command, *words, **secrets)
    except LuksFailed as failure:
        raise _failed(str(failure)) from failure


def _failed(detail: str) -> CallFailed:
    return CallFailed(Failure(kind=FailureKind.LOCAL, reason="DOMAIN_NOT_PROTECTED", detail=detail))


def disks_shown(disks: Sequence[Json]) -> list[str]:
    """For people: what happened to each disk."""
    told = {
        "plain": "written again as {disk}; {plain} is still there in the clear",
        "new": "{disk} was made, empty; only the VM's key opens it",
        "luks": "opens with the VM's key",
        "done": "was encrypted with the VM's key before",
    }
    return [f"{each['target']}: {told[each['was']].format(**each)}" for each in disks]
