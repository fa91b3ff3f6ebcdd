"""A model of a zoo on its tasks, beside its source; and what its gate says of the two."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptshrink.digest import file_sha256
from ckptshrink.errors import EvaluationError
from ckptshrink.evaluation.document import (
    Evaluation,
    ModelRecord,
    Outcome,
    ParameterCounts,
    Role,
    examples_beside,
    read_evaluation,
    write_evaluation,
)
from ckptshrink.evaluation.evaluator import EVALUATORS, Evaluator, TaskOptions
from ckptshrink.evaluation.gate.decide import decide
from ckptshrink.evaluation.gate.rules import spellings
from ckptshrink.evaluation.gate.sides import Side, comparable
from ckptshrink.evaluation.gate.verdict import Rule, Verdict
from ckptshrink.evaluation.metrics import Metric
from ckptshrink.evaluation.run import compared_with, evaluate
from ckptshrink.evaluation.subjects import Subject, subject_of
from ckptshrink.manifest import Manifest
from ckptshrink.zoo.recipes import Gate, Scoring
from ckptshrink.zoo.records import Scored, Size
from ckptshrink.zoo.standing import Hashes, documents_whole, task_keys


@dataclass(frozen=True, slots=True)
class Scorer:
    """Scores one model and its source.

    Attributes
    ----------
    source, artefact, reports : Path
    manifest : Manifest
        Of the artefact.
    threads : int
    device : str
    """

    source: Path
    artefact: Path
    reports: Path
    manifest: Manifest
    threads: int
    device: str

    def score(self, scoring: Scoring, old: Scored | None, hashes: Hashes) -> Scored:
        """Score both on a task; the source only if there are no scores of it.

        Parameters
        ----------
        old : Scored or None
            What an earlier run found.

        Raises
        ------
        PlanError, EvaluationInputError, CheckpointError
            The task can't be run on this model.
        EvaluationError
            It failed, on the artefact or on its source; says which, and has the end of its log.
        """
        key, baseline_key = task_keys(scoring, self.manifest, hashes)
        any_file = scoring.task != "lm"
        source = subject_of(self.source, any_file=any_file)
        with self._evaluator(scoring, source) as evaluator:
            before = self._known_baseline(scoring, old, baseline_key)
            if before is None:
                before = self._scored(scoring, evaluator, source, "baseline")
            model = subject_of(self.artefact, name=f"{source.name} smaller", any_file=any_file)
            after = self._scored(scoring, evaluator, model, "variant", before.outcomes[0])
        one, other = before.outcomes[0], after.outcomes[0]
        return Scored(
            key=key,
            baseline_key=baseline_key,
            documents=dict(self._documents(scoring, before, after)),
            baseline=one.metrics,
            metrics=other.metrics,
            changes=other.changes,
        )

    def _evaluator(self, scoring: Scoring, source: Subject) -> Evaluator:
        settings = dict(scoring.settings)
        if scoring.is_downstream and source.kind == "source":
            settings["elmo"] = self.source
        make = EVALUATORS.get(scoring.task)
        evaluator: Evaluator = make(
            TaskOptions(
                data=scoring.data,
                seed=scoring.seed,
                batch_size=scoring.batch_size,
                max_examples=scoring.max_examples,
                timeout=scoring.timeout,
                device=self.device,
                threads=self.threads,
                settings=settings,
            )
        )
        return evaluator

    def _known_baseline(self, scoring: Scoring, old: Scored | None, key: str) -> Evaluation | None:
        """Return what an earlier run found of the source, if it stands on the same things."""
        if old is None or old.baseline_key != key or not documents_whole(old, self.reports):
            return None
        return read_evaluation(document_path(self.reports, scoring.name, "baseline"))

    def _scored(
        self,
        scoring: Scoring,
        evaluator: Evaluator,
        subject: Subject,
        role: Role,
        baseline: Outcome | None = None,
    ) -> Evaluation:
        found = evaluate(scoring.task, evaluator, [subject], seed=scoring.seed)
        document = found.document
        failure = document.outcomes[0].failure
        if failure is not None:
            which = "its source" if role == "baseline" else "the artefact"
            raise EvaluationError(f"{failure.reason}, on {which}", log=failure.log)
        if baseline is not None:
            document = compared_with(document, baseline)
        path = document_path(self.reports, scoring.name, role)
        return write_evaluation(document, found.examples, path, overwrite=True)

    def _documents(
        self, scoring: Scoring, before: Evaluation, after: Evaluation
    ) -> Iterator[tuple[str, str]]:
        for role, document in (("baseline", before), ("variant", after)):
            path = document_path(self.reports, scoring.name, role)
            yield path.name, file_sha256(path)
            for outcome in document.outcomes:
                if outcome.examples is not None:
                    yield outcome.examples.path, outcome.examples.sha256


def document_path(reports: Path, task: str, role: str) -> Path:
    """Return where the scores of a task lie."""
    return reports / (f"{task}.baseline.json" if role == "baseline" else f"{task}.json")


def verdicts_of(
    gate: Gate, scorings: Sequence[Scoring], reports: Path, size: Size
) -> tuple[Verdict, ...]:
    """Return what a gate says, of each task that one of its rules is about.

    A rule is held to every task that has its metric; one called ``TASK.METRIC`` to that task alone.
    One that is of no task fails in the first of them. The size is decided with the first, too.
    """
    if not scorings:
        sides = _Sides("size", _sized(size, "baseline"), _sized(size, "variant"))
        return (sides.decide(gate, gate.rules),)
    found = [_sides(scoring, reports) for scoring in scorings]
    rules: list[list[Rule]] = [[] for _ in found]
    for rule in gate.rules:
        if rule.kind == "max_size":
            rules[0].append(rule)
            continue
        places = [i for i, sides in enumerate(found) if sides.has(rule.metric)]
        for place in places or [0]:
            name = rule.metric.removeprefix(f"{found[place].task}.")
            own = sides_rule(rule, name if found[place].measures(name) else rule.metric)
            rules[place].append(own)
    return tuple(
        sides.decide(gate, tuple(own))
        for sides, own in zip(found, rules, strict=True)
        if own or not gate.rules
    )


def sides_rule(rule: Rule, metric: str) -> Rule:
    """Return a rule under the name that its metric has in a task."""
    return rule.model_copy(update={"metric": metric})


@dataclass(frozen=True, slots=True)
class _Sides:
    """Both sides of a gate on one task."""

    task: str
    baseline: Side
    candidate: Side
    obstacles: tuple[str, ...] = ()

    def measures(self, metric: str) -> bool:
        return any(
            side.outcome.metric(name) is not None
            for side in (self.baseline, self.candidate)
            for name in spellings(metric)
        )

    def has(self, metric: str) -> bool:
        task, dot, name = metric.partition(".")
        return self.measures(metric) or bool(dot and task == self.task and self.measures(name))

    def decide(self, gate: Gate, rules: Sequence[Rule]) -> Verdict:
        return decide(
            self.baseline, self.candidate, rules, gate.settings,
            task=self.task, obstacles=self.obstacles,
        )  # fmt: skip


def _sides(scoring: Scoring, reports: Path) -> _Sides:
    paths = [document_path(reports, scoring.name, role) for role in ("baseline", "variant")]
    one, other = map(read_evaluation, paths)
    before, after = one.outcomes[0], other.outcomes[0]
    return _Sides(
        scoring.name,
        Side(before, examples_beside(paths[0], before)),
        Side(after, examples_beside(paths[1], after)),
        tuple(comparable(one, other)),
    )


def _sized(size: Size, role: Role) -> Side:
    """Return a side of which nothing but its size is known."""
    before = role == "baseline"
    nbytes = size.nbytes_before if before else size.nbytes_after
    params = size.n_params_before if before else size.n_params_after
    model = ModelRecord(
        name="source" if before else "artefact", kind="source" if before else "artefact",
        sha256="" if before else size.manifest_sha256, nbytes=nbytes,
        n_params=ParameterCounts(model=params),
    )  # fmt: skip
    metric = Metric(name="nbytes", value=float(nbytes), unit="bytes", better="lower")
    return Side(Outcome(role=role, model=model, metrics=(metric,)))
