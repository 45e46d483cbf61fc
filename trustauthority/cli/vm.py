# ruff: noqa: D417 - options is documented by its class
"""``ta vm``: protected VMs, who may run them now, and until when."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from trustauthority.cli.examples import examples
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.hexes import sha256_argument
from trustauthority.cli.options import DEFAULTS, ClusterName, DryRun, Options
from trustauthority.cli.paging import all_pages
from trustauthority.cli.plain import word
from trustauthority.cli.render import CAUTION, STRONG, Cell, Column, Field, Marked
from trustauthority.cli.session import Session, session
from trustauthority.cli.text import absolute, count, left, milliseconds, moment
from trustauthority.cli.vm_policy import policy_app

if TYPE_CHECKING:
    from trustauthority.v1.keyprovider_pb2 import Vm

app = App(name="vm", help="Protected VMs: who may run each, and until when.")
app.command(policy_app)


class Lease(StrEnum):
    """How long a host may run a VM without asking again."""

    DEFAULT = "default"
    STRICT = "strict"
    STANDARD = "standard"
    UNLIMITED = "unlimited"


@app.command(
    help_epilogue=examples(
        "ta vm protect payroll --cluster prod --lease strict",
        "ta vm protect payroll --cluster prod --profile-sha256 91ab…07",
    )
)
def protect(
    vm: str,
    /,
    *,
    cluster: ClusterName = "",
    lease: Lease = Lease.DEFAULT,
    any_host: Annotated[bool, Parameter(negative="")] = False,
    profile_sha256: Annotated[str, Parameter(name="--profile-sha256")] = "",
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Put a VM under protection: its key goes only to the one host that may run it.

    Args:
        vm: Id of the VM: 1-63 of a-z 0-9 . _ -.
        cluster: The cluster whose hosts may run it.
        lease: How long a host may go on without asking again; unlimited never fences a lost host.
        any_host: Any admitted host of the cluster may start it without a placement intent.
        profile_sha256: SHA-256 of its canonical domain profile; another definition is refused.
        dry_run: Only show what would be sent.
    """
    from trustauthority.v1 import keyprovider_pb2 as keys
    from trustauthority.v1.keyprovider_pb2_grpc import VmServiceStub

    classes = {
        Lease.DEFAULT: keys.LEASE_CLASS_UNSPECIFIED,
        Lease.STRICT: keys.LEASE_CLASS_STRICT,
        Lease.STANDARD: keys.LEASE_CLASS_STANDARD,
        Lease.UNLIMITED: keys.LEASE_CLASS_UNLIMITED,
    }
    profile = sha256_argument(profile_sha256, "--profile-sha256") if profile_sha256 else b""
    with session(options) as ta:
        request = keys.ProtectVmRequest(
            vm_id=vm,
            cluster=ta.cluster(cluster),
            lease_class=classes[lease],
            any_host=any_host,
            profile_digest=profile,
        )
        if dry_run:
            ta.would_send(request)
            return ExitCode.YES
        record = ta.authority.on(VmServiceStub).write(lambda s: s.ProtectVm, request).vm
        fields = [*_fields(ta, record), Field("next", f"ta key create {record.vm_id}")]
        title = Marked(text=f"VM {record.vm_id} is protected", style=STRONG)
        ta.screen.record(title, fields, name=record.vm_id, data=record)
    return ExitCode.YES


@app.command(name="list", help_epilogue=examples("ta vm list", "ta vm list -o wide"))
def list_vms(*, options: Options = DEFAULTS) -> ExitCode:
    """List protected VMs with their owner and lease."""
    from trustauthority.v1 import keyprovider_pb2 as keys
    from trustauthority.v1.keyprovider_pb2_grpc import VmServiceStub

    with session(options) as ta:
        service = ta.authority.on(VmServiceStub)
        vms: list[Vm] = list(
            all_pages(
                lambda token: service.read(
                    lambda s: s.ListVms, keys.ListVmsRequest(page_size=500, page_token=token)
                ),
                lambda page: page.vms,
            )
        )
        owned = sum(1 for vm in vms if vm.owner_host_id)
        ta.screen.listing(
            vms,
            _columns(ta),
            header=ta.scope(f"{count(len(vms), 'VM')} · {owned} held by a host"),
            empty="No VM is protected. Protect one: ta vm protect VM --cluster CLUSTER",
            name=lambda vm: vm.vm_id,
        )
    return ExitCode.YES


@app.command(help_epilogue=examples("ta vm show payroll", "ta vm show payroll -o json"))
def show(vm: str, /, *, options: Options = DEFAULTS) -> ExitCode:
    """Show one VM: its terms, its owner, its fence.

    Args:
        vm: Id of the VM.
    """
    from trustauthority.v1 import keyprovider_pb2 as keys
    from trustauthority.v1.keyprovider_pb2_grpc import VmServiceStub

    with session(options) as ta:
        request = keys.GetVmRequest(vm_id=vm)
        record = ta.authority.on(VmServiceStub).read(lambda s: s.GetVm, request).vm
        title = Marked(text=record.vm_id, style=STRONG)
        ta.screen.record(title, _fields(ta, record), name=record.vm_id, data=record)
    return ExitCode.YES


def _lease(vm: "Vm") -> Cell:
    if not vm.lease.lease_ms:
        return Marked(text="! unlimited: never fenced", style=CAUTION)
    return f"{word(vm, 'lease_class')} {milliseconds(vm.lease.lease_ms)}"


def _key(vm: "Vm") -> str:
    """State of the VM's newest key."""
    return word(vm, "key_state") if vm.key_state else "none"


def _owner(vm: "Vm") -> str:
    return vm.owner_host_name or vm.owner_host_id


def _fields(ta: Session, vm: "Vm") -> list[Field]:
    until, fence = moment(vm.lease_until), moment(vm.fence_until)
    go_on = vm.lease.continue_for_ms + vm.lease.skew_ms
    return [
        Field("cluster", vm.cluster),
        Field("lease", _lease(vm)),
        Field("fence after", f"lease + {milliseconds(go_on)}" if vm.lease.lease_ms else ""),
        Field("any host", Marked(text="! yes", style=CAUTION) if vm.any_host else "no"),
        Field("profile", vm.profile_digest.hex() or "any definition"),
        Field("key", _key(vm)),
        Field("owner", _owner(vm) or "none"),
        Field("grant epoch", str(vm.grant_epoch)),
        Field("lease until", f"{absolute(until)} ({left(until, ta.now)})" if until else ""),
        Field("no other owner before", absolute(fence) if fence else ""),
        Field("last owner", vm.last_owner_host_id),
        Field("prepared for", vm.prepared_host_id),
    ]


def _columns(ta: Session) -> "list[Column[Vm]]":
    def until(vm: "Vm") -> str:
        when = moment(vm.lease_until)
        return absolute(when) if ta.screen.wide else left(when, ta.now)

    return [
        Column("VM", lambda vm: vm.vm_id),
        Column("CLUSTER", lambda vm: vm.cluster),
        Column("OWNER", _owner),
        Column("EPOCH", lambda vm: str(vm.grant_epoch)),
        Column("LEASE", _lease),
        Column("UNTIL", until),
        Column("KEY", _key),
        Column("ANY HOST", lambda vm: "! yes" if vm.any_host else "no"),
        Column("FENCE", lambda vm: absolute(moment(vm.fence_until)), wide=True),
        Column("LAST OWNER", lambda vm: vm.last_owner_host_id, wide=True),
        Column("PREPARED", lambda vm: vm.prepared_host_id, wide=True),
    ]
