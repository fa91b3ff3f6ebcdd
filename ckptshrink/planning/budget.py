"""Share one budget of bytes out over matrices, so that the summed squared error is least."""

import math
from collections.abc import Callable, Iterable, Sequence

from ckptshrink.errors import PlanError
from ckptshrink.gates import GateMatrix
from ckptshrink.io.checkpoint import Checkpoint
from ckptshrink.plan import PlanItem
from ckptshrink.planning.choice import Choice, dense_row, factorized_row
from ckptshrink.stored import Entry, entries_of

Curves = Callable[[GateMatrix, str, str], Sequence[float]]
"""(matrix, method, grouping) → squared Frobenius error at rank 0, 1, ..., summed over blocks."""


def share_out(
    free: Sequence[Choice],
    fixed: Sequence[PlanItem],
    checkpoint: Checkpoint,
    budget: float,
    curves: Curves | None,
) -> dict[str, PlanItem]:
    """Return a row for each matrix whose rank the budget is to choose.

    Parameters
    ----------
    free : sequence of Choice
        Matrices without a size of their own.
    fixed : sequence of PlanItem
        The rows of everything else.
    budget : float
        Bytes that ``model.safetensors`` may take, header and untouched tensors and all.

    Raises
    ------
    PlanError
        Not even rank 1 everywhere fits; the message says what would.
    """
    # numpy is slow to import, and only a budget needs it
    from ckptshrink.planning.allocate import Curve, allocate

    if curves is None:
        raise PlanError("a budget needs the values, and none were given")
    taken = sum(row.nbytes_after for row in fixed) + _header_nbytes(free, fixed, checkpoint)
    errors = [curves(c.matrix, c.method, c.grouping) for c in free]
    options = []
    for choice, errs in zip(free, errors, strict=True):
        costs = [float(choice.stored_nbytes(r)) for r in range(1, choice.useful_rank() + 1)]
        dense = float(choice.dense_nbytes)
        falling = [float(e) for e in errs[1 : len(costs) + 1]]
        options.append(Curve(choice.matrix.key, [*costs, dense], [*falling, 0.0]))
    try:
        allocation = allocate(options, budget - taken)
    except PlanError as error:
        least = taken + sum(min(curve.costs) for curve in options)
        raise PlanError(
            f"a budget of {budget:,.0f} bytes can't be met: rank 1 everywhere takes {least:,.0f}",
            path=checkpoint.root,
            hint="target more (--target all), or store factors in --dtype float16",
        ) from error
    return {
        choice.matrix.key: _chosen(choice, errs, picked, dense=picked == len(curve.costs) - 1)
        for choice, errs, picked, curve in zip(
            free, errors, allocation.choice, options, strict=True
        )
    }


def relative_error(errors: Sequence[float], rank: int) -> float:
    """Return the relative Frobenius error at a rank, of a curve of squared ones."""
    return math.sqrt(max(float(errors[rank]), 0.0) / float(errors[0])) if errors[0] else 0.0


def _chosen(choice: Choice, errors: Sequence[float], picked: int, *, dense: bool) -> PlanItem:
    if dense:
        return dense_row(choice, "budget: dense is its best use of the bytes")
    rank = picked + 1
    reason = f"budget: rank {rank}"
    if rank < choice.full_rank:
        # at the optimum this is about equal for all matrices: no byte would do more elsewhere
        step = choice.stored_nbytes(rank + 1) - choice.stored_nbytes(rank)
        reason += f"; one more would save {(errors[rank] - errors[rank + 1]) / step:.3g} a byte"
    return factorized_row(choice, rank, reason, relative_error(errors, rank))


def _header_nbytes(
    free: Sequence[Choice], fixed: Iterable[PlanItem], checkpoint: Checkpoint
) -> int:
    """Return bytes of the file's header if every free matrix is factorized, which is the most."""
    from ckptshrink.io.safetensors_header import plan_file

    entries: list[Entry] = []
    for row in fixed:
        if row.action == "keep":
            entries.append((row.name, row.shape, "BF16"))
        elif row.action == "factorize":
            entries += [(f"{row.name}.{i}.mask", row.shape, "BF16") for i in range(8)]
    for choice in free:
        entries += entries_of(
            choice.matrix, method=choice.method, rank=max(choice.useful_rank(), 1),
            grouping=choice.grouping, dtype=choice.factor_dtype,
        )  # fmt: skip
    # offsets of the real file may have a digit more or less than these
    return len(plan_file(entries).header) + 2 * len(entries)
