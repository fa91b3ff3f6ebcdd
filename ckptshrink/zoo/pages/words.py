"""How a status, a size or an error is said on a page."""

import math
from collections.abc import Mapping
from typing import Final

from ckptshrink.zoo.pages.markup import Cell
from ckptshrink.zoo.pages.style import BAR_STEP

NONE: Final = "–"
"""Stands where there is no value."""

MARKS: Final[Mapping[str, tuple[str, str]]] = {
    "done": ("done", "Done"),
    "not good enough": ("poor", "Not good enough"),
    "failed": ("failed", "Failed"),
    "PASS": ("done", "PASS"),
    "INCONCLUSIVE": ("poor", "INCONCLUSIVE"),
    "FAIL": ("failed", "FAIL"),
}
"""Class and word of a status. The class gives it a colour and a sign, the word says it alone."""

_SEVERITY: Final = ("failed", "not good enough", "done", "FAIL", "INCONCLUSIVE", "PASS")


def marked(status: str) -> str:
    """Return the status of a model or of a gate, in its colour."""
    mark, word = MARKS[status]
    return f'<span class="mark {mark}">{word}</span>'


def status_cell(status: str) -> Cell:
    """Return a status as a cell; the worst is sorted first."""
    mark, word = MARKS[status]
    return Cell(word, _SEVERITY.index(status), f"mark {mark}")


def error(relative: float | None) -> str:
    """Return a relative error with four digits."""
    return "" if relative is None else f"{relative:.4g}"


def error_cell(relative: float | None) -> Cell:
    """Return a relative error as a cell."""
    finite = relative is not None and math.isfinite(relative)
    return Cell(error(relative), relative if finite else None)


def counted(n: int, noun: str) -> str:
    """Return so many of something.

    Examples
    --------
    >>> counted(1, "rule"), counted(1200, "model")
    ('1 rule', '1,200 models')
    """
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def ratio(before: float, after: float) -> str:
    """Return after / before: smaller is better."""
    return f"{after / before:.3f}" if before else NONE


def bar(before: float, after: float) -> str:
    """Return the classes of a bar as long as what is left, or of a full one."""
    percent = min(100.0, 100 * after / before) if before else 0.0
    return f"bar b{BAR_STEP * round(percent / BAR_STEP)}"


def with_bar(shown: str, before: float, after: float) -> str:
    """Return HTML with a bar below it, which says nothing that the number does not."""
    return f'{shown}<span class="{bar(before, after)}"></span>'
