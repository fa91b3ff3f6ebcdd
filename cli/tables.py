"""The rows of a plan and of its outcome, as a table and as tab-separated values."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from ckptshrink_cli import render
from ckptshrink_cli.render import Column, Row

if TYPE_CHECKING:
    from ckptshrink.manifest import Manifest, TensorRecord
    from ckptshrink.plan import Plan, PlanItem

_FIELDS: Final = (
    "name", "role", "layer", "shape", "action", "method", "rank", "grouping", "n_params_before",
    "n_params_after", "nbytes_before", "nbytes_after",
)  # fmt: skip

PLAN_FIELDS: Final = (*_FIELDS, "dtype", "predicted_rel_error", "of", "reason")
"""Columns of a plan's tab-separated form."""

OUTCOME_FIELDS: Final = (*_FIELDS, "rel_error", "of", "reason")
"""Columns of an outcome's tab-separated form."""


def show_plan(plan: "Plan") -> None:
    """Write what would become of every tensor to standard output."""
    columns = _columns("predicted_rel_error", "predicted error")
    render.show([_row(item) for item in plan.items], PLAN_FIELDS, columns)


def show_outcome(manifest: "Manifest") -> None:
    """Write what became of every tensor to standard output."""
    rows = [_row(record) for record in manifest.tensors]
    render.show(rows, OUTCOME_FIELDS, _columns("rel_error", "error"))


def plan_lines(plan: "Plan") -> Iterator[str]:
    """Yield what a plan adds up to."""
    totals = plan.totals
    n_factorized = sum(item.action == "factorize" for item in plan.items)
    yield f"{plan.source}: {plan.format}, {plan.family}; {n_factorized} matrices are factorized"
    for what, key in (("parameters", "n_params"), ("tensor bytes", "nbytes")):
        before, after = totals[f"{key}_before"], totals[f"{key}_after"]
        yield f"{what}: {render.change(before, after)} (ratio {render.ratio(before, after)})"
    yield f"digest: {plan.digest}"


def _row(record: "PlanItem | TensorRecord") -> Row:
    """Return a record's fields; how a matrix is factorized only where it is."""
    row = record.model_dump()
    return row if record.action == "factorize" else row | {"grouping": None, "dtype": None}


def _columns(error_key: str, error_title: str) -> tuple[Column, ...]:
    return (
        Column("name", lambda row: row["name"]),
        Column("role", lambda row: row["role"] or ""),
        Column("shape", lambda row: render.shape(row["shape"]), right=True),
        Column("fate", _fate),
        Column("parameters", lambda row: _change(row, "n_params", render.count), right=True),
        Column("bytes", lambda row: _change(row, "nbytes", render.size), right=True, spare=True),
        Column(error_title, lambda row: _error(row, error_key), right=True),
        Column("reason", lambda row: row["reason"]),
    )


def _fate(row: Row) -> str:
    if row["action"] != "factorize":
        return str(row["action"])
    grouping = " per gate" if row["grouping"] == "per-gate" else ""
    return f"{row['method']} r={row['rank']}{grouping}"


def _change(row: Row, key: str, text: Callable[[int], str]) -> str:
    before, after = row[f"{key}_before"], row[f"{key}_after"]
    if row["action"] not in {"factorize", "keep"}:
        return text(before)  # stored once elsewhere, or not at all
    return text(before) if before == after else f"{text(before)} → {text(after)}"


def _error(row: Row, key: str) -> str:
    value: Any = row[key]
    return render.error(value) if row["action"] == "factorize" else ""
