# ruff: noqa: D417 - options is documented by its class
"""``ta vm``: protected VMs, who may run them now, and until when."""

from typing import TYPE_CHECKING

from cyclopts import App

from trustauthority.cli import vm_changes, vm_move, vm_protect
from trustauthority.cli.examples import examples
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.options import DEFAULTS, Options, Watch
from trustauthority.cli.paging import all_pages
from trustauthority.cli.render import STRONG, Marked
from trustauthority.cli.session import session
from trustauthority.cli.text import count
from trustauthority.cli.vm_policy import policy_app
from trustauthority.cli.vm_view import break_glass_field, vm_columns, vm_fields
from trustauthority.cli.vm_watch import watch as watch_vms

if TYPE_CHECKING:
    from trustauthority.v1.keyprovider_pb2 import Vm

app = App(name="vm", help="Protected VMs: who may run each, and until when.")
app.command(policy_app)
vm_changes.add_to(app)
vm_move.add_to(app)
vm_protect.add_to(app)


@app.command(
    name="list",
    help_epilogue=examples("ta vm list", "ta vm list --host esx-a02", "ta vm list --watch"),
)
def list_vms(*, host: str = "", watch: Watch = False, options: Options = DEFAULTS) -> ExitCode:
    """List protected VMs with their owner and lease.

    Args:
        host: Only those whose grant this host (name or id) holds.
        watch: Go on as they change, until interrupted.
    """
    from trustauthority.errors import InvalidRequest
    from trustauthority.v1 import keyprovider_pb2 as keys
    from trustauthority.v1.keyprovider_pb2_grpc import VmServiceStub

    if watch and host:
        raise InvalidRequest("--watch shows all VMs, or one: ta vm show VM --watch", field="watch")
    with session(options) as ta:
        if watch:
            watch_vms(ta)
        service = ta.authority.on(VmServiceStub)
        vms: list[Vm] = list(
            all_pages(
                lambda token: service.read(
                    lambda s: s.ListVms,
                    keys.ListVmsRequest(page_size=500, page_token=token, host=host),
                ),
                lambda page: page.vms,
            )
        )
        owned = sum(1 for vm in vms if vm.owner_host_id)
        ta.screen.listing(
            vms,
            vm_columns(ta.screen),
            header=ta.scope(f"{count(len(vms), 'VM')} · {owned} held by a host"),
            empty="No VM is protected. Protect one: ta vm protect VM --cluster CLUSTER",
            name=lambda vm: vm.vm_id,
        )
    return ExitCode.YES


@app.command(help_epilogue=examples("ta vm show payroll", "ta vm show payroll --watch"))
def show(vm: str, /, *, watch: Watch = False, options: Options = DEFAULTS) -> ExitCode:
    """Show one VM: its terms, its owner, its fence.

    Args:
        vm: Id of the VM.
        watch: Go on as it changes, until interrupted.
    """
    from trustauthority.v1 import keyprovider_pb2 as keys
    from trustauthority.v1.keyprovider_pb2_grpc import VmServiceStub

    with session(options) as ta:
        if watch:
            watch_vms(ta, vm)
        request = keys.GetVmRequest(vm_id=vm)
        reply = ta.authority.on(VmServiceStub).read(lambda s: s.GetVm, request)
        record = reply.vm
        title = Marked(text=record.vm_id, style=STRONG)
        fields = [*vm_fields(ta.screen, record), *map(break_glass_field, reply.break_glasses)]
        ta.screen.record(title, fields, name=record.vm_id, data=record)
        for glass in reply.break_glasses:
            ta.screen.warn(f"break-glass {glass.glass_id} is open for {glass.host_name}")
    return ExitCode.YES
