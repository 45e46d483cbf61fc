# ruff: noqa: D417 - options is documented by its class
"""``ta key who-held`` and ``ta key exposed``: which keys went where, and what must be done about it."""

import json
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from trustauthority.cli.examples import examples
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.key_states import DISK_IS_NOT_RE_ENCRYPTED
from trustauthority.cli.options import DEFAULTS, Duration, Options
from trustauthority.cli.paging import all_pages
from trustauthority.cli.render import CAUTION, Cell, Column, Marked
from trustauthority.cli.session import Session, session
from trustauthority.cli.text import absolute, count, moment

if TYPE_CHECKING:
    from trustauthority.v1.keyadmin_pb2 import HeldKey

PLAN_FORMAT = "ta-rekey-plan-v1"
EVER = timedelta(0)


def who_held(*, host: str, since: Duration = EVER, options: Options = DEFAULTS) -> ExitCode:
    """List every VM key that a host ever held, from the audit log: what was released to it, and until when.

    Args:
        host: Name or id of the host.
        since: Leave out what the host had given back or handed over longer ago than this.
    """
    with session(options) as ta:
        held = _ask(ta, since=since, host=host)
        ta.screen.listing(
            held,
            _COLUMNS,
            header=ta.scope(f"{count(len(held), 'release')} to {host}"),
            empty=f"No key was ever released to {host}.",
            name=lambda each: each.vm_id,
        )
    return ExitCode.YES


def exposed(
    *,
    host: str = "",
    baseline: str = "",
    ek_model: Annotated[str, Parameter(name="--ek-model")] = "",
    since: Duration = EVER,
    plan: Path | None = None,
    options: Options = DEFAULTS,
) -> ExitCode:
    """List VM keys that went to hosts of a kind that turned out to be bad, and plan their rekeying.

    Exits 1 when there are any. A new key does not help a disk that was read: re-encrypt it.

    Args:
        host: Hosts that are this one.
        baseline: Hosts that matched this baseline when they got the key: its name, or component=name.
        ek_model: Hosts whose TPM's description holds this text, such as its maker.
        since: Leave out what the host had given back or handed over longer ago than this.
        plan: Write the plan to this file, for ta key roll --plan.
    """
    from trustauthority.errors import AlreadyExists, InvalidRequest

    if not (host or baseline or ek_model):
        raise InvalidRequest("say --host, --baseline or --ek-model", field="host")
    if plan is not None and plan.exists():
        raise AlreadyExists(f"{plan} exists", kind="file", name=str(plan))
    with session(options) as ta:
        held = _ask(ta, since=since, host=host, baseline=baseline, tpm=ek_model)
        made = _plan(held, {"host": host, "baseline": baseline, "ekModel": ek_model})
        if plan is not None:
            plan.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
        if ta.screen.for_machines:
            ta.screen.machine(made, names=[each["vm"] for each in made["vms"]])
        elif held:
            _show(ta, made, plan)
        else:
            ta.screen.line("No key went to such a host.")
    return ExitCode.NO if held else ExitCode.YES


def _ask(
    ta: Session, *, since: timedelta, host: str = "", baseline: str = "", tpm: str = ""
) -> "list[HeldKey]":
    from trustauthority.v1 import keyadmin_pb2 as admin
    from trustauthority.v1.keyadmin_pb2_grpc import KeyAdministrationServiceStub

    service = ta.authority.on(KeyAdministrationServiceStub)
    request = admin.ListKeyHoldersRequest(host=host, baseline=baseline, tpm=tpm, page_size=500)
    if since:
        request.since.FromDatetime(ta.now - since)

    def fetch(token: str) -> admin.ListKeyHoldersResponse:
        request.page_token = token
        reply: admin.ListKeyHoldersResponse = service.read(lambda s: s.ListKeyHolders, request)
        return reply

    return list(all_pages(fetch, lambda page: page.held))


def _plan(held: "list[HeldKey]", because: dict[str, str]) -> dict[str, Any]:
    """The keys, each once, with everybody who had it; those that were replaced need no new key."""
    hosts: dict[tuple[str, int], set[str]] = {}
    current = {each.vm_id: each.current_key_epoch for each in held}
    for each in held:
        hosts.setdefault((each.vm_id, each.key_epoch), set()).add(each.host_name or each.host_id)
    return {
        "format": PLAN_FORMAT,
        "because": {name: value for name, value in because.items() if value},
        "vms": [
            {
                "vm": vm,
                "keyEpoch": epoch,
                "roll": epoch == current[vm],
                "reencryptDisk": True,
                "heldBy": sorted(who),
            }
            for (vm, epoch), who in sorted(hosts.items())
        ],
    }


def _show(ta: Session, made: dict[str, Any], plan: Path | None) -> None:
    ta.screen.line(ta.scope(count(len(made["vms"]), "exposed VM key")))
    ta.screen.table(
        ["VM", "KEY EPOCH", "HELD BY", "TO DO"],
        [
            [
                each["vm"],
                str(each["keyEpoch"]),
                ", ".join(each["heldBy"]),
                "new key, re-encrypt the disk" if each["roll"] else "re-encrypt the disk",
            ]
            for each in made["vms"]
        ],
    )
    ta.screen.warn(DISK_IS_NOT_RE_ENCRYPTED)
    if plan is not None:
        ta.screen.line(f"the plan is in {plan}: ta key roll --plan {plan}")


def _until(held: "HeldKey") -> Cell:
    ended = moment(held.ended_at)
    return absolute(ended) if ended else Marked(text="! never given back", style=CAUTION)


_COLUMNS: "list[Column[HeldKey]]" = [
    Column("VM", lambda held: held.vm_id),
    Column("KEY EPOCH", lambda held: str(held.key_epoch)),
    Column("RELEASED", lambda held: absolute(moment(held.released_at))),
    Column("UNTIL", _until),
    Column("PURPOSE", lambda held: held.purpose),
    Column("BASELINE", lambda held: held.baseline),
    Column("GRANT EPOCH", lambda held: str(held.grant_epoch), wide=True),
    Column("TPM", lambda held: held.tpm, wide=True),
    Column("VERDICT", lambda held: held.verdict_id, wide=True),
]


def add_to(app: App) -> None:
    """Register these commands with ``ta key``."""
    app.command(
        who_held,
        help_epilogue=examples(
            "ta key who-held --host esx-a03", "ta key who-held --host esx-a03 --since 30d -o json"
        ),
    )
    app.command(
        exposed,
        help_epilogue=examples(
            "ta key exposed --host esx-a03 --plan rekey.json",
            "ta key exposed --baseline kernel=6.1.0-28 --since 90d",
        ),
    )
