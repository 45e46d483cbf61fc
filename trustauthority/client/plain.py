"""Messages as plain data, for the JSON of ``ta`` and of the gateway: stable, typed, without protobuf's habits.

Keys are lowerCamelCase. Enums are lower-case words without their type's prefix, times are RFC 3339 or
null, 64-bit numbers are numbers, bytes are hex, and every field is there even when it is empty.
"""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp

Plain: TypeAlias = "dict[str, Plain] | list[Plain] | str | int | float | bool | None"


def plain(message: "Message") -> dict[str, Any]:
    """A message as a dictionary of plain data, in the order of its definition."""
    return {
        field.json_name: _field(message, field)
        for field in message.DESCRIPTOR.fields
        if field.containing_oneof is None or message.HasField(field.name)
    }


def enum_word(field: Any, number: int) -> str:
    """The word of an enum value: PASSED of STANDING_PASSED becomes ``passed``; unknown ones a number."""
    kind = field.enum_type
    value = None if kind is None else kind.values_by_number.get(number)
    if kind is None or value is None:
        return str(number)
    prefix = kind.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return str(value.name).removeprefix(prefix).lower().replace("_", "-")


def word(message: "Message", name: str) -> str:
    """The word of the enum field ``name``."""
    return enum_word(message.DESCRIPTOR.fields_by_name[name], getattr(message, name))


def _field(message: "Message", field: Any) -> Plain:
    value = getattr(message, field.name)
    if field.is_repeated:
        return [_value(field, item) for item in value]
    if field.message_type is not None and not message.HasField(field.name):
        return None
    return _value(field, value)


def _value(field: Any, value: Any) -> Plain:
    if field.message_type is not None:
        if field.message_type.full_name == "google.protobuf.Timestamp":
            when = moment(value)
            return None if when is None else when.isoformat().replace("+00:00", "Z")
        return plain(value)
    if isinstance(value, bytes):
        return value.hex()
    if field.enum_type is not None:
        return enum_word(field, value)
    return value if isinstance(value, (str, int, float, bool)) else str(value)


def moment(stamp: "Timestamp") -> datetime | None:
    """The time in a message; None when it is unset or impossible."""
    if not stamp.seconds and not stamp.nanos:
        return None
    try:
        return stamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
