# ruff: noqa: D417 - options is documented by its class
"""``ta key rewrap`` and ``ta key jobs``: all keys of a provider by another KEK."""

import time
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from trustauthority.cli.examples import examples
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.options import DEFAULTS, DryRun, Options
from trustauthority.cli.render import CAUTION, STRONG, Column, Field, Marked
from trustauthority.cli.session import WORLD, Session, session
from trustauthority.cli.text import absolute, count, moment
from trustauthority.client.plain import word

if TYPE_CHECKING:
    from trustauthority.v1.keyadmin_pb2 import Rewrap

POLL_S = 0.5


def rewrap(
    *,
    provider: str = "default",
    to: str = "",
    new_kek: Annotated[bool, Parameter(name="--new-kek", negative="")] = False,
    wait: bool = True,
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Wrap every VM key of a provider by another KEK, while VMs run and keys are released.

    The VM keys stay the same, so this is no answer to an exposed VM key. The job goes on by itself when this
    command, or a process of the authority, ends. Exits 0 when every key is wrapped again.

    Args:
        provider: Whose keys.
        to: The provider that wraps them afterwards, such as one of another KMS; the same one unless given.
        new_kek: Make a new KEK in the KMS first.
        wait: Show the progress until it is done.
        dry_run: Only count the keys.
    """
    from trustauthority.v1 import keyadmin_pb2 as admin
    from trustauthority.v1.keyadmin_pb2_grpc import KeyAdministrationServiceStub

    with session(options) as ta:
        service = ta.authority.on(KeyAdministrationServiceStub)
        request = admin.StartRewrapRequest(
            provider=provider, target=to, new_kek=new_kek, dry_run=dry_run
        )
        job = service.write(lambda s: s.StartRewrap, request).rewrap
        if dry_run:
            words = f"{count(job.total, 'VM key')} would be wrapped again by provider {job.target}"
            ta.done(words, job, name=provider)
            return ExitCode.YES
        if wait:
            job = _follow(ta, service, job)
        _show(ta, job)
        return ExitCode.NO if word(job, "state") == "cancelled" else ExitCode.YES


def jobs(
    job_id: str = "",
    /,
    *,
    cancel: Annotated[bool, Parameter(name="--cancel", negative="")] = False,
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """List rewrap jobs, newest first; or show one, or end it.

    Args:
        job_id: Show only this one.
        cancel: End it. Keys that were wrapped again stay so.
        dry_run: With --cancel, only show what would be sent.
    """
    from trustauthority.errors import InvalidRequest
    from trustauthority.v1 import keyadmin_pb2 as admin
    from trustauthority.v1.keyadmin_pb2_grpc import KeyAdministrationServiceStub

    if cancel and not job_id:
        raise InvalidRequest("which job? ta key jobs lists them", field="job_id")
    with session(options) as ta:
        service = ta.authority.on(KeyAdministrationServiceStub)
        if cancel:
            ending = admin.CancelRewrapRequest(job_id=job_id)
            if dry_run:
                ta.would_send(ending)
                return ExitCode.YES
            _show(ta, service.write(lambda s: s.CancelRewrap, ending).rewrap)
        elif job_id:
            one = admin.GetRewrapRequest(job_id=job_id)
            _show(ta, service.read(lambda s: s.GetRewrap, one).rewrap)
        else:
            every = admin.ListRewrapsRequest(page_size=500)
            found = list(service.read(lambda s: s.ListRewraps, every).rewraps)
            ta.screen.listing(
                found,
                _COLUMNS,
                header=ta.scope(count(len(found), "job")),
                empty="No key was ever wrapped again: ta key rewrap",
                name=lambda job: job.job_id,
            )
    return ExitCode.YES


def _follow(ta: Session, service: Any, job: "Rewrap") -> "Rewrap":
    """Ask for the job until it is over; the bar is for people only."""
    from rich.console import Console
    from rich.progress import Progress

    from trustauthority.v1 import keyadmin_pb2 as admin

    err = WORLD.get().err
    request = admin.GetRewrapRequest(job_id=job.job_id)
    hidden = ta.options.quiet or not err.isatty()
    with Progress(console=Console(file=err), transient=True, disable=hidden) as progress:
        bar = progress.add_task("wrapping keys again", total=job.total)
        while word(job, "state") == "running":
            time.sleep(POLL_S)
            job = service.read(lambda s: s.GetRewrap, request).rewrap
            progress.update(
                bar, completed=job.done, description=job.detail or "wrapping keys again"
            )
    return job


def _show(ta: Session, job: "Rewrap") -> None:
    title = Marked(text=f"rewrap {job.job_id} is {word(job, 'state')}", style=STRONG)
    ta.screen.record(title, _fields(job), name=job.job_id, data=job)


def _fields(job: "Rewrap") -> list[Field]:
    failed = Marked(text=f"{job.failed}: tried again in the next pass", style=CAUTION)
    return [
        Field("keys of", job.provider),
        Field("wrapped by", f"{job.target}, KEK {job.target_kek_id}"),
        Field("done", f"{job.done} of {job.total}"),
        Field("failed", failed if job.failed else ""),
        Field("waits", job.detail),
        Field("began", f"{absolute(moment(job.created_at))} by {job.created_by}"),
        Field("got on", absolute(moment(job.updated_at))),
    ]


_COLUMNS: "list[Column[Rewrap]]" = [
    Column("JOB", lambda job: job.job_id),
    Column("STATE", lambda job: word(job, "state")),
    Column("KEYS OF", lambda job: job.provider),
    Column("WRAPPED BY", lambda job: job.target),
    Column("DONE", lambda job: f"{job.done}/{job.total}"),
    Column("WAITS", lambda job: job.detail),
    Column("BEGAN", lambda job: absolute(moment(job.created_at))),
    Column("KEK", lambda job: job.target_kek_id, wide=True),
    Column("BY", lambda job: job.created_by, wide=True),
]


def add_to(app: App) -> None:
    """Register these commands with ``ta key``."""
    app.command(
        rewrap,
        help_epilogue=examples(
            "ta key rewrap --provider default --new-kek",
            "ta key rewrap --provider kmip-1 --to bao --no-wait",
        ),
    )
    app.command(jobs, help_epilogue=examples("ta key jobs", "ta key jobs 5f0c91ab --cancel"))
