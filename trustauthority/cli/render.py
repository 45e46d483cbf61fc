"""One renderer for every command: tables for people, JSON, YAML and names for machines.

Data goes to standard output, narration to standard error. All text passes ``printable`` here, so no
command can forget it. Colour only repeats what marks and words already say.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Generic, TextIO, TypeVar

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from trustauthority.cli.text import NOTHING, printable, printable_block
from trustauthority.client.plain import plain

if TYPE_CHECKING:
    from google.protobuf.message import Message

GAP = "  "
GOOD, BAD, CAUTION, QUIET, STRONG = "green", "red", "yellow", "dim", "bold"


class Output(StrEnum):
    """Form of the data on standard output."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


@dataclass(frozen=True, slots=True, kw_only=True)
class Marked:
    """A text with a colour that repeats what it says."""

    text: str
    style: str = ""


Cell = str | Marked
Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Column(Generic[Row]):
    """One column of a list."""

    title: str
    cell: Callable[[Row], Cell]
    wide: bool = False
    """Only shown with ``-o wide``."""


@dataclass(frozen=True, slots=True)
class Field:
    """One line of a record."""

    label: str
    cell: Cell
    wide: bool = False


@dataclass(slots=True, kw_only=True)
class Screen:
    """Where output goes, and in which form."""

    out: TextIO
    err: TextIO
    output: Output = Output.TABLE
    quiet: bool = False
    verbose: bool = False
    plain_text: bool = False
    """No colour even on a terminal."""
    now: datetime
    _out: Console = field(init=False)
    _err: Console = field(init=False)

    def __post_init__(self) -> None:
        self._out, self._err = self._console(self.out), self._console(self.err)

    @property
    def wide(self) -> bool:
        """Whether the caller asked for everything."""
        return self.output is Output.WIDE

    @property
    def for_machines(self) -> bool:
        """Whether standard output is to be parsed."""
        return self.output in {Output.JSON, Output.YAML, Output.NAME}

    # --- narration -----------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Tell the person what is going on."""
        if not self.quiet:
            self._print(self._err, Text(printable_block(text)))

    def detail(self, text: str) -> None:
        """Tell it only to those who asked with -v."""
        if self.verbose:
            self._print(self._err, Text(printable_block(text), style=QUIET))

    def warn(self, text: str) -> None:
        """Say something that must not be missed, -q or not."""
        self._print(self._err, Text.assemble(("! ", CAUTION), printable_block(text)))

    def fail(self, text: str) -> None:
        """Say why the command did not do what was asked."""
        self._print(self._err, Text.assemble(("✖ ", BAD), printable_block(text)))

    def advise(self, text: str) -> None:
        """Say what to do about it."""
        self._print(self._err, Text(f"  → {printable_block(text)}"))

    # --- data ----------------------------------------------------------------------------

    def line(self, *parts: Cell) -> None:
        """One line of data for people."""
        self._print(self._out, Text.assemble(*(_text(part) for part in parts)))

    def listing(
        self,
        rows: Sequence[Row],
        columns: Sequence[Column[Row]],
        *,
        header: str,
        empty: str,
        name: Callable[[Row], str],
        data: Callable[[Row], Any] | None = None,
    ) -> None:
        """Show a list: its scope and count, then a table; what to do next when it is empty."""
        if self.for_machines:
            values = [_plain(row) if data is None else data(row) for row in rows]
            self.machine(values, names=[name(row) for row in rows])
            return
        if not rows:
            self.say(empty)
            return
        self.line(Marked(text=header, style=STRONG))
        shown = [column for column in columns if self.wide or not column.wide]
        self.table(
            [column.title for column in shown],
            [[column.cell(row) for column in shown] for row in rows],
        )

    def record(
        self, title: Cell, fields: Iterable[Field], *, name: str, data: "Message | dict[str, Any]"
    ) -> None:
        """Show one object, a line per field that has a value."""
        if self.for_machines:
            self.machine(_plain(data), names=[name])
            return
        self.line(title)
        self.fields(fields)

    def fields(self, fields: Iterable[Field]) -> None:
        """The indented lines of a record."""
        lines = [line for line in fields if (self.wide or not line.wide) and _text(line.cell).plain]
        width = max((cell_len(line.label) for line in lines), default=0)
        for line in lines:
            self.line(Marked(text=f"  {_pad(line.label, width)}{GAP}", style=QUIET), line.cell)

    def table(self, titles: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """Columns as wide as their contents; the last one runs on."""
        cells = [
            [_text(cell) if _text(cell).plain else Text(NOTHING) for cell in row] for row in rows
        ]
        widths = [
            max([cell_len(title), *(cell_len(row[index].plain) for row in cells)])
            for index, title in enumerate(titles)
        ]
        head = [Text(title, style=QUIET) for title in titles]
        for row in (head, *cells):
            line = Text()
            for index, cell in enumerate(row):
                last = index == len(row) - 1
                padding = "" if last else " " * (widths[index] - cell_len(cell.plain)) + GAP
                line.append_text(cell).append(padding)
            self._print(self._out, line)

    def machine(self, data: Any, *, names: Sequence[str] = ()) -> None:
        """Print data in the machine form that was asked for."""
        if self.output is Output.NAME:
            text = "".join(f"{printable(name)}\n" for name in names)
        elif self.output is Output.YAML:
            import yaml

            text = yaml.safe_dump(data, sort_keys=False, allow_unicode=False)
        else:
            # ASCII only: escapes also what JSON allows but a terminal would obey.
            text = json.dumps(data, indent=2).replace("\x7f", "\\u007f") + "\n"
        self.out.write(text)

    def json_line(self, data: Any) -> None:
        """Print data as one line of JSON, for programs that read a stream."""
        # ASCII only, as in ``machine``
        self.out.write(json.dumps(data).replace("\x7f", "\\u007f") + "\n")

    def document(self, text: str) -> None:
        """Print a document as it is, byte for byte; escaped when a person is looking."""
        self.out.write(printable_block(text) if self.out.isatty() else text)
        if text and not text.endswith("\n"):
            self.out.write("\n")

    # --- inside --------------------------------------------------------------------------

    def _console(self, stream: TextIO) -> Console:
        colour = not self.plain_text and stream.isatty()
        return Console(
            file=stream,
            no_color=not colour,
            color_system="auto" if colour else None,
            highlight=False,
            markup=False,
            emoji=False,
            soft_wrap=True,
        )

    def _print(self, console: Console, text: Text) -> None:
        if not console.no_color:
            console.print(text, soft_wrap=True)
            return
        console.file.write(text.plain.rstrip(" ") + "\n")


def _plain(value: Any) -> Any:
    return plain(value) if hasattr(value, "DESCRIPTOR") else value


def _text(cell: Cell) -> Text:
    if isinstance(cell, Marked):
        return Text(printable(cell.text), style=cell.style)
    return Text(printable(cell))


def _pad(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))
