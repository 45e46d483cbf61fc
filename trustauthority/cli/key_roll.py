# ruff: noqa: D417 - options is documented by its class
"""``ta key roll``: a new key for a VM, beside the one it has, and which of the two hosts get."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from trustauthority.cli.examples import examples
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.key_holders import PLAN_FORMAT
from trustauthority.cli.key_states import DISK_IS_NOT_RE_ENCRYPTED, key_fields
from trustauthority.cli.options import DEFAULTS, DryRun, Options
from trustauthority.cli.render import STRONG, Marked
from trustauthority.cli.session import Session, session
from trustauthority.client.plain import plain

if TYPE_CHECKING:
    from trustauthority.v1.keyprovider_pb2 import VmKey


def roll(
    vm: str = "",
    /,
    *,
    to: Annotated[int, Parameter(name="--to", show_default=False)] = 0,
    plan: Path | None = None,
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Make a new key for a VM, or say which of its keys hosts get. It changes key slots, never the disk's data.

    Without --to a new key is made and waits: nothing changes for hosts. With --to N hosts get key N from then
    on; the other key stays usable, so that --to leads back, until ta key deactivate VM --epoch ends it.
    docs/how-to/rotate-keys.md says what to do on the host in between.

    Args:
        vm: Id of the VM.
        to: Key epoch that hosts get from now on.
        plan: Instead of one VM: make new keys for those that ta key exposed --plan found.
        dry_run: Only check.
    """
    from trustauthority.errors import InvalidRequest
    from trustauthority.v1 import keyadmin_pb2 as admin
    from trustauthority.v1.keyadmin_pb2_grpc import KeyAdministrationServiceStub

    if bool(vm) == (plan is not None) or (to and plan is not None):
        raise InvalidRequest("name one VM, or give a --plan", field="vm")
    vms = [vm] if plan is None else _planned(plan)
    with session(options) as ta:
        service = ta.authority.on(KeyAdministrationServiceStub)
        if to:
            if not dry_run:
                ta.confirm(
                    f"Hosts get key {to} of {vm}: a disk without a key slot for it does not open."
                )
            wanted = admin.SwitchKeyRequest(vm_id=vm, key_epoch=to, dry_run=dry_run)
            made = [service.write(lambda s: s.SwitchKey, wanted).key]
        else:
            made = [
                service.write(
                    lambda s: s.RollKey, admin.RollKeyRequest(vm_id=each, dry_run=dry_run)
                ).key
                for each in vms
            ]
        _show(ta, made, dry_run=dry_run)
    return ExitCode.YES


def _planned(plan: Path) -> list[str]:
    from trustauthority.errors import InvalidRequest

    try:
        found: Any = json.loads(plan.read_text(encoding="utf-8"))
        if found["format"] == PLAN_FORMAT:
            return [str(each["vm"]) for each in found["vms"] if each["roll"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidRequest(f"{plan} is no plan of ta key exposed", field="plan") from error
    raise InvalidRequest(f"{plan} is no plan of ta key exposed", field="plan")


def _show(ta: Session, made: "list[VmKey]", *, dry_run: bool) -> None:
    if ta.screen.for_machines:
        data = plain(made[0]) if len(made) == 1 else [plain(key) for key in made]
        ta.screen.machine(data, names=[key.vm_id for key in made])
        return
    for key in made:
        verb = "would be there" if dry_run else "is there"
        ta.screen.line(Marked(text=f"key {key.key_epoch} of {key.vm_id} {verb}", style=STRONG))
        ta.screen.fields(key_fields(ta, key))
    ta.screen.warn(f"this changes key slots only: {DISK_IS_NOT_RE_ENCRYPTED}")


def add_to(app: App) -> None:
    """Register this command with ``ta key``."""
    app.command(
        roll,
        help_epilogue=examples(
            "ta key roll payroll",
            "ta key roll payroll --to 2",
            "ta key roll --plan rekey.json --dry-run",
        ),
    )
