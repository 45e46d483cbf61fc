"""All pages of a list, as one."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from trustauthority.errors import InvalidRequest

MAX_PAGES = 1_000
"""Half a million rows; a server that never ends its list is stopped here."""


class Page(Protocol):
    """A reply that may have a successor."""

    @property
    def next_page_token(self) -> str:
        """Empty on the last page."""


P = TypeVar("P", bound=Page)
Row = TypeVar("Row")


def all_pages(fetch: Callable[[str], P], rows: Callable[[P], Iterable[Row]]) -> Iterator[Row]:
    """Fetch pages until the last and yield their rows. Raises InvalidRequest when there is no end."""
    token = ""
    for _ in range(MAX_PAGES):
        page = fetch(token)
        yield from rows(page)
        token = page.next_page_token
        if not token:
            return
    raise InvalidRequest("the list has no end", field="page_token")
