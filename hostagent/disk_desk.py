"""Encrypt a VM's disk with the key of the VM.

Stage: edge of the agent. Trusts qemu-img of this host. Guarantees that a passphrase reaches
qemu-img through a descriptor only, never a file system, and that a key fetched for a disk is given back whatever happened.
"""

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from hostagent.channel import new_request_id
from hostagent.control import Json, refusal
from hostagent.disk_image import DiskNotAlone, require_alone, unfinished
from hostagent.failure import CallFailed, Failure, FailureKind
from hostagent.lease_model import Phase, Stopped
from hostagent.libvirt_vms import disk_passphrase
from hostagent.vm_desk import VM_ID, VmDesk

_TOO_BUSY = b"Unable to get accurate CPU usage"
"""qemu-img on a host so busy that it can't time one round of the key derivation."""
_TRIES = 5
_PAUSE_S = 0.5
_LIMIT_S = 3600.0
"""A disk may be large; qemu-img is killed after an hour."""


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
        try:
            answer = await self.desk.lend_key(
                vm_id,
                move_id="",
                profile_sha256=None,
                hand_out=lambda key: _encrypt(disk_passphrase(key, vm_id), source, target),
            )
        finally:
            keeper.receive(vm_id, Stopped(fresh_id=new_request_id()))
            await keeper.settled(vm_id, lambda v: v.phase is Phase.IDLE, self.desk.timeout_s)
        return {**answer, "disk": str(target)} if answer["ok"] else answer


def _encrypt(passphrase: bytes, source: Path, target: Path) -> None:
    """Runs in the thread that holds the opened key."""
    if target.exists():
        raise _failed(f"{target} exists")
    try:
        kind = require_alone(source)
    except DiskNotAlone as failure:
        raise _failed(str(failure)) from failure
    reading = os.memfd_create("passphrase")  # each try reads it from the start
    os.write(reading, passphrase)
    # 256 random bits need no stretching, and each start of the VM would wait for it
    options = "encrypt.format=luks,encrypt.key-secret=disk,encrypt.iter-time=100"
    words = ("qemu-img", "convert", "-f", kind, "-O", "qcow2", "-o", options)
    secret = ("--object", f"secret,id=disk,file=/dev/fd/{reading}")
    try:
        with unfinished(target) as new:
            done = _convert((*words, *secret, str(source), str(new)), reading)
            if done.returncode != 0:
                raise _failed(done.stderr.decode(errors="replace").strip())
            new.rename(target)
    except (OSError, subprocess.TimeoutExpired) as failure:
        raise _failed(str(failure)) from failure
    finally:
        os.close(reading)


def _convert(command: tuple[str, ...], passphrase: int) -> subprocess.CompletedProcess[bytes]:
    tries = 0
    while True:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            pass_fds=(passphrase,),
            timeout=_LIMIT_S,
            check=False,
        )
        tries += 1
        if _TOO_BUSY not in done.stderr or tries == _TRIES:
            return done
        time.sleep(_PAUSE_S)


def _failed(detail: str) -> CallFailed:
    return CallFailed(
        Failure(kind=FailureKind.LOCAL, reason="DISK_NOT_ENCRYPTED", detail=f"qemu-img: {detail}")
    )
