"""The cells of a sweep: every method × weights × size, as a request each."""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ckptshrink.digest import value_sha256
from ckptshrink.errors import PlanError
from ckptshrink.planning.request import Request, Size, Target

_KEYS: Final = {"rank": "rank", "ratio": "ratio", "energy": "energy", "max-error": "max_error"}


@dataclass(frozen=True, slots=True)
class Cell:
    """One compression of a sweep.

    Attributes
    ----------
    weights : str
        A role, a glob, or several joined by ``+`` that are compressed together.
    method : str
    key : str
        What is varied, as the command line has it: ``rank``, ``ratio``, ``energy``, ``max-error``.
    value : float or int
    """

    weights: str
    method: str
    key: str
    value: float | int

    @property
    def name(self) -> str:
        """Return what tables call it."""
        return f"{self.weights} {self.method} {self.key}={self.value}"

    def request(self, more: Mapping[str, Any]) -> Request:
        """Return the request; `more` are further fields of `Request`."""
        sizes: dict[str, Any] = {_KEYS[self.key]: self.value}
        size = Size(**sizes)
        targets = tuple(Target(weights) for weights in self.weights.split("+"))
        return Request(targets, size=size, method=self.method, **more)


@dataclass(frozen=True, slots=True)
class Grid:
    """Which cells there are.

    Attributes
    ----------
    key : str
    values : tuple of float or int
    weights : tuple of str
    methods : tuple of str
    more : mapping
        Further fields of `Request` that hold for every cell, plain values.
    """

    key: str
    values: tuple[float | int, ...]
    weights: tuple[str, ...]
    methods: tuple[str, ...]
    more: Mapping[str, Any]

    def __post_init__(self) -> None:
        for what in ("values", "weights", "methods"):
            given = getattr(self, what)
            if not given:
                raise PlanError(f"a sweep without {what}")
            twice = next((one for one in given if given.count(one) > 1), None)
            if twice is not None:
                raise PlanError(f"{twice} is in the sweep twice")
        for cell in self.cells():
            cell.request(self.more)  # a value out of range is refused before any work

    def cells(self) -> tuple[Cell, ...]:
        """Return every cell: by weights, then method, then size."""
        return tuple(
            Cell(weights, method, self.key, value)
            for weights, method, value in itertools.product(self.weights, self.methods, self.values)
        )


def parse_sweep(text: str) -> tuple[str, tuple[float | int, ...]]:
    """Read ``rank=10,50,100``.

    Raises
    ------
    PlanError
        It is of another form; what may be varied is listed.

    Examples
    --------
    >>> parse_sweep("rank=10,50")
    ('rank', (10, 50))
    """
    key, equals, values = text.partition("=")
    if key not in _KEYS or not equals:
        raise PlanError(f"{text!r} is no sweep", hint="rank=10,50,100; or ratio, energy, max-error")
    read: Any = int if key == "rank" else float
    try:
        return key, tuple(read(value) for value in values.split(","))
    except ValueError:
        raise PlanError(f"{text!r}: {key} takes numbers, set apart by commas") from None


def digest_of(cell: Cell, more: Mapping[str, Any], where: Mapping[str, Any]) -> str:
    """Return what a cell's result depends on, hashed: its request, and all that `where` says."""
    request = {
        "weights": cell.weights, "method": cell.method, "key": cell.key, "value": cell.value,
        "more": dict(more),
    }  # fmt: skip
    return value_sha256({"request": request, "where": dict(where)})


def file_stem(cell: Cell) -> str:
    """Return a name of a file for a cell; two cells may share it, their digests differ.

    Examples
    --------
    >>> file_stem(Cell("Wi+Wh", "semi-nmf", "rank", 10))
    'Wi_Wh-semi-nmf-rank-10'
    """
    text = f"{cell.weights}-{cell.method}-{cell.key}-{cell.value}"
    return re.sub(r"[^A-Za-z0-9.-]", "_", text)[:120].lstrip(".")
