"""One evaluation from start to finish, with evaluators that do whatever evaluators do."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ckptshrink.errors import CheckpointError, EvaluationError, EvaluationInputError
from ckptshrink.evaluation.document import Evaluation, read_evaluation, write_evaluation
from ckptshrink.evaluation.evaluator import Data, Scores
from ckptshrink.evaluation.examples import examples_of
from ckptshrink.evaluation.metrics import Aggregate, metric
from ckptshrink.evaluation.run import compared_with, evaluate
from ckptshrink.evaluation.subjects import Subject
from ckptshrink.events import Progress


def subject(name: str, n_params: int | None = 100, n_lstm: int | None = 80) -> Subject:
    return Subject(
        path=Path(name), name=name, kind="source", sha256="0" * 64, source_sha256=None, nbytes=400,
        n_params=n_params, n_params_lstm=n_lstm,
    )  # fmt: skip


class Task:
    """Does for each model what a test says."""

    data: Data | None = Data("dev.txt", "1" * 64, 3)
    environment: Mapping[str, str] = {"torch": "2"}

    def __init__(
        self, does: Callable[[Subject], Any], protocol: Mapping[str, Any] | None = None
    ) -> None:
        self.does = does
        self.protocol = protocol or {}

    def score(self, subject: Subject) -> Scores:
        found: Scores = self.does(subject)
        return found

    def __enter__(self) -> "Task":
        return self

    def __exit__(self, *error: object) -> None:
        pass


def ppl(value: float, **more: Any) -> Scores:
    return Scores((metric("ppl", value, better="lower"),), **more)


def run(does: Callable[[Subject], Any], *names: str, **more: Any) -> Evaluation:
    return evaluate("t", Task(does), [subject(name) for name in names], **more).document


def raises(error: BaseException) -> Callable[[Subject], Any]:
    def does(subject: Subject) -> Any:
        raise error

    return does


def test_models_are_scored_in_order_and_compared_with_the_baseline() -> None:
    values = {"base": 50.0, "small": 55.0, "tiny": 45.0}
    heard: list[Progress] = []
    order: list[str] = []

    def does(subject: Subject) -> Scores:
        order.append(subject.name)
        return ppl(values[subject.name], notes=("a note",))

    ticks = iter(range(100))
    document = evaluate(
        "t", Task(does, {"batch_size": 1}), [subject("small", 60, 40), subject("tiny", 25, 20)],
        baseline=subject("base"), seed=7, listen=heard.append, clock=lambda: float(next(ticks)),
    ).document  # fmt: skip
    assert order == ["base", "small", "tiny"]
    base, small, tiny = document.outcomes
    assert (base.role, small.role, tiny.role) == ("baseline", "variant", "variant")
    assert base.changes == ()
    (change,) = small.changes
    assert change.difference == 5
    assert change.relative_loss == pytest.approx(0.1)
    assert change.efficiency == {"model": pytest.approx(0.1 / 0.4), "lstm": pytest.approx(0.2)}
    (change,) = tiny.changes
    assert change.relative_loss == pytest.approx(-0.1)
    assert change.efficiency == {"model": pytest.approx(-0.4), "lstm": pytest.approx(-0.4)}
    assert (document.seed, document.protocol, document.task) == (7, {"batch_size": 1}, "t")
    assert document.data.name == "dev.txt"
    assert small.notes == ("a note",)
    assert small.seconds == 1
    assert [(p.done, p.total) for p in heard] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    (change,) = compared_with(run(lambda s: ppl(60.0), "x"), base).outcomes[0].changes
    assert change.difference == 10


def test_a_failure_is_kept_with_its_log_and_the_rest_goes_on() -> None:
    def does(subject: Subject) -> Scores:
        if subject.name == "bad":
            raise EvaluationError("it took\ntoo long", path="/x", log="one\ntwo")
        return ppl(50.0)

    document = run(does, "bad", "good", baseline=subject("base"))
    base, bad, good = document.outcomes
    assert bad.failure.reason == "/x: it took too long"
    assert bad.failure.log == "one\ntwo"
    assert (bad.metrics, bad.changes) == ((), ())
    assert good.failure is None
    assert base.failure is None


def test_a_failed_baseline_leaves_nothing_to_compare_with() -> None:
    def does(subject: Subject) -> Scores:
        if subject.name == "base":
            raise EvaluationError("no")
        return ppl(50.0)

    document = run(does, "small", baseline=subject("base"))
    assert document.baseline.failure.reason == "no"
    assert document.outcomes[1].changes == ()


@pytest.mark.parametrize(
    ("does", "reason"),
    [
        (raises(ValueError("wrong\nshape")), "crashed: ValueError: wrong shape"),
        (raises(ZeroDivisionError()), "crashed: ZeroDivisionError: "),
        (raises(MemoryError()), "crashed: MemoryError: "),
        (raises(OSError(2, "gone")), "crashed: FileNotFoundError: [Errno 2] gone"),
        (raises(ValueError("\ud800")), "crashed: ValueError: ?"),
        (lambda s: None, "crashed: AttributeError: "),
        (lambda s: {"ppl": 3}, "crashed: AttributeError: "),
        (lambda s: Scores(()), "it gave no metric"),
        (lambda s: Scores(ppl(3.0).metrics * 2), "it gave the metric 'ppl' twice"),
        (lambda s: ppl(3.0, n_params=-1), "crashed: ValidationError: "),
        (lambda s: ppl(3.0, notes=(1,)), "crashed: ValidationError: "),
    ],
)
def test_a_crash_or_nonsense_is_a_failure_and_never_a_metric(
    does: Callable[[Subject], Any], reason: str, tmp_path: Path
) -> None:
    document = run(does, "m")
    (outcome,) = document.outcomes
    assert outcome.metrics == ()
    assert outcome.failure.reason.startswith(reason.strip())
    assert "\n" not in outcome.failure.reason
    if reason.startswith("crashed"):
        assert "Traceback" in outcome.failure.log
    write_evaluation(document, {}, tmp_path / "a.json")
    assert read_evaluation(tmp_path / "a.json") == document


def test_metrics_that_their_examples_contradict_are_a_failure() -> None:
    examples = examples_of(["1", "2"], {"correct": [1, 0]})

    def scores(value: float, **more: Any) -> Scores:
        of = Aggregate(score="correct")
        return Scores((metric("acc", value, better="higher", of=of, **more),), examples)

    (outcome,) = run(lambda s: scores(0.9), "m").outcomes
    assert "do not agree: acc is 0.9, and its examples make it 0.5" in outcome.failure.reason
    (outcome,) = run(lambda s: scores(0.5, n=3), "m").outcomes
    assert "acc is of 3 examples, and there are 2" in outcome.failure.reason
    (outcome,) = run(lambda s: scores(0.5, n=2), "m").outcomes
    assert outcome.failure is None


@pytest.mark.parametrize("kind", [CheckpointError, EvaluationInputError])
def test_a_model_that_the_task_can_not_score_ends_the_run(kind: type[Exception]) -> None:
    with pytest.raises(kind, match="not one of these"):
        run(raises(kind("not one of these")), "m")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_an_interrupt_is_no_failure_of_the_model(error: BaseException) -> None:
    with pytest.raises(type(error)):
        run(raises(error), "m")


def test_two_models_of_one_name_are_refused_before_anything_runs() -> None:
    with pytest.raises(EvaluationInputError, match="two models are called 'a'") as caught:
        run(raises(ValueError()), "a", "b", "a")
    assert caught.value.hint == "give one of them a name: NAME=PATH"
    with pytest.raises(EvaluationInputError, match="two models are called 'a'"):
        run(raises(ValueError()), "a", baseline=subject("a"))


@pytest.mark.parametrize(
    ("before", "after", "difference", "loss"),
    [
        (0.0, 5.0, 5.0, None),
        (math.nan, 5.0, None, None),
        (5.0, math.inf, None, None),
        (math.inf, math.inf, None, None),
        (5e-324, 5.0, 5.0, None),
        (-1e308, 1e308, None, None),
    ],
)
def test_changes_without_a_finite_number_are_none(
    before: float, after: float, difference: float | None, loss: float | None, tmp_path: Path
) -> None:
    document = run(lambda s: ppl(before if s.name == "b" else after), "m", baseline=subject("b"))
    (change,) = document.outcomes[1].changes
    assert (change.difference, change.relative_loss) == (difference, loss)
    assert change.efficiency == {"model": None, "lstm": None}
    write_evaluation(document, {}, tmp_path / "a.json")
    assert read_evaluation(tmp_path / "a.json") == document


def test_metrics_in_other_units_or_directions_are_not_subtracted() -> None:
    base = metric("acc", 55.0, better="higher", unit="percent")
    for other in (
        metric("acc", 0.9, better="higher", unit="fraction"),
        metric("acc", 55.0, better="lower", unit="percent"),
        metric("f1", 55.0, better="higher", unit="percent"),
    ):
        does = {"b": Scores((base,)), "m": Scores((other,))}
        document = run(lambda s, does=does: does[s.name], "m", baseline=subject("b"))
        assert document.outcomes[1].changes == ()


def test_parameters_of_everything_that_ran_go_before_those_of_the_file() -> None:
    document = run(lambda s: ppl(3.0, n_params=1_000), "m")
    assert document.outcomes[0].model.n_params.model == 1_000
    assert document.outcomes[0].model.n_params.lstm == 80
    assert run(lambda s: ppl(3.0), "m").outcomes[0].model.n_params.model == 100


def test_a_long_log_is_cut_to_its_end() -> None:
    log = "\n".join(f"line {i}" for i in range(10_000))
    (outcome,) = run(raises(EvaluationError("x", log=log)), "m").outcomes
    assert outcome.failure.log.splitlines()[-1] == "line 9999"
    assert len(outcome.failure.log.splitlines()) == 200
    (outcome,) = run(raises(EvaluationError("x", log="#" * 10**6 + "end")), "m").outcomes
    assert outcome.failure.log.endswith("#end")
    assert len(outcome.failure.log) == 20_000


def test_a_protocol_is_what_a_file_gives_back(tmp_path: Path) -> None:
    document = evaluate("t", Task(lambda s: ppl(3.0), {"splits": (1, 2)}), [subject("m")]).document
    assert document.protocol == {"splits": [1, 2]}
    write_evaluation(document, {}, tmp_path / "a.json")
    assert read_evaluation(tmp_path / "a.json").protocol == document.protocol
    for wrong in ({"x": math.nan}, {"x": Path("a")}, {"x": {1, 2}}):
        with pytest.raises(EvaluationError, match="protocol is no JSON"):
            evaluate("t", Task(lambda s: ppl(3.0), wrong), [subject("m")])
