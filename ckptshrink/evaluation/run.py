"""One evaluation, start to finish: score every model, compare with the baseline, keep failures."""

import json
import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from ckptshrink.errors import CkptshrinkError, EvaluationError, EvaluationInputError
from ckptshrink.evaluation.document import (
    Change,
    DataRecord,
    Evaluation,
    Failure,
    ModelRecord,
    Outcome,
    ParameterCounts,
    Role,
    ToolRecord,
)
from ckptshrink.evaluation.efficiency import SCOPES, efficiency_of
from ckptshrink.evaluation.evaluator import Evaluator, Scores
from ckptshrink.evaluation.examples import Examples, disagreement
from ckptshrink.evaluation.metrics import relative_loss
from ckptshrink.evaluation.subjects import Subject
from ckptshrink.events import Listener, Progress, silent
from ckptshrink.version import __version__

_LOG_LINES: Final = 200
"""Lines of a failed evaluation's log that the document keeps: the cause stands at the end."""

_LOG_CHARACTERS: Final = 20_000
"""And of these no more than so many characters: a progress bar is one line of a megabyte."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation's document, and per-example results by the name of the model."""

    document: Evaluation
    examples: dict[str, Examples]


def evaluate(
    task: str,
    evaluator: Evaluator,
    subjects: Sequence[Subject],
    *,
    baseline: Subject | None = None,
    seed: int = 0,
    listen: Listener = silent,
    clock: Callable[[], float] = time.monotonic,
) -> Evaluated:
    """Score models on one task, in one run with the same seeds, and compare them.

    Parameters
    ----------
    task : str
        Its name.
    evaluator : Evaluator
        Of that task; the caller closes it.
    subjects : sequence of Subject
        Scored in this order.
    baseline : Subject, optional
        Scored first; the others are compared with it.

    Returns
    -------
    Evaluated
        A model whose evaluation failed has an outcome that says so, and the rest goes on.

    Raises
    ------
    CheckpointError, EvaluationInputError
        A model that the task can't score, or two models of one name.
    """
    every: list[tuple[Role, Subject]] = [("baseline", baseline)] if baseline is not None else []
    every += [("variant", subject) for subject in subjects]
    names = [subject.name for _, subject in every]
    for name in names:
        if names.count(name) > 1:
            raise EvaluationInputError(
                f"two models are called {name!r}", hint="give one of them a name: NAME=PATH"
            )
    outcomes: list[Outcome] = []
    examples: dict[str, Examples] = {}
    for number, (role, subject) in enumerate(every):
        listen(Progress(f"{task}: {subject.name}", number, len(every)))
        outcome, found = _scored(evaluator, role, subject, clock)
        outcomes.append(outcome)
        if found is not None:
            examples[subject.name] = found
    listen(Progress(task, len(every), len(every)))
    data = evaluator.data
    document = Evaluation(
        task=task,
        data=None if data is None else DataRecord(**asdict(data)),
        protocol=_as_json(evaluator.protocol),
        seed=seed,
        environment=dict(evaluator.environment),
        tool=ToolRecord(name="ckptshrink", version=__version__),
        outcomes=compared(outcomes),
    )
    return Evaluated(document, examples)


def _scored(
    evaluator: Evaluator, role: Role, subject: Subject, clock: Callable[[], float]
) -> tuple[Outcome, Examples | None]:
    """Score one model; return its outcome, which may be a failure, and its results by example."""
    started = clock()
    try:
        scores = _sound(evaluator.score(subject))
        return _outcome(role, subject, scores, clock() - started), scores.examples
    except EvaluationError as error:
        return _failed(role, subject, str(error), error.log, clock() - started), None
    except CkptshrinkError:
        raise
    except Exception as error:
        # An evaluator is anybody's code: what it raises is a crash, and never ends in a pass.
        reason = f"crashed: {type(error).__name__}: {error}"
        log = traceback.format_exc()
        return _failed(role, subject, reason, log, clock() - started), None


def compared(outcomes: Sequence[Outcome]) -> tuple[Outcome, ...]:
    """Return the outcomes with what changed against the baseline among them, if there is one."""
    baseline = next((o for o in outcomes if o.role == "baseline"), None)
    if baseline is None:
        return tuple(outcomes)
    return tuple(
        o if o is baseline else o.model_copy(update={"changes": changes_of(o, baseline)})
        for o in outcomes
    )


def compared_with(document: Evaluation, baseline: Outcome) -> Evaluation:
    """Return a document with what changed against a baseline of another one."""
    return document.model_copy(
        update={
            "outcomes": tuple(
                o.model_copy(update={"changes": changes_of(o, baseline)}) for o in document.outcomes
            )
        }
    )


def changes_of(outcome: Outcome, baseline: Outcome) -> tuple[Change, ...]:
    """Return what changed of each metric that both have, in the same unit."""
    changes = []
    for metric in outcome.metrics:
        before = baseline.metric(metric.name)
        if before is None or (before.unit, before.better) != (metric.unit, metric.better):
            continue
        difference = metric.number - before.number
        changes.append(
            Change(
                metric=metric.name,
                difference=difference if math.isfinite(difference) else None,
                relative_loss=relative_loss(metric, before),
                efficiency={
                    scope: efficiency_of(
                        metric, before,
                        getattr(outcome.model.n_params, scope),
                        getattr(baseline.model.n_params, scope),
                    )
                    for scope in SCOPES
                },
            )
        )  # fmt: skip
    return tuple(changes)


def _sound(scores: Scores) -> Scores:
    """Refuse scores that make no sense, whoever made them."""
    names = [metric.name for metric in scores.metrics]
    if not names:
        raise EvaluationError("it gave no metric")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise EvaluationError(f"it gave the metric {twice!r} twice")
    for metric in scores.metrics:
        wrong = None if scores.examples is None else disagreement(metric, scores.examples)
        if wrong is not None:
            raise EvaluationError(f"its metrics and its examples do not agree: {wrong}")
    return scores


def _outcome(role: Role, subject: Subject, scores: Scores, seconds: float) -> Outcome:
    return Outcome(
        role=role, model=_record(subject, scores.n_params), metrics=scores.metrics,
        notes=scores.notes, seconds=seconds,
    )  # fmt: skip


def _failed(role: Role, subject: Subject, reason: str, log: str, seconds: float) -> Outcome:
    line = _encodable(" ".join(reason.split()))
    return Outcome(
        role=role, model=_record(subject), failure=Failure(reason=line, log=_tail(log)),
        seconds=seconds,
    )  # fmt: skip


def _as_json(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Return a protocol as a file would give it back: lists for tuples, text for every key."""
    try:
        found: dict[str, Any] = json.loads(json.dumps(dict(protocol), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise EvaluationError(f"the evaluator's protocol is no JSON: {error}") from error
    return found


def _record(subject: Subject, n_params: int | None = None) -> ModelRecord:
    return ModelRecord(
        name=subject.name,
        kind=subject.kind,
        sha256=subject.sha256,
        source_sha256=subject.source_sha256,
        nbytes=subject.nbytes,
        n_params=ParameterCounts(
            model=subject.n_params if n_params is None else n_params, lstm=subject.n_params_lstm
        ),
    )


def _tail(log: str) -> str:
    end = "\n".join(log[-_LOG_CHARACTERS:].splitlines()[-_LOG_LINES:])
    return _encodable(end)


def _encodable(text: str) -> str:
    """Return a text that a file can hold: a file's name need not be Unicode."""
    return text.encode("utf-8", "replace").decode()
