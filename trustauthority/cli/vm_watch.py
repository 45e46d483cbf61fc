"""``--watch`` of ``ta vm``: VMs as they change, from the authority's stream until interrupted.

On a terminal the table is drawn anew; elsewhere, and for machines, each VM that changed is one line.
"""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from trustauthority.cli.render import Output
from trustauthority.cli.session import Session
from trustauthority.cli.text import count, moment, printable
from trustauthority.cli.vm_view import vm_columns
from trustauthority.client.plain import plain

if TYPE_CHECKING:
    from trustauthority.v1.keyprovider_pb2 import Vm, WatchVmsResponse

_CLEAR = "\x1b[H\x1b[2J"


def watch(ta: Session, *vm_ids: str) -> None:
    """Show VMs until interrupted. Raises ClientError."""
    from trustauthority.v1 import keyprovider_pb2 as keys
    from trustauthority.v1.keyprovider_pb2_grpc import VmServiceStub

    service = ta.authority.on(VmServiceStub)
    request = keys.WatchVmsRequest(vm_ids=vm_ids)
    known: dict[str, Vm] = {}
    for reply in service.stream(lambda s: s.WatchVms, request, endless=True):
        ta.screen.now = moment(reply.now) or datetime.now(UTC)
        known |= {vm.vm_id: vm for vm in reply.vms}
        if ta.screen.for_machines:
            _lines(ta, reply)
        elif ta.screen.out.isatty() and not ta.screen.plain_text:
            if reply.complete:
                ta.screen.out.write(_CLEAR)
                _table(ta, [known[name] for name in sorted(known)])
        elif reply.vms:
            _table(ta, list(reply.vms))
        ta.screen.out.flush()


def _lines(ta: Session, reply: "WatchVmsResponse") -> None:
    """One document per VM and line, so that it can be read as it comes."""
    for vm in reply.vms:
        if ta.screen.output is Output.JSON:
            ta.screen.json_line(plain(vm))
        elif ta.screen.output is Output.YAML:
            ta.screen.out.write("---\n")
            ta.screen.machine(plain(vm))
        else:
            ta.screen.out.write(printable(vm.vm_id) + "\n")


def _table(ta: Session, vms: "list[Vm]") -> None:
    owned = sum(1 for vm in vms if vm.owner_host_id)
    ta.screen.listing(
        vms,
        vm_columns(ta.screen),
        header=ta.scope(f"{count(len(vms), 'VM')} · {owned} held by a host"),
        empty="No VM is protected yet; waiting.",
        name=lambda vm: vm.vm_id,
    )
