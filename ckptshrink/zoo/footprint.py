"""How much memory and disk a job will take, from names and shapes, before it is begun."""

import math
import os
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ckptshrink.errors import CkptshrinkError
from ckptshrink.plan import Plan
from ckptshrink.planning.opened import open_source
from ckptshrink.planning.planner import make_plan
from ckptshrink.planning.targets import candidates, resolve
from ckptshrink.zoo.recipes import Work

BASE: Final = 320 << 20
"""Bytes that a worker takes before it has read anything, most of them torch's."""

_COPIES: Final = 4
"""Times that the largest matrix is held in float32: as stored, in order, its product, a factor."""

_GRAMS: Final = 5
"""Times that the square of its short side is held in float64: Gram matrix and eigenvectors."""

_RUNNING: Final = 3
"""Times that a model is held in float32 while it is scored: weights, and ordered copies."""

_FLOAT32: Final = 4
_FLOAT64: Final = 8


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a job takes.

    Attributes
    ----------
    peak : int
        Bytes of memory at once, the worker's own among them.
    disk : int
        Bytes of the artefact; those of the source where the ranks follow from values.
    plan : Plan or None
        Where it follows from shapes.
    error : CkptshrinkError or None
        Why the job will fail, where that is seen already.
    """

    peak: int
    disk: int
    before: int = 0
    plan: Plan | None = None
    error: CkptshrinkError | None = None


def footprint_of(work: Work, source: Path) -> Footprint:
    """Return an estimate of what a job takes; of a source that can't be read, from its size."""
    request = work.compression.request
    try:
        reader, recognition = open_source(source, use_averaged=request.settings.use_averaged)
        with closing(reader):
            checkpoint = reader.checkpoint
            matrices = candidates(checkpoint, recognition, request)
            asked = resolve(checkpoint, recognition, matrices, request)
            plan = None
            if not request.needs_payload:
                plan = make_plan(checkpoint, recognition, request, strict=work.compression.strict)
            peak = BASE + max((_computing(*matrices[key].shape) for key in asked), default=0)
            if work.scorings:
                numbers = sum(math.prod(ref.shape) for ref in checkpoint.tensors.values())
                peak = max(peak, BASE + _RUNNING * _FLOAT32 * numbers)
            disk = checkpoint.nbytes if plan is None else plan.totals["nbytes_after"]
            return Footprint(peak, disk, checkpoint.nbytes, plan)
    except CkptshrinkError as error:
        size = 0
        with suppress(OSError):
            size = source.stat().st_size
        return Footprint(BASE + size, 0, size, error=error)


def _computing(rows: int, columns: int) -> int:
    """Return the bytes of factorizing one matrix."""
    short = min(rows, columns)
    return _COPIES * _FLOAT32 * rows * columns + _GRAMS * _FLOAT64 * short * short


def available_memory() -> int | None:
    """Return the bytes that this machine, or the container, has left; None where nobody says."""
    found = [limit for limit in (_free(), _limit()) if limit is not None]
    return min(found, default=None)


def _free() -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _limit() -> int | None:
    """Return what the control group of a container leaves."""
    folder = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):
        most = int((folder / "memory.max").read_text())
        return most - int((folder / "memory.current").read_text())
    return None
