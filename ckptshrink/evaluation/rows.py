"""What became of a model as rows of a table: one a metric, or one that says why there is none."""

from collections.abc import Iterator
from typing import Any, Final

from ckptshrink.evaluation.document import Outcome
from ckptshrink.evaluation.efficiency import SCOPES

FIELDS: Final = (
    "metric", "value", "stderr", "unit", "better", "n", "difference", "relative_loss",
    *(f"efficiency_{scope}" for scope in SCOPES), *(f"n_params_{scope}" for scope in SCOPES),
    "nbytes", "failure",
)  # fmt: skip
"""Keys of every row, in the order of columns."""


def rows_of(outcome: Outcome) -> Iterator[dict[str, Any]]:
    """Yield a row for each metric, unrounded; a failed evaluation has one row."""
    model = outcome.model
    row: dict[str, Any] = dict.fromkeys(FIELDS)
    row |= {f"n_params_{scope}": getattr(model.n_params, scope) for scope in SCOPES}
    row |= {"nbytes": model.nbytes}
    if outcome.failure is not None:
        yield row | {"failure": outcome.failure.reason}
    changes = {change.metric: change for change in outcome.changes}
    for metric in outcome.metrics:
        compared: dict[str, Any] = {}
        if (change := changes.get(metric.name)) is not None:
            compared = {
                "difference": change.difference,
                "relative_loss": change.relative_loss,
                **{f"efficiency_{scope}": change.efficiency.get(scope) for scope in SCOPES},
            }
        yield row | compared | {
            "metric": metric.name, "value": metric.number, "stderr": metric.stderr,
            "unit": metric.unit, "better": metric.better, "n": metric.n,
        }  # fmt: skip
