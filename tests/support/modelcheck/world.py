"""The nouns of the model: one VM, a few hosts, one authority, a network, and real time in ticks."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from hostagent.lease_model import LeaseView, Reply, Send
from trustauthority.model.placement import (
    AuthorityRecord,
    BreakGlass,
    ClusterRecord,
    Grant,
    HostStanding,
    Intent,
    Move,
    VmRecord,
)
from trustauthority.placement.clock import ClockGuard

VM = "vm"
CLUSTER = "c"


class Domain(StrEnum):
    """What QEMU does on a host, in truth."""

    NONE = "none"
    RUNNING = "running"
    PAUSED = "paused"
    INCOMING = "incoming"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The authority's database, and what really happened beside it (ghosts)."""

    authority: AuthorityRecord
    cluster: ClusterRecord
    hosts: tuple[HostStanding, ...]
    vm: VmRecord
    guard: ClockGuard
    intents: tuple[Intent, ...] = ()
    grants: tuple[Grant, ...] = ()
    moves: tuple[Move, ...] = ()
    glasses: tuple[BreakGlass, ...] = ()
    read_ok: frozenset[str] = frozenset()
    """Only for the planted bug *read-then-release*: request ids whose check was read as good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A host: its agent's stored view, its VM, its watchdog, its clock."""

    view: LeaseView = field(default_factory=LeaseView)
    up: bool = True
    domain: Domain = Domain.NONE
    watchdog_ms: int | None = None
    lag: int = 0
    """Ticks by which its CLOCK_BOOTTIME fell behind."""
    boot: int = 1
    ids: int = 0
    sent_at: tuple[tuple[str, int], ...] = ()
    """Real time of the first send of each request id (ghost)."""
    lease_sent_at: int = 0
    """Real time of the first send of the request whose lease it runs under (ghost)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToAuthority:
    host: int
    send: Send


@dataclass(frozen=True, slots=True, kw_only=True)
class ToHost:
    host: int
    reply: Reply
    key_boot: int | None = None
    """The boot that the key blob in it opens in; ``None`` where there is no key in it."""


class World(NamedTuple):
    """One state, made of pool numbers so that it hashes fast."""

    t: int
    offset: int
    """Authority's wall clock minus real time."""
    rows: int
    net: frozenset[int]
    work: frozenset[str]
    """Request ids between transaction 1 and 2 on some node. Not going on is a crash."""
    machines: tuple[int, ...]
    budget: tuple[int, ...]


class Pool:
    """Gives each distinct object a number."""

    def __init__(self) -> None:
        self.numbers: dict[Any, int] = {}
        self.objects: list[Any] = []

    def put(self, thing: Any) -> int:
        number = self.numbers.get(thing)
        if number is None:
            number = len(self.objects)
            self.numbers[thing] = number
            self.objects.append(thing)
        return number

    def __getitem__(self, number: int) -> Any:
        return self.objects[number]
