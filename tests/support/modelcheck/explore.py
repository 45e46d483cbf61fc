"""Breadth-first search over every interleaving within a scenario's bounds."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from hostagent.lease_model import (
    AbortMove,
    Claim,
    GiveUp,
    HandOver,
    OfferMove,
    Operation,
    Phase,
    PrepareMove,
    Resend,
    Start,
    Stopped,
    Tick,
)
from support.modelcheck import parties
from support.modelcheck.parties import Variant, Violation, fresh, host_name
from support.modelcheck.world import Domain, Machine, Pool, Rows, ToAuthority, ToHost, World
from trustauthority.model.placement import MovePhase

KINDS = (
    "duplicate", "resend", "crash", "reboot", "attest", "revoke", "revoke_all", "policy", "step",
    "step_back", "lag", "start0", "start1", "start2", "stop", "offer", "prepare", "hand_over",
    "abort", "claim", "give_up", "kms_fails", "renew", "close_glass", "rogue", "drain", "warn",
)  # fmt: skip
INDEX = {kind: number for number, kind in enumerate(KINDS)}
STEP = 100
"""Ticks by which the authority's clock steps: far beyond every fence."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Bounds of one search."""

    name: str
    hosts: int
    horizon: int
    rows: Rows
    budget: dict[str, int]
    machines: tuple[Machine, ...] = ()
    t: int = 1
    lossy: bool = True


@dataclass(kw_only=True)
class Result:
    """What a search found."""

    scenario: str
    states: int
    steps: int
    violation: str = ""
    trace: tuple[str, ...] = ()
    complete: bool = True
    parents: dict[World, tuple[World | None, str]] = field(default_factory=dict, repr=False)

    def told(self) -> str:
        """The trace, one line per step."""
        lines = [f"  {number:2}. {label}" for number, label in enumerate(self.trace, 1)]
        return "\n".join([f"{self.scenario}: {self.violation} after {len(lines)} steps", *lines])


