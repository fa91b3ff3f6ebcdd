"""How much memory and disk a job will take, from names and shapes, before it is begun.

Measured (the most resident memory of compress, and of verify with the source, in MB) beside what is
estimated; `benchmarks/zoo.py --part footprint` prints it:

================  ==============  ========  ======  =========
float32 matrix    method          compress  verify  estimated
================  ==============  ========  ======  =========
4 x 4             svd, rank 1          257     252        302
4600 x 1150       svd, rank 100        313     404        489
4600 x 1150       svd, exact           462     404        521
4600 x 1150       semi-nmf             316     404        489
4600 x 1150       prune, energy        401     393        489
16384 x 512       svd, rank 100        314     428        520
16384 x 512       svd, exact           505     428        579
32000 x 1024      svd, rank 100        430     666        764
32000 x 1024      svd, exact          1220     666       1384
32000 x 1024      prune, energy       1170     712       1384
4096 x 4096       svd, rank 100        618     495       1107
================  ==============  ========  ======  =========

A language model scored in the same run: 4.7 million parameters 621 (752), 58 million 917 (1,283).
A matrix that turns out to be nearly singular takes the way of exact, which no shape foretells.
"""

import math
import os
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ckptshrink.errors import CkptshrinkError
from ckptshrink.gates import GateMatrix
from ckptshrink.plan import Plan
from ckptshrink.planning.opened import open_source
from ckptshrink.planning.planner import make_plan
from ckptshrink.planning.request import Request, Target
from ckptshrink.planning.targets import candidates, resolve
from ckptshrink.tensors import ITEMSIZE, TensorRef
from ckptshrink.zoo.recipes import Work

BASE: Final = 288 << 20
"""Bytes that a worker takes before it has read anything, most of them torch's."""

_COPIES: Final = 4
"""Times that the largest matrix is held in float32: as stored, in order, its product, a factor."""

_DIRECT: Final = 8
"""The same where it is held in float64, by a direct SVD; or sorted, to prune it to an error."""

_SQUARES: Final = 4
"""Times that the square of its short side is held in float64: Gram matrix and eigenvectors."""

_COMPARED: Final = 1.5
"""Times that a matrix is held in float32, beside its source, while its error is recomputed."""

_BLOCKS: Final = 4
_BLOCK_BYTES: Final = 32 << 20
"""Blocks of rows in float64, and the size of each, of which that error is summed."""

_SCORING: Final = 384 << 20
"""Bytes that scoring takes for any model: activations, a softmax's logits, more libraries."""

_RUNNING: Final = 2.5
"""Times that a model is held in float32 while it is scored: its source, and factors in order."""

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
            peak = BASE + max(
                (
                    _computing(matrices[key], checkpoint.tensors, _is_hard(request, target))
                    for key, target in asked.items()
                ),
                default=0,
            )
            if work.scorings:
                numbers = sum(math.prod(ref.shape) for ref in checkpoint.tensors.values())
                peak = max(peak, BASE + _SCORING + int(_RUNNING * _FLOAT32 * numbers))
            disk = checkpoint.nbytes if plan is None else plan.totals["nbytes_after"]
            return Footprint(peak, disk, checkpoint.nbytes, plan)
    except CkptshrinkError as error:
        size = 0
        with suppress(OSError):
            size = source.stat().st_size
        return Footprint(BASE + size, 0, size, error=error)


def _is_hard(request: Request, target: Target) -> bool:
    """Return whether a matrix is decomposed in float64 whatever is in it, or sorted as a whole."""
    sorts = (target.method or request.method) == "prune" and request.needs_payload
    return request.settings.exact or sorts


def _computing(matrix: GateMatrix, tensors: Mapping[str, TensorRef], is_hard: bool) -> int:
    """Return the bytes of factorizing one matrix, or of checking it if that takes more."""
    numbers, short = math.prod(matrix.shape), min(matrix.shape)
    ref = tensors[matrix.source]
    word = max(_FLOAT32, ITEMSIZE[ref.dtype])  # half precision is computed in float32
    copies = _DIRECT if is_hard else _COPIES
    factorized = copies * word * numbers + _SQUARES * _FLOAT64 * short * short
    blocks = _BLOCKS * min(_FLOAT64 * numbers, _BLOCK_BYTES)
    checked = ref.nbytes + int(_COMPARED * word * numbers) + blocks
    return max(factorized, checked)


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
