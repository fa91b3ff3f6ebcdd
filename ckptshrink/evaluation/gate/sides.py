"""What a gate compares: one outcome of each document, and whether the documents are alike."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ckptshrink.errors import EvaluationInputError, printable
from ckptshrink.evaluation.document import Evaluation, Outcome, Role
from ckptshrink.evaluation.examples import Examples
from ckptshrink.evaluation.gate.finding import Columns
from ckptshrink.evaluation.metrics import FRACTION, PERCENT, Aggregate, Metric

_TOLERANCE: Final = 1e-9
"""Relative difference that adding up in another order may make."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two that are compared.

    Attributes
    ----------
    outcome : Outcome
    examples : Examples or None
        Its per-example results, where the run kept them.
    """

    outcome: Outcome
    examples: Examples | None = None


def pick(evaluation: Evaluation, role: Role, name: str | None = None) -> Outcome:
    """Return the outcome of a document that is meant.

    Parameters
    ----------
    role : "baseline" or "variant"
        Which side of the gate it is for.
    name : str, optional
        Of the model. Without it the only outcome is meant, or the only one of that role.

    Raises
    ------
    EvaluationInputError
        There is none of that name, or several could be meant.
    """
    names = [outcome.model.name for outcome in evaluation.outcomes]
    known = ", ".join(map(printable, names))
    if name is not None:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            raise EvaluationInputError(
                f"no model {printable(name)!r} in this evaluation; there are {known}",
                hint=f"did you mean {printable(close[0])!r}?" if close else None,
            )
        return evaluation.outcomes[names.index(name)]
    of_role = [outcome for outcome in evaluation.outcomes if outcome.role == role]
    candidates = evaluation.outcomes if len(evaluation.outcomes) == 1 else of_role
    if len(candidates) != 1:
        which = "the baseline" if role == "baseline" else "the candidate"
        raise EvaluationInputError(
            f"does not say which of its models is {which}: {known}", hint="give one by its name"
        )
    return candidates[0]


def comparable(baseline: Evaluation, candidate: Evaluation) -> list[str]:
    """Return why scores of two documents can't be compared; empty where they can.

    The task, the data's hash and the whole protocol must agree.
    """
    reasons = []
    if baseline.task != candidate.task:
        reasons.append(
            f"the tasks differ: {printable(baseline.task)} and {printable(candidate.task)}"
        )
    hashes = [None if e.data is None else e.data.sha256 for e in (baseline, candidate)]
    if hashes[0] != hashes[1]:
        names = ["none" if e.data is None else e.data.name for e in (baseline, candidate)]
        said = [
            f"{printable(n)} ({(h or 'no hash')[:12]})" for n, h in zip(names, hashes, strict=True)
        ]
        reasons.append(f"the data differ: {said[0]} and {said[1]}")
    different = _differing(baseline.protocol, candidate.protocol)
    if different:
        reasons.append(f"the protocols differ in {', '.join(different)}")
    return reasons


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the keys whose values differ, with the values where they are short."""
    found = []
    for key in (*one, *(key for key in other if key not in one)):
        if key in one and key in other and one[key] == other[key]:
            continue
        values = [repr(side[key]) if key in side else "nothing" for side in (one, other)]
        short = all(len(value) <= 40 for value in values)
        said = f" ({values[0]} and {values[1]})" if short else ""
        found.append(printable(f"{key}{said}"))
    return found