class Model:
    """One scenario with one variant: successors of a world."""

    def __init__(self, scenario: Scenario, variant: Variant) -> None:
        self.scenario, self.variant = scenario, variant
        self.pool = Pool()
        self.memo: dict = {}

    def initial(self) -> World:
        machines = self.scenario.machines or tuple(Machine() for _ in range(self.scenario.hosts))
        return World(
            t=self.scenario.t,
            offset=0,
            rows=self.pool.put(self.scenario.rows),
            net=frozenset(),
            work=frozenset(),
            machines=tuple(self.pool.put(each) for each in machines),
            budget=tuple(self.scenario.budget.get(kind, 0) for kind in KINDS),
        )

    # --- calls into the product, remembered ------------------------------------------------

    def _once(self, key: tuple, call: Callable):
        found = self.memo.get(key)
        if found is None:
            try:
                found = ("ok", call())
            except Violation as violation:
                found = ("bad", str(violation))
            self.memo[key] = found
        if found[0] == "bad":
            raise Violation(found[1])
        return found[1]

    def _handle(self, world: World, message: int):
        def call():
            rows, reply, work = parties.handle(
                self.variant, self.pool[world.rows], self.pool[message], world.t, world.offset
            )
            return self.pool.put(rows), None if reply is None else self.pool.put(reply), work

        return self._once(("h", world.rows, message, world.t, world.offset), call)

    def _act(self, world: World, index: int, event, *, key_boot=None, stop_after=None):
        number = world.machines[index]

        def call():
            machine, sent = parties.act(
                self.variant,
                self.pool[number],
                index,
                event,
                world.t,
                key_boot=key_boot,
                stop_after=stop_after,
            )
            return self.pool.put(machine), tuple(self.pool.put(each) for each in sent)

        return self._once(("a", number, event, world.t, key_boot, stop_after), call)

    # --- worlds ----------------------------------------------------------------------------

    def spend(self, world: World, kind: str) -> World | None:
        left = world.budget[INDEX[kind]]
        if left <= 0:
            return None
        budget = list(world.budget)
        budget[INDEX[kind]] = left - 1
        return world._replace(budget=tuple(budget))

    def with_machine(self, world: World, index: int, number: int, sent=()) -> World:
        machines = list(world.machines)
        machines[index] = number
        return self._pruned(
            world._replace(machines=tuple(machines), net=world.net | frozenset(sent))
        )

    def _pruned(self, world: World) -> World:
        """Forget messages that can't matter any more: nobody waits, and they change nothing."""
        keep = [number for number in world.net if self._matters(world, self.pool[number])]
        return world if len(keep) == len(world.net) else world._replace(net=frozenset(keep))

    def _matters(self, world: World, message: ToAuthority | ToHost) -> bool:
        sent = message.reply if isinstance(message, ToHost) else message.send
        view = self.pool[world.machines[message.host]].view
        if sent.request_id in parties._ids_of(view):
            return True  # ids are never used again: who does not wait now never will
        if isinstance(message, ToHost):
            return False
        rows: Rows = self.pool[world.rows]
        if sent.operation in {Operation.RENEW, Operation.GIVE_BACK}:
            return sent.grant_epoch >= rows.vm.grant_epoch
        if sent.operation in {Operation.SWITCH, Operation.ABORT}:
            return not any(
                move.move_id == sent.move_id
                and move.phase in {MovePhase.SWITCHED, MovePhase.ABORTED}
                for move in rows.moves
            )
        return True

    def successors(self, world: World) -> Iterator[tuple[str, World]]:
        yield from self._deliveries(world)
        yield from self._work(world)
        yield from self._people(world)
        yield from self._faults(world)
        if world.t < self.scenario.horizon:
            yield from self._time(world)

    def _deliveries(self, world: World):
        for number in sorted(world.net):
            message = self.pool[number]
            label = f"{_told(message)} arrives"
            taken = world._replace(net=world.net - {number})
            for delivered in self.deliver(taken, number):
                yield label, delivered
            again = self.spend(world, "duplicate")
            if again is not None:
                for delivered in self.deliver(again, number):
                    yield f"{label} (a duplicate is still on its way)", delivered
            dying = self.spend(taken, "crash")
            if dying is not None and isinstance(message, ToHost):
                yield from self._dying(dying, message)

    def _dying(self, world: World, message: ToHost):
        if not self.pool[world.machines[message.host]].up:
            return
        for count in range(3):
            number, sent = self._act(
                world, message.host, message.reply, key_boot=message.key_boot, stop_after=count
            )
            if not self.pool[number].up:
                label = f"{_told(message)} arrives, the agent dies after {count} actions"
                yield label, self.with_machine(world, message.host, number, sent)

    def deliver(self, world: World, number: int) -> Iterator[World]:
        message = self.pool[number]
        if isinstance(message, ToAuthority):
            rows, reply, work = self._handle(world, number)
            self._check_takeover(world, rows, message)
            net = world.net if reply is None else world.net | {reply}
            working = world.work if work is None else world.work | {work}
            yield self._pruned(world._replace(rows=rows, net=net, work=working))
        elif self.pool[world.machines[message.host]].up:
            machine, sent = self._act(world, message.host, message.reply, key_boot=message.key_boot)
            yield self.with_machine(world, message.host, machine, sent)

    def _check_takeover(self, world: World, rows: int, message: ToAuthority) -> None:
        """Whoever loses a VM to another owner has no running QEMU; by a fence, none at all."""
        before, after = self.pool[world.rows].vm, self.pool[rows].vm
        if after.owner is None or after.owner == before.owner:
            return
        for index, number in enumerate(world.machines):
            domain = self.pool[number].domain
            if after.owner == host_name(index) or domain in {Domain.NONE, Domain.INCOMING}:
                continue
            by_switch = message.send.operation is Operation.SWITCH
            if domain is Domain.RUNNING or not by_switch:
                raise Violation(f"I-C: {after.owner} owns the VM while h{index} has it {domain}")

    def _work(self, world: World):
        for request_id in sorted(world.work):
            rest = world._replace(work=world.work - {request_id})
            rows = self.pool[world.rows]
            if self.variant.reads_then_releases and request_id not in rows.read_ok:
                read = parties.read_only(rows, request_id, world.t, world.offset)
                if read is not rows:
                    label = f"a node reads that the release of {request_id} is allowed"
                    yield label, world._replace(rows=self.pool.put(read))
                continue
            done = self._answer(rest, parties.confirm, request_id)
            yield f"the KMS answers, transaction 2 of {request_id}", done
            failing = self.spend(rest, "kms_fails")
            if failing is not None:
                label = f"the KMS fails, {request_id} is recorded as failed"
                yield label, self._answer(failing, parties.fail, request_id)

    def _answer(self, world: World, party, request_id: str) -> World:
        def call():
            rows = self.pool[world.rows]
            variant = (self.variant,) if party is parties.confirm else ()
            after, reply = party(*variant, rows, request_id, world.t, world.offset)
            return self.pool.put(after), self.pool.put(reply)

        key = (party.__name__, world.rows, request_id, world.t, world.offset)
        rows, reply = self._once(key, call)
        return self._pruned(world._replace(rows=rows, net=world.net | {reply}))

    def _people(self, world: World):
        """What somebody on a host or above it may want."""
        for index, number in enumerate(world.machines):
            machine = self.pool[number]
            if not machine.up:
                continue
            for kind, label, event in self._wishes(world, index, machine):
                spent = self.spend(world, kind)
                if spent is None:
                    continue
                after, sent = self._act(spent, index, event)
                if after == number and not sent:
                    continue
                yield f"h{index}: {label}", self.with_machine(spent, index, after, sent)
                dying = self.spend(spent, "crash")
                if dying is None or kind == "resend":
                    continue
                for count in range(2):
                    after, sent = self._act(dying, index, event, stop_after=count)
                    if not self.pool[after].up:
                        died = self.with_machine(dying, index, after, sent)
                        yield f"h{index}: {label}, the agent dies after {count} actions", died

    def _wishes(self, world: World, index: int, machine: Machine):
        new, phase = fresh(machine, index), machine.view.phase
        match phase:
            case Phase.IDLE:
                yield f"start{index}", f"starts, asks as {new}", Start(fresh_id=new)
                yield from self._arrivals(world, index, new)
            case Phase.REQUESTING | Phase.PREPARING:
                yield "give_up", "gives up waiting", GiveUp()
            case Phase.PREPARED:
                yield "claim", f"claims as {new}", Claim(fresh_id=new)
            case Phase.RUNNING:
                for other in range(len(world.machines)):
                    if other != index:
                        offer = OfferMove(fresh_id=new, destination=host_name(other))
                        yield "offer", f"offers to h{other} as {new}", offer
                yield "hand_over", "pauses and switches", HandOver()
                yield "abort", "aborts the move", AbortMove()
                yield "stop", f"the guest shuts down, gives back as {new}", Stopped(fresh_id=new)
            case Phase.SWITCHING:
                yield "abort", "aborts the move", AbortMove()
            case _:
                pass
        if machine.view.errand or machine.view.renewal:
            yield "resend", "sends again what is pending", Resend()

    def _arrivals(self, world: World, index: int, new: str):
        move_ids = {
            self.pool[number].view.move_id
            for other, number in enumerate(world.machines)
            if other != index
        }
        for move_id in sorted(each for each in move_ids if each):
            event = PrepareMove(fresh_id=new, move_id=move_id)
            yield "prepare", f"prepares {move_id} as {new}", event

    def _faults(self, world: World):
        rows: Rows = self.pool[world.rows]
        for index, number in enumerate(world.machines):
            machine: Machine = self.pool[number]
            if not machine.up:
                after, sent = parties.take_up(self.variant, machine, index, world.t)
                risen = self.with_machine(
                    world, index, self.pool.put(after), [self.pool.put(each) for each in sent]
                )
                yield f"h{index}: the agent restarts", risen
            elif (spent := self.spend(world, "crash")) is not None:
                down = self.pool.put(replace(machine, up=False))
                yield f"h{index}: the agent dies", self.with_machine(spent, index, down)
            if (spent := self.spend(world, "reboot")) is not None:
                fresh_boot = Machine(lag=machine.lag, boot=machine.boot + 1)
                yield (
                    f"h{index}: reboots",
                    self.with_machine(spent, index, self.pool.put(fresh_boot)),
                )
            if (spent := self.spend(world, "drain")) is not None:
                drained = replace(rows.hosts[index], draining=not rows.hosts[index].draining)
                word = "is drained" if drained.draining else "is drained no more"
                yield f"h{index} {word}", self._rows(spent, _with_host(rows, index, drained))
            if (spent := self.spend(world, "warn")) is not None:
                warned = replace(rows.hosts[index], warned=True)
                label = f"h{index} attests, PASSED with warnings"
                yield label, self._rows(spent, _with_host(rows, index, warned))
            if world.budget[INDEX["revoke"]] or world.budget[INDEX["attest"]]:
                yield from self._host_rows(world, rows, index, machine)
            if (spent := self.spend(world, "rogue")) is not None:
                asked = parties.ask_as_shared(self.variant, rows, index, world.t, world.offset)
                label = f"h{index} asks for the VM as for a shared secret"
                yield label, self._rows(spent, parties.forget_time(asked, world.t, world.offset))
        if (spent := self.spend(world, "close_glass")) is not None:
            closed = tuple(replace(glass, closed_at_ms=1) for glass in rows.glasses)
            if closed != rows.glasses:
                yield "the break-glass is closed", self._rows(spent, replace(rows, glasses=closed))
        if (spent := self.spend(world, "policy")) is not None:
            cluster = replace(rows.cluster, policy_epoch=rows.cluster.policy_epoch + 1)
            yield "the policy changes", self._rows(spent, replace(rows, cluster=cluster))
        if (spent := self.spend(world, "revoke_all")) is not None:
            everyone = replace(rows.authority, global_epoch=rows.authority.global_epoch + 1)
            yield "every host is revoked", self._rows(spent, replace(rows, authority=everyone))
        if (spent := self.spend(world, "step")) is not None:
            yield "the authority's clock steps forward", spent._replace(offset=world.offset + STEP)
        if (spent := self.spend(world, "step_back")) is not None:
            yield "the authority's clock steps back", spent._replace(offset=world.offset - 3)

    def _host_rows(self, world: World, rows: Rows, index: int, machine: Machine):
        host = rows.hosts[index]
        if (spent := self.spend(world, "revoke")) is not None and not host.revoked:
            revoked = replace(host, revoked=True, trust_epoch=host.trust_epoch + 1)
            yield (
                f"h{index} is revoked, acknowledged",
                self._rows(spent, _with_host(rows, index, revoked)),
            )
        if (spent := self.spend(world, "attest")) is not None and not host.revoked:
            attested = replace(
                host,
                verdict_trust_epoch=host.trust_epoch,
                verdict_policy_epoch=rows.cluster.policy_epoch,
                verdict_global_epoch=rows.authority.global_epoch,
                boot=parties.boot_bytes(machine.boot),
            )
            if attested != host:
                yield (
                    f"h{index} attests, PASSED",
                    self._rows(spent, _with_host(rows, index, attested)),
                )

    def _rows(self, world: World, rows: Rows) -> World:
        return world._replace(rows=self.pool.put(rows))

    def _time(self, world: World):
        yield "time passes", self.passed(world, slow=None)
        spent = self.spend(world, "lag")
        if spent is not None:
            for index in range(len(world.machines)):
                yield f"time passes, h{index}'s clock lags", self.passed(spent, slow=index)

    def passed(self, world: World, slow: int | None) -> World:
        """One tick of real time; what is due on a host happens at once (reaction time is skew)."""
        after = world._replace(t=world.t + 1)
        for index in range(len(world.machines)):
            machine: Machine = self.pool[after.machines[index]]
            if index == slow:
                machine = replace(machine, lag=machine.lag + 1)
                after = self.with_machine(after, index, self.pool.put(machine))
            if machine.up:
                after = self._tick(after, index, machine)
                machine = self.pool[after.machines[index]]
            due = machine.watchdog_ms is not None and after.t - machine.lag >= machine.watchdog_ms
            if due:
                dead = replace(machine, domain=Domain.NONE, watchdog_ms=None, lease_sent_at=0)
                after = self.with_machine(after, index, self.pool.put(dead))
                if dead.up:  # libvirt tells the agent
                    event = Stopped(fresh_id=fresh(dead, index))
                    number, sent = self._act(after, index, event)
                    after = self.with_machine(after, index, number, sent)
        return after

    def _tick(self, world: World, index: int, machine: Machine) -> World:
        """A renewal beyond the budget is lost and forgotten: nothing else depends on it."""
        event = Tick(fresh_id=fresh(machine, index))
        number, sent = self._act(world, index, event)
        renewals = {n for n in sent if self.pool[n].send.operation is Operation.RENEW}
        if renewals:
            spent = self.spend(world, "renew")
            if spent is not None:
                return self.with_machine(spent, index, number, sent)
            after: Machine = self.pool[number]
            view = replace(after.view, renewal=None)
            ids = tuple((k, v) for k, v in after.sent_at if k != event.fresh_id)
            forgot = replace(after, view=view, ids=machine.ids, sent_at=ids)
            number, sent = self.pool.put(forgot), tuple(n for n in sent if n not in renewals)
        return self.with_machine(world, index, number, sent)

    # --- what must be true of every world ---------------------------------------------------

    def check(self, world: World) -> None:
        machines = [self.pool[number] for number in world.machines]
        running = [i for i, machine in enumerate(machines) if machine.domain is Domain.RUNNING]
        if len(running) > 1:
            raise Violation("I-C: the VM runs on two hosts")
        if not running:
            return
        index, rows = running[0], self.pool[world.rows]
        machine = machines[index]
        if rows.vm.owner != host_name(index):
            raise Violation(f"I-C: h{index} runs the VM, {rows.vm.owner} owns it")
        bound = rows.vm.lease_ms + rows.vm.continue_for_ms + machine.lag
        if not machine.up:
            bound += rows.vm.skew_ms // 2
        if self.variant.check_rights and world.t >= machine.lease_sent_at + bound:
            raise Violation(f"S8: h{index} runs past its lease")


