"""How good a model still is: tasks that score it, what that costs, and a gate for CI.

The public names are imported when first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ckptshrink.evaluation.document import (
        Evaluation,
        examples_beside,
        read_evaluation,
        write_evaluation,
    )
    from ckptshrink.evaluation.efficiency import efficiency_of
    from ckptshrink.evaluation.evaluator import EVALUATORS, Data, Evaluator, Scores, TaskOptions
    from ckptshrink.evaluation.examples import Examples, examples_of
    from ckptshrink.evaluation.metrics import Aggregate, Metric, metric
    from ckptshrink.evaluation.run import evaluate
    from ckptshrink.evaluation.subjects import Subject, subject_of

_HOMES = {
    "EVALUATORS": "evaluator",
    "Aggregate": "metrics",
    "Data": "evaluator",
    "Evaluation": "document",
    "Evaluator": "evaluator",
    "Examples": "examples",
    "Metric": "metrics",
    "Scores": "evaluator",
    "Subject": "subjects",
    "TaskOptions": "evaluator",
    "efficiency_of": "efficiency",
    "evaluate": "run",
    "examples_beside": "document",
    "examples_of": "examples",
    "metric": "metrics",
    "read_evaluation": "document",
    "subject_of": "subjects",
    "write_evaluation": "document",
}

__all__ = [
    "EVALUATORS",
    "Aggregate",
    "Data",
    "Evaluation",
    "Evaluator",
    "Examples",
    "Metric",
    "Scores",
    "Subject",
    "TaskOptions",
    "efficiency_of",
    "evaluate",
    "examples_beside",
    "examples_of",
    "metric",
    "read_evaluation",
    "subject_of",
    "write_evaluation",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
