"""Encrypt a VM's disk with the key of the VM.

Stage: edge of the agent. Trusts qemu-img of this host. Guarantees that a passphrase reaches
qemu-img through a descriptor only, never a file system, and that a key fetched for a disk is given back whatever happened.
"""

from dataclasses import dataclass
from pathlib import Path

from hostagent.control import Json, refusal
from hostagent.disk_image import DiskNotAlone, publish, require_alone, unfinished
from hostagent.failure import CallFailed, Failure, FailureKind
from hostagent.lease_model import Phase
from hostagent.libvirt_vms import disk_passphrase
from hostagent.luks import ITERATIONS, LuksFailed, run_qemu, sync
from hostagent.vm_desk import VM_ID, VmDesk


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskDesk:
    """Encrypts disks with the keys of VMs."""

    desk: VmDesk

    async def encrypt(self, vm_id: str, source: Path, target: Path) -> Json:
        """Write ``source`` as an encrypted qcow2 to ``target``; the VM must not run anywhere.

        Raises CallFailed.
        """
        keeper = self.desk.keeper
        if not VM_ID.fullmatch(vm_id):
            return refusal("INVALID_REQUEST", "vm: 1-63 of a-z 0-9 . _ -", 2)
        if keeper.view(vm_id).phase is not Phase.IDLE:
            return refusal(
                "NOT_NOW", f"this host is «{keeper.view(vm_id).phase.value}» with the VM"
            )
        async with self.desk.borrowing(vm_id):
            answer = await self.desk.lend_key(
                vm_id,
                move_id="",
                profile_sha256=None,
                hand_out=lambda key: _encrypt(disk_passphrase(key, vm_id), source, target),
            )
        return {**answer, "disk": str(target)} if answer["ok"] else answer


def _encrypt(passphrase: bytes, source: Path, target: Path) -> None:
    """Runs in the thread that holds the opened key."""
    if target.exists():
        raise _failed(f"{target} exists")
    options = f"encrypt.format=luks,encrypt.key-secret=disk,encrypt.{ITERATIONS}"
    try:
        kind = require_alone(source)
        with unfinished(target) as new:
            words = ("-f", kind, "-O", "qcow2", "-o", options, str(source), str(new))
            run_qemu("qemu-img", "convert", *words, disk=passphrase)
            sync(new)
            publish(new, target)
    except (DiskNotAlone, LuksFailed, OSError) as failure:
        raise _failed(str(failure)) from failure


def _failed(detail: str) -> CallFailed:
    return CallFailed(Failure(kind=FailureKind.LOCAL, reason="DISK_NOT_ENCRYPTED", detail=detail))