def _with_host(rows: Rows, index: int, host) -> Rows:
    hosts = list(rows.hosts)
    hosts[index] = host
    return replace(rows, hosts=tuple(hosts))


def _told(message: ToAuthority | ToHost) -> str:
    if isinstance(message, ToAuthority):
        send = message.send
        return f"h{message.host}'s {send.operation} {send.request_id}"
    reply = message.reply
    verdict = "yes" if reply.accepted else f"no, {reply.reason}"
    return f"answer to h{message.host}'s {reply.operation} {reply.request_id} ({verdict})"


def search(scenario: Scenario, variant: Variant | None = None, *, limit: int = 10**7) -> Result:
    """Visit every world within the bounds, nearest first; stop at the first violation."""
    model = Model(scenario, variant or Variant())
    return search_model(model, limit=limit)


def search_model(model: Model, *, limit: int = 10**7) -> Result:
    """As ``search``, for a model that the caller goes on using."""
    start = model.initial()
    parents: dict[World, tuple[World | None, str]] = {start: (None, "")}
    queue, steps = deque([start]), 0
    name = model.scenario.name
    while queue:
        world = queue.popleft()
        try:
            for label, after in model.successors(world):
                steps += 1
                if after in parents:
                    continue
                parents[after] = (world, label)
                try:
                    model.check(after)
                except Violation as violation:
                    return _violated(name, parents, after, steps, str(violation))
                queue.append(after)
        except Violation as violation:
            return _violated(name, parents, world, steps, f"{violation} (in the next step)")
        if len(parents) > limit:
            return Result(
                scenario=name, states=len(parents), steps=steps, complete=False, parents=parents
            )
    return Result(scenario=name, states=len(parents), steps=steps, parents=parents)


def _violated(name: str, parents, world: World, steps: int, violation: str) -> Result:
    return Result(
        scenario=name,
        states=len(parents),
        steps=steps,
        violation=violation,
        trace=trace_to(parents, world),
        complete=False,
    )


def trace_to(parents, world: World) -> tuple[str, ...]:
    """Labels from the start to a world."""
    labels = []
    while True:
        parent, label = parents[world]
        if parent is None:
            return tuple(reversed(labels))
        labels.append(label)
        world = parent
