# ruff: noqa: D417 - options is documented by its class
"""``ta host drain`` and ``undrain``: empty a host of encrypted VMs before maintenance."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from trustauthority.cli import orders
from trustauthority.cli.examples import examples
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.options import DEFAULTS, DryRun, Options
from trustauthority.cli.paging import all_pages
from trustauthority.cli.render import BAD, GOOD, QUIET, STRONG, Cell, Column, Marked
from trustauthority.cli.session import Session, session
from trustauthority.cli.text import count
from trustauthority.client.errors import ClientError
from trustauthority.client.plain import plain, word

if TYPE_CHECKING:
    from trustauthority.v1.admin_pb2 import Host
    from trustauthority.v1.placement_pb2 import Candidate, MoveOrder

MAX_PARALLEL = 8
"""As many orders of one host as the authority keeps open."""


@dataclass(slots=True)
class Leaving:
    """One VM of the host."""

    vm: str
    to: str = ""
    result: str = "waits"
    why: str = ""
    order: "MoveOrder | None" = None


@dataclass(slots=True, kw_only=True)
class Drain:
    """The VMs of one host on their way out, a bounded number at a time."""

    ta: Session
    to: str
    parallel: int
    waiting: list[Leaving]
    moving: dict[str, Leaving] = field(default_factory=dict)
    """By order."""

    def run(self) -> None:
        """Move all of them; each ends as moved or as one that stays. Raises ClientError."""
        self._fill()
        if not self.moving:
            return
        for changed in orders.news(self.ta, lambda: list(self.moving)):
            for order in changed:
                self._heard(order)
            self._fill()
            if not self.moving:
                return

    def give_up(self) -> None:
        """Take back what has not begun."""
        for order_id, leaving in self.moving.items():
            try:
                orders.cancel(self.ta, order_id, unless_begun=True)
            except ClientError:
                leaving.result, leaving.why = "goes on", "its move had begun"
            else:
                leaving.result, leaving.why = "stays", "interrupted"
        for leaving in self.waiting:
            leaving.result, leaving.why = "stays", "interrupted"

    def _fill(self) -> None:
        while self.waiting and len(self.moving) < self.parallel:
            leaving = self.waiting.pop(0)
            try:
                target = self.to or _best(self.ta, leaving)
                if not target:
                    continue
                order = orders.place(self.ta, leaving.vm, target, ttl_ms=0, dry_run=False)
            except ClientError as error:
                leaving.result, leaving.why = "stays", str(error)
                self._say(leaving)
                continue
            leaving.order, leaving.to, leaving.result = order, target, "moves"
            self.moving[order.order_id] = leaving

    def _heard(self, order: "MoveOrder") -> None:
        leaving = self.moving.get(order.order_id)
        if leaving is None:
            return
        if orders.is_open(order):
            self.ta.screen.detail(f"{leaving.vm} → {leaving.to}  {orders.told(order)}")
            return
        del self.moving[order.order_id]
        done = word(order, "state") == "done"
        leaving.result = "moved" if done else "stays"
        leaving.why = order.detail or ("" if done else word(order, "state"))
        self._say(leaving)

    def _say(self, leaving: Leaving) -> None:
        left = count(len(self.waiting) + len(self.moving), "VM")
        to = f" → {leaving.to}" if leaving.to else ""
        why = f": {leaving.why}" if leaving.why else ""
        self.ta.screen.say(f"{leaving.vm}{to}  {leaving.result}{why}   ({left} to go)")


def drain(
    host: str,
    /,
    *,
    to: str = "",
    parallel: Annotated[int, Parameter(name=("--parallel", "-p"))] = 2,
    why: str = "",
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Empty a host before maintenance: it takes no VM any more, and its VMs move away.

    It stays drained until ta host undrain. Exits 0 when no VM is left on it, 1 when some stay.

    Args:
        host: Name or id of the host.
        to: Move all of them to this host; without it each goes to its best candidate.
        parallel: How many move at a time (at most 8).
        why: For the audit log.
        dry_run: Only show which VM would go where.
    """
    from trustauthority.errors import InvalidRequest
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import HostServiceStub

    if not 1 <= parallel <= MAX_PARALLEL:
        raise InvalidRequest(f"--parallel is between 1 and {MAX_PARALLEL}", field="parallel")
    interrupted = False
    with session(options) as ta:
        request = admin.DrainHostRequest(host=host, why=why, dry_run=dry_run)
        drained = ta.authority.on(HostServiceStub).write(lambda s: s.DrainHost, request).host
        leaving = [Leaving(vm=name) for name in _vms_of(ta, drained.host_id)]
        if dry_run:
            for each in leaving:
                each.to = to or _best(ta, each)
                each.result = "would move" if each.to else "would stay"
        else:
            ta.screen.say(f"{host} takes no VM any more; {count(len(leaving), 'VM')} to move")
            job = Drain(ta=ta, to=to, parallel=parallel, waiting=list(leaving))
            try:
                job.run()
            except KeyboardInterrupt:
                job.give_up()
                interrupted = True
        _show(ta, host, leaving, dry_run=dry_run)
    if interrupted:
        return ExitCode.INTERRUPTED
    stays = any(each.result not in {"moved", "would move"} for each in leaving)
    return ExitCode.NO if stays else ExitCode.YES


