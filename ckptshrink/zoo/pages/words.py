"""How a status, a size or an error is said on a page."""

import math
from collections.abc import Mapping
from typing import Final

from ckptshrink.zoo.pages.markup import Cell
from ckptshrink.zoo.records import Status

_UNITS: Final = ("bytes", "kB", "MB", "GB", "TB")

NONE: Final = "–"
"""Stands where there is no value."""

MARKS: Final[Mapping[str, tuple[str, str, str]]] = {
    "done": ("done", "✓", "Done"),
    "not good enough": ("poor", "!", "Not good enough"),
    "failed": ("failed", "✗", "Failed"),
    "PASS": ("done", "✓", "PASS"),
    "INCONCLUSIVE": ("poor", "?", "INCONCLUSIVE"),
    "FAIL": ("failed", "✗", "FAIL"),
}
"""Class, sign and word of a status: each says it without the other two."""

_SEVERITY: Final = ("failed", "not good enough", "done", "FAIL", "INCONCLUSIVE", "PASS")


def headline(status: Status) -> str:
    """Return a status as the headline of its section."""
    _, sign, word = MARKS[status]
    return f'<span aria-hidden="true">{sign}</span> {word}'


def marked(status: str) -> str:
    """Return the status of a model or of a gate, in its colour."""
    mark, sign, word = MARKS[status]
    return f'<span class="mark {mark}"><span aria-hidden="true">{sign}</span> {word}</span>'


def status_cell(status: str) -> Cell:
    """Return a status as a cell; the worst is sorted first."""
    return marked(status), float(_SEVERITY.index(status))


def error(relative: float | None) -> str:
    """Return a relative error with four digits."""
    return "" if relative is None else f"{relative:.4g}"


def error_cell(relative: float | None) -> Cell:
    """Return a relative error as a cell."""
    finite = relative is not None and math.isfinite(relative)
    return error(relative), relative if finite else None


def counted(n: int, noun: str) -> str:
    """Return so many of something.

    Examples
    --------
    >>> counted(1, "rule"), counted(1200, "model")
    ('1 rule', '1,200 models')
    """
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def size(nbytes: float) -> str:
    """Return bytes in decimal units, with three digits.

    Examples
    --------
    >>> size(999), size(1_500_000), size(374_434_792)
    ('999 bytes', '1.50 MB', '374 MB')
    """
    for unit in _UNITS:
        if nbytes < 999.5 or unit == _UNITS[-1]:
            break
        nbytes /= 1000
    digits = 0 if unit == "bytes" else 2 if nbytes < 9.995 else 1 if nbytes < 99.95 else 0
    return f"{nbytes:,.{digits}f} {unit}"


def ratio(before: float, after: float) -> str:
    """Return after / before: smaller is better."""
    return f"{after / before:.3f}" if before else NONE


def bar(before: float, after: float) -> str:
    """Return how much is left as a bar; it says nothing that the number beside it does not."""
    share = min(1.0, after / before) if before else 0.0
    return (
        '<svg class="bar" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect width="{100 * share:.1f}" height="6"></rect></svg>'
    )
