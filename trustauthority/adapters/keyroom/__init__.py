"""The key room: VM keys and KEKs in the clear exist in a short-lived child process only.

``room`` is the port's implementation in the key role; ``child`` is the other process; ``frames`` is
what they say to each other; ``confine`` is what the child does to itself before it sees a key.
"""

from trustauthority.adapters.keyroom.room import ChildKeyRoom
from trustauthority.adapters.keyroom.settings import EscrowSettings, KeyRoomSettings

__all__ = ["ChildKeyRoom", "EscrowSettings", "KeyRoomSettings"]
