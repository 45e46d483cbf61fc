"""Options that every command takes, with one meaning everywhere."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

from cyclopts import Group, Parameter

from trustauthority.cli.render import Output

GLOBAL = Group("Options of every command", sort_key=100)

_DURATION = re.compile(r"([0-9]{1,9})(ms|s|m|h|d)?")
_UNITS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def parse_duration(text: str) -> timedelta:
    """Read ``90``, ``90s``, ``10m``, ``12h``, ``30d``; without a unit it is seconds."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a length of time such as 90s, 10m, 12h or 30d")
    return timedelta(milliseconds=int(match[1]) * _UNITS[match[2] or "s"])


def _convert_duration(_type: Any, tokens: Sequence[Any]) -> timedelta:
    return parse_duration(tokens[0].value)


Duration = Annotated[timedelta, Parameter(converter=_convert_duration, n_tokens=1)]
"""A length of time on the command line."""

ClusterName = Annotated[str, Parameter(name=("--cluster", "-c"))]
"""A trusted cluster."""

DryRun = Annotated[bool, Parameter(name="--dry-run", negative="")]
"""Say what would happen, change nothing."""


Watch = Annotated[bool, Parameter(name=("--watch", "-w"), negative="")]
"""Go on as things change, from the authority's stream."""


@Parameter(name="*", group=GLOBAL)
@dataclass(frozen=True, kw_only=True)
class Options:
    """How to ask, and how to answer."""

    output: Annotated[Output, Parameter(name=("--output", "-o"))] = Output.TABLE
    """Form of the answer."""
    context: Annotated[str, Parameter(name="--context", show_default=False)] = ""
    """Context to use instead of the current one (also TA_CONTEXT)."""
    server: Annotated[str, Parameter(name="--server", show_default=False)] = ""
    """HOST:PORT to ask instead of the context's; its CA stays pinned."""
    timeout: Annotated[Duration, Parameter(name="--timeout", show_default=False)] = timedelta(
        seconds=10
    )
    """How long to wait for an answer (10s unless given)."""
    quiet: Annotated[bool, Parameter(name=("--quiet", "-q"), negative="", show_default=False)] = (
        False
    )
    """No narration, only data, warnings and errors."""
    verbose: Annotated[
        bool, Parameter(name=("--verbose", "-v"), negative="", show_default=False)
    ] = False
    """Say more: request ids, addresses, and the stack of a bug."""
    no_color: Annotated[bool, Parameter(name="--no-color", negative="", show_default=False)] = False
    """No colour (also NO_COLOR)."""
    yes: Annotated[bool, Parameter(name=("--yes", "-y"), negative="", show_default=False)] = False
    """Do not ask."""


DEFAULTS = Options()

_WITH_VALUE = frozenset({"--output", "-o", "--context", "--server", "--timeout"})
_WITHOUT_VALUE = frozenset({"--quiet", "-q", "--verbose", "-v", "--no-color", "--yes", "-y"})


def hoist(tokens: Sequence[str]) -> list[str]:
    """Move options given before the noun behind the command, which is what takes them.

    ``ta -o json host list`` means ``ta host list -o json``.
    """
    position = 0
    while position < len(tokens):
        token = tokens[position]
        if token in _WITH_VALUE:
            position += 2
        elif token in _WITHOUT_VALUE or token.partition("=")[0] in _WITH_VALUE:
            position += 1
        else:
            break
    first, rest = list(tokens[:position]), list(tokens[position:])
    end = rest.index("--") if "--" in rest else len(rest)
    return [*rest[:end], *first, *rest[end:]]
