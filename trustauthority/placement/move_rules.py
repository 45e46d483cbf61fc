"""The preconditions of a move of a VM between hosts, by name.

What it is: data, as ``placement.rules``. What it trusts: nothing. What it guarantees: no step of a
move is possible without the one before it, and none after the outcome is recorded. What it does not
do: decide. Source: design 6.5.
"""

from trustauthority.errors import Fenced, MoveRefused
from trustauthority.model.placement import MovePhase
from trustauthority.placement.condition import (
    Absent,
    AllOf,
    AnyOf,
    Asked,
    Compare,
    Comparison,
    Field,
    Literal,
    Now,
    Rule,
)
from trustauthority.placement.rules import MOVE_IS_CURRENT, before, equal, reached

NO_OTHER_MOVE = Rule(
    name="no-other-move",
    error=MoveRefused,
    condition=AnyOf((Absent(Field("vm", "move_id")), reached(Field("vm", "move_until_ms"), Now()))),
    says="another move of this VM is in progress",
)
ANOTHER_DESTINATION = Rule(
    name="another-destination",
    error=MoveRefused,
    condition=Compare(Asked("destination"), Comparison.NOT_EQUAL, Asked("host_id")),
    says="the destination is the owner",
)
MOVE_OF_VM = Rule(
    name="move-of-vm",
    error=MoveRefused,
    condition=AllOf(
        (
            equal(Field("move", "move_id"), Asked("move_id")),
            equal(Field("move", "vm_id"), Asked("vm_id")),
            equal(Field("vm", "vm_id"), Asked("vm_id")),
        )
    ),
    says="there is no such move of this VM",
)
MOVE_CURRENT = Rule(
    name="move-current",
    error=MoveRefused,
    condition=AllOf(
        (
            MOVE_IS_CURRENT,
            equal(Field("vm", "owner"), Field("move", "source")),
            equal(Field("vm", "grant_epoch"), Field("move", "grant_epoch")),
        )
    ),
    says="the VM changed hands since it was offered, or another move replaced this one",
)
MOVE_IN_TIME = Rule(
    name="move-in-time",
    error=MoveRefused,
    condition=before(Now(), Field("move", "expires_ms")),
    says="the offer or the preparation expired",
)
OFFERED_TO_HOST = Rule(
    name="offered-to-host",
    error=MoveRefused,
    condition=AllOf(
        (
            equal(Field("move", "destination"), Asked("host_id")),
            equal(Field("move", "destination"), Field("host", "host_id")),
            equal(Field("move", "phase"), Literal(MovePhase.OFFERED)),
        )
    ),
    says="the owner did not offer the VM to this host, or it was prepared already",
)
SOURCE_ASKS = Rule(
    name="source-asks",
    error=Fenced,
    condition=AllOf(
        (
            equal(Field("move", "source"), Asked("host_id")),
            equal(Field("vm", "owner"), Asked("host_id")),
        )
    ),
    says="the host is not the owner that offered this move",
)
DESTINATION_PREPARED = Rule(
    name="destination-prepared",
    error=MoveRefused,
    condition=AllOf(
        (
            equal(Field("move", "phase"), Literal(MovePhase.PREPARED)),
            equal(Field("move", "destination"), Field("host", "host_id")),
            equal(Field("move", "prepared_boot"), Field("host", "boot")),
        )
    ),
    says="the destination is not prepared, or was reset since",
)
PARTY_ASKS = Rule(
    name="party-asks",
    error=MoveRefused,
    condition=AnyOf(
        (
            equal(Field("move", "source"), Asked("host_id")),
            equal(Field("move", "destination"), Asked("host_id")),
        )
    ),
    says="the host takes no part in this move",
)
MOVE_OPEN = Rule(
    name="move-open",
    error=MoveRefused,
    condition=AnyOf(
        (
            equal(Field("move", "phase"), Literal(MovePhase.OFFERED)),
            equal(Field("move", "phase"), Literal(MovePhase.PREPARED)),
        )
    ),
    says="the move has its outcome already",
)
