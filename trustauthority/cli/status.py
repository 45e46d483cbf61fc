"""``ta status``: the authority itself on one screen."""

from typing import TYPE_CHECKING

from trustauthority.cli.exit import ExitCode
from trustauthority.cli.options import DEFAULTS, Options
from trustauthority.cli.render import BAD, CAUTION, GOOD, STRONG, Marked
from trustauthority.cli.session import Session, session
from trustauthority.cli.text import NOTHING, absolute, count, moment
from trustauthority.client.plain import plain, word

if TYPE_CHECKING:
    from trustauthority.v1.admin_pb2 import GetStatusResponse, HealthItem

MARKS = {"ok": ("✔", GOOD), "warning": ("!", CAUTION), "error": ("✖", BAD)}


def status(*, options: Options = DEFAULTS) -> ExitCode:
    """Show how the authority is: its roles, hosts by standing, store, audit log, certificates, KMS.

    Exits 0 when everything works, 1 when something does not.
    """
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import StatusServiceStub

    with session(options) as ta:
        service = ta.authority.on(StatusServiceStub)
        reply = service.read(lambda s: s.GetStatus, admin.GetStatusRequest())
        _add_key_process(ta, reply)
        if ta.screen.for_machines:
            ta.screen.machine(plain(reply), names=[item.name for item in reply.items])
        else:
            _show(ta, reply)
    broken = any(word(item, "health") == "error" for item in reply.items)
    return ExitCode.NO if broken else ExitCode.YES


def _add_key_process(ta: Session, reply: "GetStatusResponse") -> None:
    """Add what the key role says when it is a process of its own, or that it does not answer."""
    from trustauthority.client.errors import ClientError
    from trustauthority.client.reasons import UNIMPLEMENTED
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import StatusServiceStub

    address = ta.context.key_server
    if not address or address == ta.context.server or "key" in reply.roles:
        return
    try:
        other = ta.authority.on(StatusServiceStub).read_at(
            address, lambda s: s.GetStatus, admin.GetStatusRequest()
        )
    except ClientError as error:
        if error.reason == UNIMPLEMENTED:
            return  # it answers, and has nothing to say
        reply.items.add(
            name=f"key role at {address}",
            health=admin.HEALTH_ERROR,
            detail=f"does not answer: {error.reason}; no key is released",
        )
        return
    known = {item.name for item in reply.items}
    reply.roles.extend(role for role in other.roles if role not in reply.roles)
    reply.items.extend(item for item in other.items if item.name not in known)


def _show(ta: Session, reply: "GetStatusResponse") -> None:
    ta.screen.line(
        Marked(text=f"Trust Authority {reply.version}", style=STRONG),
        f" at {ta.context.server} · roles {', '.join(reply.roles)} · {absolute(moment(reply.now))}",
    )
    ta.screen.line(
        "hosts: ",
        Marked(text=f"● {reply.hosts_passed} passed", style=GOOD),
        "  ",
        Marked(text=f"✖ {reply.hosts_failed} failed", style=BAD if reply.hosts_failed else ""),
        "  ",
        Marked(
            text=f"? {reply.hosts_unknown} unknown", style=CAUTION if reply.hosts_unknown else ""
        ),
    )
    ta.screen.table(
        ["", "PART", "DETAIL"], [[_mark(item), item.name, item.detail] for item in reply.items]
    )
    kept = ta.authority.keeper.kept_checkpoint()
    pinned = "verified" if ta.context.audit_key else "its key is not pinned in this context"
    ta.screen.line(
        f"audit log: {count(kept.size, 'entry', 'entries')} seen from here, {pinned}"
        if kept
        else f"audit log: {NOTHING}"
    )


def _mark(item: "HealthItem") -> Marked:
    text, style = MARKS.get(word(item, "health"), ("?", CAUTION))
    return Marked(text=text, style=style)