class Pairs:
    """Which example of one side belongs to which of the other: by id, not by position.

    Parameters
    ----------
    baseline, candidate : Examples

    Attributes
    ----------
    trouble : str
        Why they can't be paired, empty where they can.
    """

    def __init__(self, baseline: Examples, candidate: Examples) -> None:
        self._sides = baseline, candidate
        self.trouble = ""
        # by their ids, so that the order of a file makes no difference to the bootstrap either
        self._orders = tuple(
            np.array(sorted(range(len(side)), key=side.ids.__getitem__), dtype=np.intp)
            for side in self._sides
        )
        ids = set(baseline.ids), set(candidate.ids)
        for side, missing in (("candidate", ids[0] - ids[1]), ("baseline", ids[1] - ids[0])):
            if missing and not self.trouble:
                one = printable(min(missing))[:40]
                self.trouble = (
                    f"the two were not scored on the same examples: {len(missing)} of them are not "
                    f"among the {side}'s, such as {one!r}"
                )

    def weight_trouble(self, of: Aggregate) -> str:
        """Return why the two weigh examples too differently to be compared, empty if they don't.

        A ratio may have weights of its own on each side, such as answers given. A perplexity over
        another number of words is another perplexity.
        """
        baseline, candidate = self.columns(of)
        if of.transform == "mean" or baseline.weight is None or candidate.weight is None:
            return ""
        n = int(np.count_nonzero(baseline.weight != candidate.weight))
        return (
            f"{n} examples differ in {printable(of.weight or '')!r} between the sides" if n else ""
        )

    def columns(self, of: Aggregate) -> tuple[Columns, Columns]:
        """Return what a metric is made of on each side, in one order."""
        both = [
            Columns(
                side.columns[of.score][order],
                None if of.weight is None else side.columns[of.weight][order],
            )
            for side, order in zip(self._sides, self._orders, strict=True)
        ]
        return both[0], both[1]


def metric_troubles(baseline: Side, candidate: Side, before: Metric, after: Metric) -> list[str]:
    """Return why two values can't be compared, or can't be what they claim to be."""
    troubles = []
    for name, side, metric in (("baseline", baseline, before), ("candidate", candidate, after)):
        trouble = _number_trouble(metric) or _examples_trouble(side, metric)
        if trouble:
            troubles.append(f"the {name}'s {printable(metric.name)} {trouble}")
    for field, what in (
        ("better", "which way is better"), ("unit", "the unit"), ("n", "the number of examples"),
        ("of", "how it is made of per-example results"),
    ):  # fmt: skip
        one, other = getattr(before, field), getattr(after, field)
        if one != other and not (field == "n" and None in (one, other)):
            said = "" if field == "of" else f": {printable(str(one))} and {printable(str(other))}"
            troubles.append(f"the two sides differ in {what}{said}")
    return troubles


def _number_trouble(metric: Metric) -> str:
    value = metric.number
    if not math.isfinite(value):
        return f"is {metric.nonfinite}, which is no finite number"
    most = {FRACTION: 1.0, PERCENT: 100.0}.get(metric.unit)
    if most is not None and not 0 <= value <= most:
        return f"is {value:.6g}, which is no {metric.unit}: those lie in [0, {most:g}]"
    return ""


def _examples_trouble(side: Side, metric: Metric) -> str:
    """Return how a value contradicts the per-example results that it is made of."""
    of, examples = metric.of, side.examples
    if of is None or examples is None:
        return ""
    for column in (of.score, of.weight):
        if column is not None and column not in examples.columns:
            return f"is made of {printable(column)!r}, which its per-example results don't have"
    scores = examples.columns[of.score]
    weights = None if of.weight is None else examples.columns[of.weight]
    if weights is not None and bool((weights < 0).any()):
        return f"is made of {printable(of.weight or '')!r}, which is negative for some examples"
    with np.errstate(all="ignore"):
        made = of.value(scores, weights)
        total = len(scores) if weights is None else float(weights.sum())
        # of a sum that cancels, as much as rounding can leave
        size = float(np.abs(scores).sum()) / abs(total) if total else math.inf
    allowed = max(abs(metric.number), size if of.transform == "mean" else 0.0) * _TOLERANCE
    if of.transform == "exp":
        allowed *= max(1.0, size)
    if not abs(made - metric.number) <= allowed:
        return f"is {metric.number:.9g}, but its per-example results make {made:.9g}"
    return ""
