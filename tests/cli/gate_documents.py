"""Documents of evaluations that never ran: models that are right on chosen examples."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ckptshrink.evaluation.document import (
    DataRecord,
    Evaluation,
    Failure,
    ModelRecord,
    Outcome,
    ParameterCounts,
    ToolRecord,
    write_evaluation,
)
from ckptshrink.evaluation.examples import Examples, examples_of
from ckptshrink.evaluation.metrics import FRACTION, Aggregate, Metric, metric

N = 2_000


def right(n: int = N, share: float = 0.5) -> NDArray[np.bool_]:
    """Return which of n examples a baseline gets right: the same at every call."""
    return np.random.default_rng(0).random(n) < share


def damaged(correct: NDArray[np.bool_], worse: int, better: int = 0) -> NDArray[np.bool_]:
    """Return the results of a model that lost some of the examples and gained others."""
    found = correct.copy()
    found[np.flatnonzero(correct)[:worse]] = False
    found[np.flatnonzero(~correct)[:better]] = True
    return found


def accuracy(correct: ArrayLike, name: str = "accuracy") -> tuple[Metric, Examples]:
    """Return the accuracy of results, and the results."""
    scores = np.asarray(correct, dtype=np.float64)
    of = Aggregate(score=name)
    found = metric(
        name, of.value(scores), better="higher", unit=FRACTION, n=len(scores),
        stderr=of.stderr(scores), of=of,
    )  # fmt: skip
    return found, examples_of([str(i) for i in range(len(scores))], {name: scores})


def several(correct: Mapping[str, ArrayLike]) -> tuple[list[Metric], Examples]:
    """Return several accuracies of one model, and the results of all in one file."""
    found = [accuracy(values, name)[0] for name, values in correct.items()]
    columns = {name: np.asarray(values, np.float64) for name, values in correct.items()}
    n = len(next(iter(columns.values())))
    return found, examples_of([str(i) for i in range(n)], columns)


def perplexity(nats: ArrayLike, words: ArrayLike) -> tuple[Metric, Examples]:
    """Return the perplexity of lines, and the nats and words of each."""
    scores, weights = np.asarray(nats, np.float64), np.asarray(words, np.float64)
    of = Aggregate(score="nats", weight="words", transform="exp")
    found = metric("ppl", of.value(scores, weights), better="lower", n=len(scores), of=of)
    columns = {"nats": scores, "words": weights}
    return found, examples_of([str(i) for i in range(len(scores))], columns)


def outcome(
    name: str, *metrics: Metric, role: str = "variant", nbytes: int = 1_000, **more: Any
) -> Outcome:
    """Return what became of one model; without a metric its evaluation failed."""
    failure = None if metrics else Failure(reason="it crashed", log="Segmentation fault")
    record = ModelRecord(
        name=name,
        kind="file",
        sha256=sha256(name.encode()).hexdigest(),
        nbytes=nbytes,
        n_params=ParameterCounts(),
    )
    return Outcome(
        role="baseline" if role == "baseline" else "variant",
        model=record, metrics=metrics, failure=failure, **more,
    )  # fmt: skip


def write(
    path: Path,
    outcomes: Sequence[Outcome],
    examples: Mapping[str, Examples] | None = None,
    **more: Any,
) -> Path:
    """Write a document and its per-example results; return its path."""
    fields: dict[str, Any] = {
        "task": "sst5",
        "data": DataRecord(name="test.txt", sha256="1" * 64, nbytes=10),
        "protocol": {"batch_size": 32},
        "seed": 0,
        "tool": ToolRecord(name="ckptshrink", version="0"),
        "outcomes": tuple(outcomes),
    }
    write_evaluation(Evaluation(**fields | more), examples or {}, path, overwrite=True)
    return path


def document(
    path: Path, correct: ArrayLike, *, name: str = "model", role: str = "variant", **more: Any
) -> Path:
    """Write the document of one model that is right on these examples."""
    found, results = accuracy(correct)
    return write(path, [outcome(name, found, role=role, **more)], {name: results})
