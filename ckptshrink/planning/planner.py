"""(Checkpoint, Recognition, Request) → Plan. Reads names, shapes and dtypes; writes nothing.

Where ranks follow from values (energy, error, budget), the values come in as curves: the squared
error of a matrix at every rank. This module imports no torch.
"""

import math
from collections.abc import Mapping, Sequence

from ckptshrink.errors import PlanError, printable
from ckptshrink.gates import GateMatrix
from ckptshrink.io.checkpoint import Checkpoint
from ckptshrink.layouts import Recognition
from ckptshrink.linalg import ranks
from ckptshrink.plan import Plan, PlanItem, index_sha256
from ckptshrink.planning.budget import Curves, relative_error, share_out
from ckptshrink.planning.choice import Choice, dense_row, factorized_row
from ckptshrink.planning.request import Request, Size, Target
from ckptshrink.planning.targets import candidates, resolve
from ckptshrink.planning.untouched import in_order, untouched_rows
from ckptshrink.stored import blocks_of, entries_of


def make_plan(
    checkpoint: Checkpoint,
    recognition: Recognition,
    request: Request,
    *,
    curves: Curves | None = None,
    strict: bool = False,
) -> Plan:
    """Return the plan for a request: a row for every tensor, with the reason for its fate.

    Parameters
    ----------
    curves : callable, optional
        Needed when a size or the budget depends on values; it reads payloads.
    strict : bool
        Whether a request that can't be met for a matrix is an error, and not a row with its reason.

    Raises
    ------
    NothingMatchedError
        A target names no matrix.
    LayoutError
        A tensor that looks recurrent fits no layout, and is neither targeted by name nor kept.
    PlanError
        The budget is too small, or `strict` and a request can't be met: all of them at once.
    """
    matrices = candidates(checkpoint, recognition, request)
    asked = resolve(checkpoint, recognition, matrices, request)
    choices = {
        key: _choice(matrices[key], checkpoint, target, request) for key, target in asked.items()
    }
    rows: dict[str, PlanItem] = {}
    for key, choice in choices.items():
        if choice.size is not None:
            rows[key] = _sized(choice, request, curves)
    free = [choice for key, choice in choices.items() if key not in rows]
    others = untouched_rows(checkpoint, recognition, matrices, set(choices))
    if free:
        budget = _bytes_of(request.budget, checkpoint)
        fixed = [*rows.values(), *others.values()]
        rows.update(share_out(free, fixed, checkpoint, budget, curves))
    rows.update(others)
    plan = Plan(
        source=printable(checkpoint.root.name),
        format=checkpoint.format,
        family=recognition.family,
        index_sha256=index_sha256(checkpoint.tensors),
        settings=request.settings,
        items=tuple(in_order(checkpoint, matrices, rows)),
    )
    check_names(plan, matrices, checkpoint)
    if strict:
        _refuse_unmet(rows, choices)
    return plan.sealed()


def _bytes_of(budget: float | None, checkpoint: Checkpoint) -> float:
    """Return a budget in bytes; one of at most 1 is a share of the source's files."""
    if budget is None:
        raise PlanError("nothing says how far to compress")
    return budget * checkpoint.nbytes if budget <= 1 else budget


def _choice(matrix: GateMatrix, checkpoint: Checkpoint, target: Target, request: Request) -> Choice:
    return Choice(
        matrix=matrix,
        dtype=checkpoint.tensors[matrix.source].dtype,
        size=target.size or request.size,
        method=target.method or request.method,
        grouping=target.grouping or request.grouping,
        store=target.dtype or request.dtype,
    )


def _sized(choice: Choice, request: Request, curves: Curves | None) -> PlanItem:
    """Return the row of a matrix whose rank follows from its own size setting."""
    size = choice.size
    if size is None:
        raise PlanError("has no size", tensor=choice.matrix.key)
    errors = None
    if size.needs_payload:
        if curves is None:
            raise PlanError("an energy or an error needs the values, and none were given")
        errors = curves(choice.matrix, choice.method, choice.grouping)
    if size.max_error is not None and size.max_error <= choice.rounding:
        return dense_row(
            choice,
            f"error {size.max_error:g} asked, and {choice.factor_dtype} factors alone round by up "
            f"to {choice.rounding:g}; stays dense",
        )
    rank, reason = _rank_for(choice, size, errors)
    predicted = relative_error(errors, rank) if errors is not None else None
    useful = choice.useful_rank()
    if rank > useful and not request.settings.allow_inflate:
        return dense_row(
            choice,
            f"{reason}: {choice.stored_nbytes(rank):,} bytes would not be under the dense "
            f"{choice.dense_nbytes:,} (largest useful rank {useful}); stays dense",
        )
    row = factorized_row(choice, rank, reason, predicted)
    return row.model_copy(update={"max_rel_error": size.max_error})


def _rank_for(choice: Choice, size: Size, errors: Sequence[float] | None) -> tuple[int, str]:
    full = choice.full_rank
    if size.rank is not None:
        if size.rank > full:
            return full, f"rank {size.rank} asked, {full} is full rank"
        return size.rank, f"rank {size.rank} asked"
    if size.ratio is not None:
        m, n = blocks_of(choice.matrix, choice.grouping)[0][2]
        rank = ranks.rank_for_ratio(m, n, size.ratio)
        return rank, f"ratio {size.ratio:g} gives rank {rank}"
    if errors is None:
        raise PlanError("has no error curve", tensor=choice.matrix.key)
    if size.energy is not None:
        rank = ranks.rank_for_energy(errors, size.energy)
        return rank, f"energy {size.energy:g} takes rank {rank}"
    # the tail and the rounding of the stored factors add up as squares
    tail = math.sqrt((size.max_error or 0.0) ** 2 - choice.rounding**2)
    rank = ranks.rank_for_error(errors, tail)
    return rank, f"error {size.max_error:g} takes rank {rank}"


def check_names(plan: Plan, matrices: Mapping[str, GateMatrix], checkpoint: Checkpoint) -> None:
    """Refuse a plan whose factors would be stored under a name that a tensor has already.

    Raises
    ------
    PlanError
        With every clash as an issue.
    """
    seen = set(checkpoint.tensors)
    clashes = []
    for item in plan.items:
        if item.action != "factorize" or item.method is None or item.rank is None:
            continue
        matrix = matrices[item.name]
        dtype = checkpoint.tensors[matrix.source].dtype
        for name, _, _ in entries_of(
            matrix, method=item.method, rank=item.rank, grouping=item.grouping, dtype=dtype
        ):
            if name in seen:
                clashes.append(f"{item.name}: would be stored as {name}, which exists")
            seen.add(name)
    if clashes:
        raise PlanError(clashes[0], path=checkpoint.root, hint="--keep it", issues=clashes)


def _refuse_unmet(rows: Mapping[str, PlanItem], choices: Mapping[str, Choice]) -> None:
    issues = []
    for key, choice in choices.items():
        size, row = choice.size, rows[key]
        exact = size is not None and (size.rank is not None or size.ratio is not None)
        if exact and (row.action == "keep" or (size and size.rank not in {None, row.rank})):
            issues.append(f"{key}: {row.reason}")
    if issues:
        raise PlanError(
            f"--strict: the request can't be met for {len(issues)} of {len(choices)} matrices",
            hint="a smaller rank, or without --strict",
            issues=issues,
        )
