"""How a protected VM is shown: its columns, its fields, and its state in one word."""

from datetime import datetime
from typing import TYPE_CHECKING

from trustauthority.cli.render import BAD, CAUTION, GOOD, Cell, Column, Field, Marked, Screen
from trustauthority.cli.text import absolute, left, milliseconds, moment
from trustauthority.client.plain import word

if TYPE_CHECKING:
    from trustauthority.v1.breakglass_pb2 import BreakGlass
    from trustauthority.v1.keyprovider_pb2 import Vm


def state(vm: "Vm", now: datetime) -> Cell:
    """What the VM may do now, and why: derived from owner, lease and fence."""
    until, fence = moment(vm.lease_until), moment(vm.fence_until)
    if vm.retired:
        return Marked(text="✖ retired", style=BAD)
    if not vm.owner_host_id:
        usable = vm.key_state and word(vm, "key_state") == "active"
        return "free" if usable else Marked(text="! no usable key", style=CAUTION)
    if until is None or until > now:
        return Marked(text="● moving" if vm.prepared_host_id else "● runs", style=GOOD)
    if fence is not None and fence > now:
        return Marked(text="! lease over: fenced", style=CAUTION)
    return Marked(text="! lease over: free", style=CAUTION)


def lease(vm: "Vm") -> Cell:
    """Class and length of the lease."""
    if not vm.lease.lease_ms:
        return Marked(text="! unlimited: never fenced", style=CAUTION)
    return f"{word(vm, 'lease_class')} {milliseconds(vm.lease.lease_ms)}"


def owner(vm: "Vm") -> str:
    """Who holds its grant."""
    return vm.owner_host_name or vm.owner_host_id


def _key(vm: "Vm") -> str:
    return word(vm, "key_state") if vm.key_state else "none"


def _on_loss(vm: "Vm") -> str:
    what, longer = word(vm.lease, "on_lease_loss"), vm.lease.continue_for_ms
    return f"{what} {milliseconds(longer)}" if longer else what


def _shared(vm: "Vm") -> bool:
    return word(vm, "sharing") == "shared"


def break_glass_field(glass: "BreakGlass") -> Field:
    """The line of a break-glass that is open for a VM."""
    text = (
        f"! {glass.host_name} may have it whatever its verdict says, until"
        f" {absolute(moment(glass.expires_at))} ({glass.reason}; {glass.opened_by})"
    )
    return Field("break-glass", Marked(text=text, style=CAUTION))


def vm_fields(screen: Screen, vm: "Vm") -> list[Field]:
    """The lines of one VM's record."""
    until, fence = moment(vm.lease_until), moment(vm.fence_until)
    go_on = vm.lease.continue_for_ms + vm.lease.skew_ms
    return [
        Field("state", state(vm, screen.now)),
        Field("cluster", vm.cluster),
        Field("lease", lease(vm)),
        Field("fence after", f"lease + {milliseconds(go_on)}" if vm.lease.lease_ms else ""),
        Field("on lease loss", _on_loss(vm)),
        Field("shared", Marked(text="! by several hosts", style=CAUTION) if _shared(vm) else ""),
        Field("any host", Marked(text="! yes", style=CAUTION) if vm.any_host else "no"),
        Field("profile", vm.profile_digest.hex() or "any definition"),
        Field("key", _key(vm)),
        Field("owner", owner(vm) or "none"),
        Field("grant epoch", str(vm.grant_epoch)),
        Field("lease until", f"{absolute(until)} ({left(until, screen.now)})" if until else ""),
        Field("no other owner before", absolute(fence) if fence else ""),
        Field("last owner", vm.last_owner_host_id),
        Field("moves to", vm.prepared_host_id),
    ]


def vm_columns(screen: Screen) -> "list[Column[Vm]]":
    """The columns of a list of VMs."""

    def until(vm: "Vm") -> str:
        when = moment(vm.lease_until)
        return absolute(when) if screen.wide else left(when, screen.now)

    return [
        Column("VM", lambda vm: vm.vm_id),
        Column("CLUSTER", lambda vm: vm.cluster),
        Column("OWNER", owner),
        Column("EPOCH", lambda vm: str(vm.grant_epoch)),
        Column("LEASE", lease),
        Column("UNTIL", until),
        Column("KEY", _key),
        Column("ANY HOST", lambda vm: "! yes" if vm.any_host else "no"),
        Column("STATE", lambda vm: state(vm, screen.now)),
        Column("FENCE", lambda vm: absolute(moment(vm.fence_until)), wide=True),
        Column("LAST OWNER", lambda vm: vm.last_owner_host_id, wide=True),
        Column("MOVES TO", lambda vm: vm.prepared_host_id, wide=True),
    ]
