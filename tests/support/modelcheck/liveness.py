"""L1-L3: from every world, once faults stop, the VM comes to run again, whoever died before.

``settle`` is one fair, fault-free continuation: agents are up, hosts attest, messages arrive, time
passes, whoever is free asks. It must reach a running VM within a bound, whatever happened so far.
"""

from hostagent.lease_model import Claim, GiveUp, Phase, Resend, Start
from support.modelcheck import parties
from support.modelcheck.explore import INDEX, KINDS, Model
from support.modelcheck.parties import fresh, host_name
from support.modelcheck.world import Domain, World

ROUNDS = 40
_CALM = tuple(
    {INDEX["renew"]: 10**6, INDEX["attest"]: 10**6}.get(number, 0) for number in range(len(KINDS))
)


class Stuck(Exception):
    """No continuation without faults brings the VM back."""


def settle(model: Model, world: World, known: set[World]) -> None:
    """Follow the fair continuation; raise ``Stuck`` if it does not end with a running VM."""
    path = []
    world = world._replace(budget=_CALM)
    if not _somebody_may(model, world):
        return
    for number in range(ROUNDS):
        if world in known or (number > 0 and _runs(model, world)):
            known.update(path)
            return
        path.append(world)
        world = _round(model, world)
    raise Stuck(f"nothing runs after {ROUNDS} calm rounds")


def _somebody_may(model: Model, world: World) -> bool:
    rows = model.pool[world.rows]
    return any(
        not (host.revoked or host.draining)
        and host.attested_until_ms > 0
        and (
            not host.warned or rows.cluster.warned_hosts_take or host.host_id == rows.vm.last_owner
        )
        and (rows.vm.any_host_of_cluster or rows.vm.last_owner == host.host_id)
        for host in rows.hosts
    )


def _runs(model: Model, world: World) -> bool:
    owner = model.pool[world.rows].vm.owner
    for index, number in enumerate(world.machines):
        machine = model.pool[number]
        if machine.domain is Domain.RUNNING:
            return machine.up and machine.view.phase is Phase.RUNNING and owner == host_name(index)
    return False


def _round(model: Model, world: World) -> World:
    for index, number in enumerate(world.machines):
        machine = model.pool[number]
        if not machine.up:
            risen, sent = parties.take_up(model.variant, machine, index, world.t)
            numbers = [model.pool.put(each) for each in sent]
            world = model.with_machine(world, index, model.pool.put(risen), numbers)
    world = _attested(model, _delivered(model, world))
    for index in range(len(world.machines)):
        world = _delivered(model, _driven(model, world, index))
    world = model.passed(world, slow=None)._replace(budget=_CALM)
    return _delivered(model, world)


def _attested(model: Model, world: World) -> World:
    rows = model.pool[world.rows]
    for index, number in enumerate(world.machines):
        for label, after in model._host_rows(world, rows, index, model.pool[number]):
            if "attests" in label:
                world = after._replace(budget=_CALM)
                rows = model.pool[world.rows]
    return world


def _delivered(model: Model, world: World) -> World:
    for _ in range(20):
        if not world.net and not world.work:
            return world
        for number in sorted(world.net):
            if number in world.net:
                taken = world._replace(net=world.net - {number})
                world = next(model.deliver(taken, number), taken)
        for request_id in sorted(world.work):
            rest = world._replace(work=world.work - {request_id})
            world = model._answer(rest, parties.confirm, request_id)
    raise Stuck("messages without end")


def _driven(model: Model, world: World, index: int) -> World:
    machine = model.pool[world.machines[index]]
    new = fresh(machine, index)
    match machine.view.phase:
        case Phase.PREPARED:
            event = Claim(fresh_id=new)
        case Phase.SWITCHING | Phase.GIVING_BACK | Phase.PAUSED:
            event = Resend()
        case Phase.REQUESTING | Phase.PREPARING:
            event = GiveUp()
        case Phase.IDLE if not _is_busy_elsewhere(model, world, index):
            event = Start(fresh_id=new)
        case _:
            return world
    number, sent = model._act(world, index, event)
    return model.with_machine(world, index, number, sent)


def _is_busy_elsewhere(model: Model, world: World, index: int) -> bool:
    return any(
        model.pool[number].domain is not Domain.NONE
        for other, number in enumerate(world.machines)
        if other != index
    )
