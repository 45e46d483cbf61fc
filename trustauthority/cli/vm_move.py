# ruff: noqa: D417 - options is documented by its class
"""``ta vm migrate``: order a move and watch it."""

from datetime import timedelta
from typing import Annotated

from cyclopts import App, Parameter

from trustauthority.cli import orders
from trustauthority.cli.examples import examples
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.options import DEFAULTS, DryRun, Duration, Options
from trustauthority.cli.render import STRONG, Field, Marked
from trustauthority.cli.session import session
from trustauthority.cli.text import absolute, moment
from trustauthority.client.plain import word


def migrate(
    vm: str,
    host: str,
    /,
    *,
    wait: Annotated[bool, Parameter(negative="--no-wait")] = True,
    ttl: Duration = timedelta(0),
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Order the move of a running VM to another host, and watch it: offer, prepare, copy, switch, resume.

    The agent of the VM's host carries it out. Interrupted, this command takes the order back if it
    has not begun; what has begun goes on: ta placement cancel stops it. Exits 0 when the VM runs there, 1 when it stays.

    Args:
        vm: Id of the VM.
        host: Name or id of the destination.
        wait: Watch it to its end.
        ttl: How long it may wait to be begun (10m unless given, at most 24h).
        dry_run: Only check.
    """
    from trustauthority.client.errors import ClientError

    with session(options) as ta:
        ttl_ms = ttl // timedelta(milliseconds=1)
        order = orders.place(ta, vm, host, ttl_ms=ttl_ms, dry_run=dry_run)
        if wait and not dry_run:
            progress = orders.Progress(ta)
            order_id = order.order_id
            progress.show(order)
            try:
                for changed in orders.news(ta, lambda: [order_id]):
                    for each in changed:
                        order = each if each.order_id == order_id else order
                    progress.show(order)
                    if not orders.is_open(order):
                        break
            except KeyboardInterrupt:
                progress.end()
                try:
                    orders.cancel(ta, order_id, unless_begun=True)
                except ClientError as error:
                    ta.screen.say(f"it goes on ({error}): ta placement orders --vm {vm}")
                else:
                    ta.screen.say("the order was taken back; nothing had begun")
                return ExitCode.INTERRUPTED
            progress.end()
        state = word(order, "state")
        said = {"done": f"runs on {host}", "ordered": f"is to move to {host}"}
        what = f"would move to {host}" if dry_run else said.get(state, f"stays: {state}")
        ta.screen.record(
            Marked(text=f"VM {vm} {what}", style=STRONG),
            [
                Field("order", "" if dry_run else order.order_id),
                Field("from", order.source_host_name or order.source_host_id),
                Field("to", order.destination_host_name or order.destination_host_id),
                Field("state", "" if dry_run else state),
                Field("why", order.detail),
                Field("lapses", absolute(moment(order.expires_at)) if state == "ordered" else ""),
            ],
            name=order.order_id,
            data=order,
        )
    return ExitCode.YES if dry_run or state in {"done", "ordered"} else ExitCode.NO


def add_to(app: App) -> None:
    """Register the command with ``ta vm``."""
    app.command(
        migrate,
        help_epilogue=examples(
            "ta vm migrate payroll esx-a02", "ta vm migrate payroll esx-a02 --no-wait -o name"
        ),
    )
