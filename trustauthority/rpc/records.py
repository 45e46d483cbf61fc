"""Records with what else a message says of them: names of hosts, the move under way."""

from collections.abc import Iterable, Sequence
from typing import Any

from trustauthority.model.vm import VmEntry
from trustauthority.ports import Store, Transaction
from trustauthority.rpc import convert
from trustauthority.v1 import keyprovider_pb2


async def host_names(store: Store, ids: "Iterable[Any]") -> dict[str, str]:
    """Names of hosts by id."""
    async with store.snapshot() as tx:
        return await names_in(tx, ids)


async def names_in(tx: Transaction, ids: "Iterable[Any]") -> dict[str, str]:
    """The same in a unit of work that is open."""
    names: dict[str, str] = {}
    for host_id in {each for each in ids if each}:
        host = await tx.hosts.get(host_id)
        names[host_id] = "" if host is None else host.name
    return names


async def vm_messages(store: Store, entries: Sequence[VmEntry]) -> list[keyprovider_pb2.Vm]:
    """VMs with the name of their owner and the destination of their move."""
    async with store.snapshot() as tx:
        names = await names_in(tx, (entry.owner for entry in entries))
        told = []
        for entry in entries:
            message = convert.vm(entry, names)
            move = None if entry.move_id is None else await tx.placement.move(entry.move_id)
            if move is not None:
                message.prepared_host_id = move.destination
            told.append(message)
    return told
