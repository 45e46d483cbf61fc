"""A check tree as text: one line per check, with state, id, register, event, then its words."""

from collections.abc import Iterable, Iterator

from trustauthority.model.verdict import Check


def lines(checks: Iterable[Check], depth: int = 0) -> Iterator[str]:
    """A line per check, its children below it."""
    for check in checks:
        place = f" pcr={check.pcr}" if check.pcr >= 0 else ""
        place += f" event={check.event_index}" if check.event_index >= 0 else ""
        words = [check.title]
        for name in ("expected", "found", "detail", "remedy"):
            if value := getattr(check, name):
                words.append(f"{name}: {value}")
        yield f"{'  ' * depth}{check.state} {check.id}{place} | {' | '.join(words)}"
        yield from lines(check.children, depth + 1)
