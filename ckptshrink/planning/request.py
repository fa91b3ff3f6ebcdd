"""What a user asks for: targets, how far each is compressed, by which method."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from ckptshrink.errors import PlanError
from ckptshrink.gates import ROLES
from ckptshrink.plan import DTYPE_CODES, Settings

DEFAULT_METHOD: Final = "svd"

_UNITS: Final = {
    "": 1, "%": 0.01, "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30,
}  # fmt: skip
_SETTING: Final = re.compile(r":(?=[a-z][a-z-]*=)")
"""Where a target's settings begin; the colon of a tensor's own name (``kernel:0``) is no such."""


@dataclass(frozen=True, slots=True)
class Size:
    """How far a matrix is compressed; exactly one field is given.

    Attributes
    ----------
    rank : int
        At least 1.
    ratio : float
        Parameters after / before, in (0, 1].
    energy : float
        Least share of the squared singular values to keep, in (0, 1].
    max_error : float
        Largest relative Frobenius error, in [0, 1).
    """

    rank: int | None = None
    ratio: float | None = None
    energy: float | None = None
    max_error: float | None = None

    def __post_init__(self) -> None:
        given = [n for n in self.__slots__ if getattr(self, n) is not None]
        if len(given) != 1:
            raise PlanError(
                "give exactly one of --rank, --ratio, --energy, --max-error; got "
                + (", ".join(given) or "none")
            )
        if self.rank is not None and self.rank < 1:
            raise PlanError(f"a rank is at least 1; got {self.rank}")
        for name in ("ratio", "energy"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise PlanError(f"--{name} lies in (0, 1]; got {value}")
        if self.max_error is not None and not 0 <= self.max_error < 1:
            raise PlanError(f"--max-error lies in [0, 1); got {self.max_error}")

    @property
    def needs_payload(self) -> bool:
        """Whether ranks follow from the values of a matrix and not from its shape alone."""
        return self.energy is not None or self.max_error is not None


@dataclass(frozen=True, slots=True)
class Target:
    """Which matrices, and what holds for them alone.

    `selector` is a role, ``all``, or a glob on tensor names; several may be joined by commas.
    """

    selector: str
    size: Size | None = None
    method: str | None = None
    grouping: str | None = None
    dtype: str | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """Everything a plan is made from, beside the checkpoint.

    Attributes
    ----------
    budget : float or None
        Bytes of ``model.safetensors`` (above 1), or a share of the source's bytes (at most 1).
    keep : tuple of str
        Globs on tensor names that are left as they are, whatever the targets say.
    """

    targets: tuple[Target, ...]
    size: Size | None = None
    budget: float | None = None
    method: str = DEFAULT_METHOD
    grouping: str = "stacked"
    dtype: str = "keep"
    keep: tuple[str, ...] = ()
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        if not self.targets:
            raise PlanError("no --target", hint=f"one of {', '.join(ROLES)}, all, or a tensor name")
        unsized = [t.selector for t in self.targets if t.size is None]
        if self.size is not None and self.budget is not None:
            raise PlanError("--budget chooses the ranks; it can't go with a rank, ratio or error")
        if self.size is None and self.budget is None and unsized:
            raise PlanError(
                f"nothing says how far {unsized[0]!r} is to be compressed",
                hint="add --rank N, --ratio R, --energy E, --max-error E or --budget SIZE",
            )

    @property
    def needs_payload(self) -> bool:
        """Whether the ranks follow from values, so that planning must read payloads."""
        sizes = (self.size, *(target.size for target in self.targets))
        return self.budget is not None or any(s is not None and s.needs_payload for s in sizes)


def parse_target(text: str) -> Target:
    """Read ``Wh``, ``Wi,Wh`` or ``Wh:rank=10,method=prune``.

    Raises
    ------
    PlanError
        An unknown setting or a value of the wrong kind.

    Examples
    --------
    >>> parse_target("Wh:rank=10,method=prune")
    Target(selector='Wh', size=Size(rank=10, ratio=None, energy=None, max_error=None), \
method='prune', grouping=None, dtype=None)
    """
    selector, *rest = _SETTING.split(text, maxsplit=1)
    if not selector:
        raise PlanError(f"target {text!r} names nothing before its settings")
    target = Target(selector)
    seen: set[str] = set()
    for setting in rest[0].split(",") if rest else ():
        key, equals, value = setting.partition("=")
        kind = "size" if key in {"rank", "ratio", "energy", "max-error"} else key
        if kind in seen:
            raise PlanError(f"target {text!r} sets its {kind} twice")
        seen.add(kind)
        if key in {"rank", "ratio", "energy", "max-error"} and equals:
            target = replace(target, size=_size(key, value, text))
        elif key == "method" and equals:
            target = replace(target, method=value)
        elif key == "grouping" and equals:
            target = replace(target, grouping=_one_of(("stacked", "per-gate"), value, text))
        elif key == "dtype" and equals:
            target = replace(target, dtype=_one_of(("keep", *DTYPE_CODES), value, text))
        else:
            raise PlanError(
                f"target {text!r} has an unknown setting {setting!r}",
                hint="rank=, ratio=, energy=, max-error=, method=, grouping= or dtype=",
            )
    return target


def parse_budget(text: str) -> float:
    """Read ``25MB``, ``25MiB``, ``25000000`` (bytes), or of the source's ``0.3``, ``30%``.

    Returns
    -------
    float
        At most 1 for a share, above 1 for bytes.

    Raises
    ------
    PlanError
        It is no size, or it is nothing, or more than all of the source.

    Examples
    --------
    >>> parse_budget("25MB"), parse_budget("1.5MiB"), parse_budget("30%")
    (25000000.0, 1572864.0, 0.3)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(%|[kKmMgG]?i?[bB]?)\s*", text)
    unit = match[2].upper() if match else ""
    if match is None or unit not in _UNITS:
        raise PlanError(
            f"budget {text!r} is no size",
            hint="25MB, 25MiB, 26214400 (bytes), or a share of the source: 0.3, 30%",
        )
    value = float(match[1]) * _UNITS[unit]
    if unit == "%" and value > 1:
        raise PlanError(f"budget {text!r} is more than all of the source")
    if value <= 0 or (unit not in {"", "%"} and value <= 1):
        raise PlanError(f"budget {text!r} leaves no room for anything")
    return value


def _size(key: str, value: str, text: str) -> Size:
    try:
        number: Any = int(value) if key == "rank" else float(value)
    except ValueError:
        raise PlanError(f"target {text!r}: {key} is no number: {value!r}") from None
    return Size(**{key.replace("-", "_"): number})


def _one_of(choices: Sequence[str], value: str, text: str) -> str:
    if value not in choices:
        raise PlanError(f"target {text!r}: {value!r} is none of {', '.join(choices)}")
    return value