def undrain(host: str, /, *, dry_run: DryRun = False, options: Options = DEFAULTS) -> ExitCode:
    """Let a drained host take VMs again.

    Args:
        host: Name or id of the host.
        dry_run: Only check.
    """
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import HostServiceStub

    with session(options) as ta:
        request = admin.UndrainHostRequest(host=host, dry_run=dry_run)
        reply = ta.authority.on(HostServiceStub).write(lambda s: s.UndrainHost, request)
        _changed(ta, reply.host, "would take VMs again" if dry_run else "takes VMs again")
    return ExitCode.YES


def _changed(ta: Session, host: "Host", what: str) -> None:
    from trustauthority.cli.host import host_fields

    name = host.name or host.host_id
    title = Marked(text=f"{name} {what}", style=STRONG)
    ta.screen.record(title, host_fields(ta, host), name=name, data=host)


def _vms_of(ta: Session, host_id: str) -> list[str]:
    from trustauthority.v1 import keyprovider_pb2 as keys
    from trustauthority.v1.keyprovider_pb2_grpc import VmServiceStub

    service = ta.authority.on(VmServiceStub)
    pages = all_pages(
        lambda token: service.read(
            lambda s: s.ListVms, keys.ListVmsRequest(page_size=500, page_token=token, host=host_id)
        ),
        lambda page: page.vms,
    )
    return [vm.vm_id for vm in pages]


def _best(ta: Session, leaving: Leaving) -> str:
    """The best other host for a VM; empty, with the reason noted, when there is none."""
    ranked = candidates(ta, leaving.vm)
    for each in ranked:
        if each.allowed and not each.owner:
            return each.host_name or each.host_id
    others = [each for each in ranked if not each.owner]
    why = [f"{each.host_name}: {each.unmet[0].detail}" for each in others if each.unmet]
    leaving.result = "stays"
    leaving.why = "; ".join(why[:3]) or "its cluster has no other host"
    return ""


def candidates(ta: Session, vm: str) -> "list[Candidate]":
    """The hosts of a VM's cluster, best first. Raises ClientError."""
    from trustauthority.v1 import placement_pb2 as placement
    from trustauthority.v1.placement_pb2_grpc import PlacementServiceStub

    request = placement.ListCandidatesRequest(vm_id=vm)
    service = ta.authority.on(PlacementServiceStub)
    return list(service.read(lambda s: s.ListCandidates, request).candidates)


def _show(ta: Session, host: str, leaving: list[Leaving], *, dry_run: bool) -> None:
    def result(each: Leaving) -> Cell:
        style = {"moved": GOOD, "stays": BAD, "would stay": BAD}.get(each.result, QUIET)
        return Marked(text=each.result, style=style)

    moved = sum(each.result in {"moved", "would move"} for each in leaving)
    word_ = "would move" if dry_run else "moved"
    ta.screen.listing(
        leaving,
        [
            Column("VM", lambda each: each.vm),
            Column("RESULT", result),
            Column("TO", lambda each: each.to),
            Column("WHY", lambda each: each.why),
        ],
        header=ta.scope(f"{host}: {moved} of {count(len(leaving), 'VM')} {word_}"),
        empty=f"{host} holds no VM.",
        name=lambda each: each.vm,
        data=lambda each: {
            "vm": each.vm,
            "result": each.result,
            "to": each.to,
            "why": each.why,
            "order": None if each.order is None else plain(each.order),
        },
    )


def add_to(app: App) -> None:
    """Register these commands with ``ta host``."""
    app.command(
        drain,
        help_epilogue=examples(
            "ta host drain esx-a02 --why 'memory replaced'",
            "ta host drain esx-a02 --to esx-a03 --parallel 4",
            "ta host drain esx-a02 --dry-run",
        ),
    )
    app.command(
        undrain,
        help_epilogue=examples("ta host undrain esx-a02", "ta host undrain esx-a02 --dry-run"),
    )
