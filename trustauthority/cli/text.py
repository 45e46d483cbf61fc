"""Make untrusted text harmless, and times readable.

Names, reasons and details come from hosts and servers: none may move the cursor, colour the screen,
break a line or turn the reading direction (N44).
"""

import unicodedata
from datetime import UTC, datetime, timedelta

from trustauthority.client.plain import moment

__all__ = [
    "NOTHING",
    "absolute",
    "ago",
    "count",
    "left",
    "milliseconds",
    "moment",
    "printable",
    "printable_block",
    "span",
]

MAX_SHOWN = 2_000
"""Characters of one value on a screen; machines get all of it."""
NOTHING = "–"
"""Shown where there is no value."""

_HARMFUL = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def printable(text: str, *, keep: str = "") -> str:
    """Escape what is not a plain visible character, except those in ``keep``; shorten the endless."""
    if text.isascii() and text.isprintable() and len(text) <= MAX_SHOWN:
        return text
    shown = "".join(
        _escape(char) if unicodedata.category(char) in _HARMFUL and char not in keep else char
        for char in text[:MAX_SHOWN]
    )
    return shown if len(text) <= MAX_SHOWN else f"{shown}… ({len(text)} characters)"


def printable_block(text: str) -> str:
    """The same for a text of several lines, of any length."""
    lines = text.split("\n")
    return "\n".join(printable(line, keep="\t") for line in lines)


def _escape(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


def absolute(when: datetime | None) -> str:
    """A time as ``2026-11-20 09:13:05Z``."""
    return NOTHING if when is None else when.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def span(delta: timedelta) -> str:
    """A length of time in one unit: ``40s 4m 6h 2d 3y``."""
    seconds = int(abs(delta.total_seconds()))
    for size, unit in ((31_557_600, "y"), (86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= 2 * size or (seconds >= size and unit == "m"):
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def ago(when: datetime | None, now: datetime) -> str:
    """How long ago, as ``6h``."""
    if when is None:
        return NOTHING
    return span(now - when) if when <= now else f"in {span(when - now)}"


def left(when: datetime | None, now: datetime) -> str:
    """How long until, as ``5h left``, or ``expired``."""
    if when is None:
        return NOTHING
    return f"{span(when - now)} left" if when > now else "expired"


def milliseconds(value: int) -> str:
    """An exact length of a lease, as ``5m`` or ``1m10s``; 0 is unlimited."""
    if value <= 0:
        return "unlimited"
    parts = []
    for size, unit in ((86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s"), (1, "ms")):
        number, value = divmod(value, size)
        parts.append(f"{number}{unit}" if number else "")
    return "".join(parts)


def count(number: int, noun: str, plural: str = "") -> str:
    """``1 host``, ``2 hosts``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
