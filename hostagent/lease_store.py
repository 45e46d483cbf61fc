"""What the agent remembers of each VM, in a file that a reboot empties.

Stage: state of the agent. Trusts the run folder as far as ``files`` checks it. Guarantees that
records of another boot are never taken up (VMs are gone and the clock began anew), and that a
damaged file stops the agent instead of losing leases silently. Does not decide; see ``lease``.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hostagent.files import BrokenState, read_json, write_json
from hostagent.lease_model import LeaseView, Operation, Pending, Phase, VmAction

_FORMAT = 1
_FILE = "leases.json"
_MAX_ASKED = 64
"""Request ids remembered per VM: more than anybody retries."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(slots=True)
class VmRecord:
    """One VM. Times are CLOCK_BOOTTIME milliseconds."""

    view: LeaseView = field(default_factory=LeaseView)
    asked: dict[str, int] = field(default_factory=dict)
    """First send of each request id: a retry, whoever makes it, never counts from later (N85)."""
    granted: str = ""
    """Request id of the grant that is held."""
    key_file: str = ""
    """Where the key was handed out, to be wiped."""
    lent: bool = False
    """The key is here for a disk, not to run the VM: whoever takes this record up gives it back."""
    todo: VmAction | None = None
    """Pause or destroy that was decided and not yet confirmed."""

    def first_send_ms(self, request_id: str, now_ms: int) -> int:
        """When ``request_id`` was sent first; now, if it is new."""
        first = self.asked.setdefault(request_id, now_ms)
        while len(self.asked) > _MAX_ASKED:
            del self.asked[next(iter(self.asked))]
        return first


class LeaseStore:
    """All records in one file, replaced whole."""

    def __init__(self, run_dir: Path, boot_id: str) -> None:
        self._path = run_dir / _FILE
        self._boot_id = boot_id

    def load(self) -> dict[str, VmRecord]:
        """The records of this boot. Raises BrokenState, InsecureFile."""
        document = read_json(self._path)
        if document is None or document.get("boot_id") != self._boot_id:
            return {}
        try:
            if document["format"] != _FORMAT:
                raise BrokenState(f"{self._path} is of another format")
            return {vm: _decode(record) for vm, record in document["vms"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as failure:
            raise BrokenState(
                f"{self._path} is damaged: stop the protected VMs of this host, then remove it"
            ) from failure

    def save(self, records: dict[str, VmRecord]) -> None:
        """Replace the file. Raises OSError."""
        vms = {vm: asdict(record) for vm, record in records.items()}
        write_json(self._path, {"format": _FORMAT, "boot_id": self._boot_id, "vms": vms})


def boot_id() -> str:
    """The kernel's id of this boot."""
    return BOOT_ID.read_text().strip()


def _decode(document: dict[str, Any]) -> VmRecord:
    view = dict(document["view"])
    view["phase"] = Phase(view["phase"])
    for name in ("errand", "renewal"):
        view[name] = _pending(view[name])
    todo = document["todo"]
    return VmRecord(
        view=LeaseView(**view),
        asked={str(key): int(value) for key, value in document["asked"].items()},
        granted=str(document["granted"]),
        key_file=str(document["key_file"]),
        lent=bool(document["lent"]),
        todo=None if todo is None else VmAction(todo),
    )


def _pending(document: dict[str, Any] | None) -> Pending | None:
    if document is None:
        return None
    return Pending(
        operation=Operation(document["operation"]),
        request_id=str(document["request_id"]),
        first_send_ms=int(document["first_send_ms"]),
    )
