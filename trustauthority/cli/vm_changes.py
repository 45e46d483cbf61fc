# ruff: noqa: D417 - options is documented by its class
"""``ta vm reprofile`` and ``retire``: changes of protected VMs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from trustauthority.cli.examples import examples
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.hexes import sha256_argument
from trustauthority.cli.host_program import profile_of
from trustauthority.cli.options import DEFAULTS, DryRun, Options
from trustauthority.cli.render import STRONG, Field, Marked
from trustauthority.cli.session import Session, session
from trustauthority.cli.vm_view import vm_fields

if TYPE_CHECKING:
    from trustauthority.v1.keyprovider_pb2 import Vm


def reprofile(
    vm: str,
    /,
    *,
    profile_sha256: Annotated[str, Parameter(name="--profile-sha256")] = "",
    definition: Path | None = None,
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Let a VM start with another definition. It counts at the next start; the running VM goes on.

    Another boot disk or firmware may read what the VM protects: look at what you approve.

    Args:
        vm: Id of the VM.
        profile_sha256: SHA-256 of the new profile, from hostagent vm profile.
        definition: The new definition instead, as virsh dumpxml --inactive prints it; read by the
            hostagent of this machine.
        dry_run: Only check.
    """
    from trustauthority.errors import InvalidRequest
    from trustauthority.v1 import keyprovider_pb2 as keys
    from trustauthority.v1.keyprovider_pb2_grpc import VmServiceStub

    if bool(profile_sha256) == (definition is not None):
        raise InvalidRequest("give --profile-sha256 or --definition", field="profile_sha256")
    digest = (
        profile_of(definition, vm=vm)
        if definition is not None
        else sha256_argument(profile_sha256, "--profile-sha256")
    )
    with session(options) as ta:
        service = ta.authority.on(VmServiceStub)
        before = service.read(lambda s: s.GetVm, keys.GetVmRequest(vm_id=vm)).vm
        old = before.profile_digest.hex() or "any definition"
        ta.screen.say(f"  old profile  {old}\n  new profile  {digest.hex()}")
        if not dry_run:
            ta.confirm(f"VM {vm} may start with the new definition.")
        request = keys.ReprofileVmRequest(
            vm_id=vm, profile_digest=digest, replaces=before.profile_digest, dry_run=dry_run
        )
        after = service.write(lambda s: s.ReprofileVm, request).vm
        what = "would have another profile" if dry_run else "has another profile"
        _show(ta, after, what)
    return ExitCode.YES


def retire(
    vm: str,
    /,
    *,
    even_if_held: Annotated[bool, Parameter(negative="")] = False,
    why: str = "",
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Take a VM out of placement for good: no host gets its key any more.

    Its key record stays, for those who have to read its disks later.

    Args:
        vm: Id of the VM.
        even_if_held: Also while a host holds it: it is destroyed there when its lease ends.
        why: For the audit log.
        dry_run: Only check.
    """
    from trustauthority.v1 import keyprovider_pb2 as keys
    from trustauthority.v1.keyprovider_pb2_grpc import VmServiceStub

    with session(options) as ta:
        if not dry_run:
            ta.confirm(f"Retire VM {vm}: no host may ever run it again.")
        request = keys.RetireVmRequest(
            vm_id=vm, even_if_held=even_if_held, why=why, dry_run=dry_run
        )
        after = ta.authority.on(VmServiceStub).write(lambda s: s.RetireVm, request).vm
        _show(ta, after, "would be retired" if dry_run else "is retired")
    return ExitCode.YES


def _show(ta: Session, vm: "Vm", what: str, *more: Field) -> None:
    title = Marked(text=f"VM {vm.vm_id} {what}", style=STRONG)
    ta.screen.record(title, [*vm_fields(ta.screen, vm), *more], name=vm.vm_id, data=vm)


def add_to(app: App) -> None:
    """Register these commands with ``ta vm``."""
    app.command(
        reprofile,
        help_epilogue=examples(
            "ta vm reprofile payroll --definition payroll.xml",
            "ta vm reprofile payroll --profile-sha256 91ab…07 --dry-run",
        ),
    )
    app.command(
        retire,
        help_epilogue=examples(
            "ta vm retire payroll --why 'replaced by payroll2'", "ta vm retire payroll --dry-run"
        ),
    )
