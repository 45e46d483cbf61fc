"""Open grants for VMs, never older ones than were seen, and hand keys out.

Stage: between lease machine and hypervisor. Trusts the release key pinned at enrolment. Guarantees
that the highest epochs of each VM survive a restart and a reboot, that a key that leaves goes into
one file of mode 0600, and that every copy made here is overwritten. Does not hold keys.
"""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hostagent.failure import CallFailed, Failure, FailureKind
from hostagent.files import read_json, write_json
from hostagent.grant import GrantRefused, GrantRequest, open_key_grant, read_key_grant, wipe
from hostagent.identity import Identity
from hostagent.keys import HostKeys
from hostagent.ports import TpmPort

HandOut = Callable[[bytearray], None]
"""Takes an opened key, in a thread, before it is wiped."""
Expect = Callable[[int], None]
"""Sees the key epoch of a grant, in a thread, before the key is handed out; raises to refuse it."""

_EPOCHS = "epochs.json"
_PURPOSES = {True: "prepare", False: "run"}
_SHARE = "share"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedKey:
    """What may be said of a key that was opened."""

    length: int
    sha256: str
    grant_epoch: int
    key_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyOpener:
    """Opens grants in this host's TPM."""

    tpm: TpmPort
    keys: HostKeys
    identity: Identity
    state_dir: Path

    async def open(
        self,
        wire: bytes,
        *,
        vm_id: str,
        request_id: str,
        prepares: bool = False,
        shared: bool = False,
        hand_out: HandOut | None,
        expect: Expect | None = None,
    ) -> OpenedKey:
        """Open a grant, let ``hand_out`` have the key, wipe it.

        No older key epoch is opened afterwards; with ``expect``, that begins when ``hand_out`` has done
        what it does, for until then only the older key may open the disks.

        Raises CallFailed, or as ``expect`` and ``hand_out`` do.
        """
        try:
            return await asyncio.to_thread(
                self._open,
                wire,
                vm_id=vm_id,
                request_id=request_id,
                purpose=_SHARE if shared else _PURPOSES[prepares],
                hand_out=hand_out,
                expect=expect,
            )
        except GrantRefused as failure:
            raise CallFailed(_refused(failure)) from failure

    def _open(
        self,
        wire: bytes,
        *,
        vm_id: str,
        request_id: str,
        purpose: str,
        hand_out: HandOut | None,
        expect: Expect | None,
    ) -> OpenedKey:
        release_key = self.identity.release_key()
        grant = read_key_grant(wire, (release_key,))
        lowest = self._lowest(vm_id)
        asked = GrantRequest(
            vm_id=vm_id,
            host_id=self.identity.host_id,
            storage_name=self.keys.storage.name,
            request_id=request_id,
            purpose=purpose,
            lowest_grant_epoch=lowest[0],
            lowest_key_epoch=lowest[1],
        )
        key = open_key_grant(
            wire, asked=asked, release_keys=(release_key,), tpm=self.tpm, storage=self.keys.storage
        )
        try:
            self._remember(vm_id, grant.grant_epoch, lowest[1] if expect else grant.key_epoch)
            if expect is not None:
                expect(grant.key_epoch)
            if hand_out is not None:
                hand_out(key)
            self._remember(vm_id, grant.grant_epoch, grant.key_epoch)
            return OpenedKey(
                length=len(key),
                sha256=hashlib.sha256(key).hexdigest(),
                grant_epoch=grant.grant_epoch,
                key_epoch=grant.key_epoch,
            )
        finally:
            wipe(key)

    def _lowest(self, vm_id: str) -> tuple[int, int]:
        seen = (read_json(self.state_dir / _EPOCHS) or {}).get(vm_id, [0, 0])
        return int(seen[0]), int(seen[1])

    def _remember(self, vm_id: str, grant_epoch: int, key_epoch: int) -> None:
        path = self.state_dir / _EPOCHS
        epochs = read_json(path) or {}
        if epochs.get(vm_id) != [grant_epoch, key_epoch]:
            write_json(path, {**epochs, vm_id: [grant_epoch, key_epoch]})


def claimed_request(wire: bytes, identity: Identity) -> tuple[str, str, bool]:
    """VM, request id and whether it prepares a move, as a signed grant says. Raises CallFailed.

    For grants that were saved: whoever saved it had asked for it.
    """
    try:
        grant = read_key_grant(wire, (identity.release_key(),))
    except GrantRefused as failure:
        raise CallFailed(_refused(failure)) from failure
    return grant.vm_id, grant.request_id, grant.purpose == _PURPOSES[True]


def _refused(failure: GrantRefused) -> Failure:
    reason = "GRANT_" + failure.reason.upper().replace("-", "_")
    return Failure(kind=FailureKind.REFUSED, reason=reason, detail=str(failure), exit_code=1)
