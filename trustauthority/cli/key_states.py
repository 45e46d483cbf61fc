# ruff: noqa: D417 - options is documented by its class
"""``ta key``: the commands that take a key through its life."""

from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from trustauthority.cli.examples import examples
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.options import DEFAULTS, DryRun, Options
from trustauthority.cli.render import CAUTION, STRONG, Field, Marked
from trustauthority.cli.session import Session, session
from trustauthority.cli.text import absolute, left, moment
from trustauthority.client.plain import word

if TYPE_CHECKING:
    from trustauthority.v1.keyadmin_pb2 import KeyStep
    from trustauthority.v1.keyprovider_pb2 import VmKey

Epoch = Annotated[int, Parameter(name="--epoch", show_default=False)]
Why = Annotated[str, Parameter(name="--why")]

DISK_IS_NOT_RE_ENCRYPTED = (
    "whoever has this key and a copy of the disk still reads it: re-encrypt the disk"
)


def suspend(
    vm: str,
    /,
    *,
    epoch: Epoch = 0,
    why: Why = "",
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Stop a key for a while: it is not released, and a host that runs the VM gets no new lease.

    Args:
        vm: Id of the VM.
        epoch: Which of its keys; the current one unless given.
        why: For the audit log.
        dry_run: Only check.
    """
    from trustauthority.v1.keyadmin_pb2 import KEY_STEP_SUSPEND

    return _step(vm, KEY_STEP_SUSPEND, epoch=epoch, why=why, dry_run=dry_run, options=options)


def resume(
    vm: str,
    /,
    *,
    epoch: Epoch = 0,
    why: Why = "",
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Let a suspended key be released again.

    Args:
        vm: Id of the VM.
        epoch: Which of its keys; the current one unless given.
        why: For the audit log.
        dry_run: Only check.
    """
    from trustauthority.v1.keyadmin_pb2 import KEY_STEP_RESUME

    return _step(vm, KEY_STEP_RESUME, epoch=epoch, why=why, dry_run=dry_run, options=options)


def deactivate(
    vm: str,
    /,
    *,
    epoch: Epoch = 0,
    why: Why = "",
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Stop a key for good: no host ever gets it again, and no step leads back.

    Args:
        vm: Id of the VM.
        epoch: Which of its keys; the current one unless given.
        why: For the audit log.
        dry_run: Only check.
    """
    from trustauthority.v1.keyadmin_pb2 import KEY_STEP_DEACTIVATE

    return _step(
        vm,
        KEY_STEP_DEACTIVATE,
        epoch=epoch,
        why=why,
        dry_run=dry_run,
        options=options,
        question=f"Deactivate the key of {vm}: what only it opens stays shut, and this is final.",
    )


def compromise(
    vm: str,
    /,
    *,
    epoch: Epoch = 0,
    why: Why = "",
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Record that a key is known or feared to be exposed: no host ever gets it again.

    Args:
        vm: Id of the VM.
        epoch: Which of its keys; the current one unless given.
        why: For the audit log.
        dry_run: Only check.
    """
    from trustauthority.v1.keyadmin_pb2 import KEY_STEP_COMPROMISE

    return _step(
        vm,
        KEY_STEP_COMPROMISE,
        epoch=epoch,
        why=why,
        dry_run=dry_run,
        options=options,
        question=f"Mark the key of {vm} as compromised: it is never released again, and this is final.",
        warning=DISK_IS_NOT_RE_ENCRYPTED,
    )


def destroy(
    vm: str,
    /,
    *,
    epoch: Epoch = 0,
    why: Why = "",
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Have a deactivated or compromised key erased, after a delay in which it can be taken back.

    Args:
        vm: Id of the VM.
        epoch: Which of its keys; the current one unless given.
        why: For the audit log.
        dry_run: Only check.
    """
    from trustauthority.v1 import keyadmin_pb2 as admin
    from trustauthority.v1.keyadmin_pb2_grpc import KeyAdministrationServiceStub

    with session(options) as ta:
        if not dry_run:
            ta.confirm(
                f"Destroy the key of {vm}: what only it opens is lost when the delay is over."
            )
        request = admin.DestroyKeyRequest(vm_id=vm, key_epoch=epoch, why=why, dry_run=dry_run)
        service = ta.authority.on(KeyAdministrationServiceStub)
        _show(ta, service.write(lambda s: s.DestroyKey, request).key, dry_run=dry_run)
    return ExitCode.YES


def cancel_destroy(
    vm: str,
    /,
    *,
    epoch: Epoch = 0,
    why: Why = "",
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Take a destruction back while its delay runs. The key stays in its state.

    Args:
        vm: Id of the VM.
        epoch: Which of its keys; the current one unless given.
        why: For the audit log.
        dry_run: Only check.
    """
    from trustauthority.v1 import keyadmin_pb2 as admin
    from trustauthority.v1.keyadmin_pb2_grpc import KeyAdministrationServiceStub

    with session(options) as ta:
        request = admin.CancelDestroyKeyRequest(vm_id=vm, key_epoch=epoch, why=why, dry_run=dry_run)
        service = ta.authority.on(KeyAdministrationServiceStub)
        _show(ta, service.write(lambda s: s.CancelDestroyKey, request).key, dry_run=dry_run)
    return ExitCode.YES


def key_fields(ta: Session, key: "VmKey") -> list[Field]:
    """What is recorded of a key."""
    end, since = moment(key.destroy_at), moment(key.changed_at)
    doomed = Marked(
        text=f"{absolute(end)} ({left(end, ta.now)}); ta key cancel-destroy takes it back",
        style=CAUTION,
    )
    return [
        Field("state", word(key, "state")),
        Field("since", absolute(since) if since else ""),
        Field("destroyed at", doomed if end else ""),
        Field("key epoch", str(key.key_epoch)),
        Field("provider", key.provider),
        Field("KEK", key.kek_id),
        Field("created", f"{absolute(moment(key.created_at))} by {key.created_by}"),
    ]


def _step(
    vm: str,
    step: "KeyStep.ValueType",
    *,
    epoch: int,
    why: str,
    dry_run: bool,
    options: Options,
    question: str = "",
    warning: str = "",
) -> ExitCode:
    from trustauthority.v1 import keyadmin_pb2 as admin
    from trustauthority.v1.keyadmin_pb2_grpc import KeyAdministrationServiceStub

    with session(options) as ta:
        if question and not dry_run:
            ta.confirm(question)
        request = admin.ChangeKeyStateRequest(
            vm_id=vm, key_epoch=epoch, step=step, why=why, dry_run=dry_run
        )
        service = ta.authority.on(KeyAdministrationServiceStub)
        _show(ta, service.write(lambda s: s.ChangeKeyState, request).key, dry_run=dry_run)
        if warning:
            ta.screen.warn(warning)
    return ExitCode.YES


def _show(ta: Session, key: "VmKey", *, dry_run: bool) -> None:
    verb = "would be" if dry_run else "is"
    title = f"key {key.key_epoch} of {key.vm_id} {verb} {word(key, 'state')}"
    ta.screen.record(
        Marked(text=title, style=STRONG), key_fields(ta, key), name=key.vm_id, data=key
    )


def add_to(app: App) -> None:
    """Register these commands with ``ta key``."""
    app.command(
        suspend,
        help_epilogue=examples(
            "ta key suspend payroll --why 'audit of rack 4'", "ta key suspend payroll --dry-run"
        ),
    )
    app.command(
        resume, help_epilogue=examples("ta key resume payroll", "ta key resume payroll --dry-run")
    )
    app.command(
        deactivate,
        help_epilogue=examples(
            "ta key deactivate payroll --yes", "ta key deactivate payroll --epoch 1 --why 'rolled'"
        ),
    )
    app.command(
        compromise,
        help_epilogue=examples(
            "ta key compromise payroll --why 'host esx-a03 was rooted'",
            "ta key compromise payroll --epoch 1 --yes",
        ),
    )
    app.command(
        destroy,
        help_epilogue=examples("ta key destroy payroll --yes", "ta key destroy payroll --dry-run"),
    )
    app.command(
        cancel_destroy,
        help_epilogue=examples(
            "ta key cancel-destroy payroll", "ta key cancel-destroy payroll --epoch 1"
        ),
    )
