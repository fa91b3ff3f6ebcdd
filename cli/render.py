"""Tables, sizes and the progress bar: the only user of rich, and only where there is a terminal."""

import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from typing import Any, Final, Literal

from ckptshrink.errors import printable
from ckptshrink.events import Listener, Progress
from ckptshrink.tensors import size as size
from ckptshrink_cli.streams import emit

Row = Mapping[str, Any]

_LEAST_WIDTH: Final = 12
"""Width to which a column of text may be folded."""

_GAP: Final = 2
"""Blanks between two columns."""

_MOST_NOTES: Final = 20
"""Notes that are shown; an HDF5 file can have ten thousand attributes that are left out."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table on the terminal.

    Attributes
    ----------
    title : str
    text : callable
        From a row to what the cell shows.
    right : bool
        Whether it is a number or so: set to the right, and never folded.
    spare : bool
        Whether it is left out where the terminal is too narrow for all.
    """

    title: str
    text: Callable[[Row], str]
    right: bool = False
    spare: bool = False


def first_of(notes: Sequence[str]) -> Iterator[str]:
    """Yield the first notes, and how many there are after them."""
    yield from notes[:_MOST_NOTES]
    if len(notes) > _MOST_NOTES:
        yield f"and {count(len(notes) - _MOST_NOTES)} more like these; --json has them all"


def show(rows: Sequence[Row], fields: Sequence[str], columns: Sequence[Column]) -> None:
    """Write rows to standard output: a table on a terminal, tab-separated values otherwise.

    Parameters
    ----------
    rows : sequence of mapping
    fields : sequence of str
        Keys of a row that are the columns of the tab-separated form, which has raw numbers.
    columns : sequence of Column
        Columns of the table.
    """
    emit(as_table(rows, columns) if sys.stdout.isatty() else as_tsv(rows, fields))


def as_tsv(rows: Iterable[Row], fields: Sequence[str]) -> str:
    """Return tab-separated values with a header line; tabs and newlines in values are escaped."""
    lines = ["\t".join(fields), *("\t".join(_raw(row[f]) for f in fields) for row in rows)]
    return "".join(f"{line}\n" for line in lines)


def as_table(rows: Iterable[Row], columns: Sequence[Column]) -> str:
    """Return a table as wide as the terminal, if it can be; names fold and are never cut off.

    A column in which every cell is empty is left out, and a table without rows is nothing.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [[printable(column.text(row)) for column in columns] for row in rows]
    if not cells:
        return ""
    shown = {
        column: longest
        for i, column in enumerate(columns)
        if (longest := max(len(line[i]) for line in cells))
    }
    least = {
        column: max(len(column.title), longest if column.right else min(longest, _LEAST_WIDTH))
        for column, longest in shown.items()
    }
    terminal = shutil.get_terminal_size().columns
    if sum(least.values()) + _GAP * len(least) > terminal:
        least = {column: width for column, width in least.items() if not column.spare}
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for column, width in least.items():
        side: Literal["left", "right"] = "right" if column.right else "left"
        table.add_column(column.title, justify=side, overflow="fold", min_width=width)
    for line in cells:
        # Text and not str: a name with brackets would be taken for markup
        cell_of = dict(zip(columns, line, strict=True))
        table.add_row(*(Text(cell_of[column]) for column in least))
    # where the terminal is narrower still, it breaks the lines itself; rich would drop columns
    width = max(terminal, sum(least.values()) + _GAP * len(least))
    written = StringIO()
    Console(file=written, force_terminal=True, width=width, highlight=False).print(table)
    return written.getvalue()


@contextmanager
def progress_bar() -> Iterator[Listener]:
    """Show a bar with the time left on standard error while the block runs."""
    from rich import progress as bars
    from rich.console import Console

    # whether there is a terminal was decided before; rich must not be asked again, as
    # FORCE_COLOR would turn the bar on where there is none
    console = Console(stderr=True, force_terminal=True, force_interactive=True)
    bar = bars.Progress(
        bars.TextColumn("{task.percentage:>3.0f}%"),
        bars.BarColumn(bar_width=24),
        bars.TimeRemainingColumn(compact=True),
        bars.TextColumn("{task.description}", markup=False),
        console=console,
        transient=True,
    )
    with bar:
        task = bar.add_task("", total=None)

        def listen(progress: Progress) -> None:
            doing = printable(progress.doing)
            bar.update(task, description=doing, completed=progress.done, total=progress.total)

        yield listen


@contextmanager
def changing_lines(lines: Callable[[], Sequence[str]]) -> Iterator[Callable[[str], None]]:
    """Show lines at the foot of standard error that change while the block runs.

    Parameters
    ----------
    lines : callable
        Returns the lines of the moment; asked twice a second.

    Yields
    ------
    callable
        Writes a line that stays, above them.
    """
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(stderr=True, force_terminal=True, force_interactive=True)

    def drawn() -> Text:
        return Text("\n".join(map(printable, lines())), no_wrap=True, overflow="ellipsis")

    with Live(get_renderable=drawn, console=console, refresh_per_second=2, transient=True) as live:
        yield lambda line: live.console.print(Text(printable(line)), soft_wrap=True)


def duration(seconds: float) -> str:
    """Return a time as ``0:12``, or with hours.

    Examples
    --------
    >>> duration(12.3), duration(3723)
    ('0:12', '1:02:03')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def count(number: int) -> str:
    """Return a number with its thousands set apart."""
    return f"{number:,}"


def change(before: int, after: int) -> str:
    """Return ``before → after``, or the number alone where it stays the same."""
    return count(before) if before == after else f"{count(before)} → {count(after)}"


def ratio(before: float, after: float) -> str:
    """Return after / before: smaller is better."""
    return f"{after / before:.3f}" if before else "-"


def shape(sizes: Sequence[int]) -> str:
    """Return a shape as ``16384x512``; ``scalar`` where there is no dimension."""
    return "x".join(map(str, sizes)) or "scalar"


def error(value: float | None) -> str:
    """Return a relative error with four digits."""
    return "" if value is None else f"{value:.4g}"


def _raw(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return shape(value)
    return printable(str(value))
