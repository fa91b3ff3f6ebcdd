"""A gate from two outcomes to its verdict, with documents that are honest, broken and hostile."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ckptshrink.errors import EvaluationInputError, PlanError
from ckptshrink.evaluation.document import (
    DataRecord,
    Evaluation,
    Failure,
    ModelRecord,
    Outcome,
    ParameterCounts,
    ToolRecord,
)
from ckptshrink.evaluation.examples import Examples, examples_of
from ckptshrink.evaluation.gate.decide import decide, worst
from ckptshrink.evaluation.gate.rules import parse_rule, parse_size
from ckptshrink.evaluation.gate.sides import Side, comparable, pick
from ckptshrink.evaluation.gate.verdict import Check, Settings
from ckptshrink.evaluation.metrics import Aggregate, Metric, metric

FAST = Settings(resamples=999)
CORRECT = Aggregate(score="correct")
NATS = Aggregate(score="nats", weight="tokens", transform="exp")
N = 1_000

Columns = dict[str, NDArray[np.float64]]


def outcome(name: str = "model", *metrics: Metric, nbytes: int = 1_000, **more: Any) -> Outcome:
    """Return an outcome; without a metric its evaluation failed."""
    record = ModelRecord(
        name=name, kind="file", sha256=name, nbytes=nbytes, n_params=ParameterCounts()
    )
    failure = None if metrics else Failure(reason="it crashed", log="Segmentation fault")
    return Outcome(
        **{"role": "variant", "model": record, "metrics": metrics, "failure": failure, **more}
    )


def right(worse: int = 0, better: int = 0, n: int = N) -> NDArray[np.float64]:
    """Return 8 of 10 right, but for those that got worse and better."""
    correct = np.arange(n) < 0.8 * n
    correct[:worse] = False
    correct[n - better :] = True
    return correct.astype(np.float64)


def accuracy(correct: NDArray[np.float64], **more: Any) -> Metric:
    fields = {
        "better": "higher", "unit": "fraction", "n": len(correct), "of": CORRECT,
        "stderr": CORRECT.stderr(correct), "value": CORRECT.value(correct),
    }  # fmt: skip
    return metric("accuracy", **fields | more)


def side(
    correct: NDArray[np.float64] | None = None,
    *,
    ids: Sequence[str] | None = None,
    examples: Examples | None = None,
    kept: bool = True,
    nbytes: int = 1_000,
    name: str = "model",
    **more: Any,
) -> Side:
    """Return a side whose accuracy is that of `correct`, unless `more` says something else."""
    correct = right() if correct is None else correct
    if examples is None and kept:
        ids = [str(i) for i in range(len(correct))] if ids is None else ids
        examples = examples_of(ids, {"correct": correct})
    return Side(outcome(name, accuracy(correct, **more), nbytes=nbytes), examples)


def perplexity(nats: NDArray[np.float64], tokens: NDArray[np.float64], name: str = "ppl") -> Side:
    value = NATS.value(nats, tokens)
    found = metric(name, value, better="lower", n=len(nats), of=NATS)
    columns = {"nats": nats, "tokens": tokens}
    return Side(outcome("lm", found), examples_of([str(i) for i in range(len(nats))], columns))


def check(baseline: Side, candidate: Side, *rules: str, **more: Any) -> Check:
    """Return the only check, of ``--max-drop`` rules."""
    wanted = [parse_rule("max_drop", rule) for rule in rules]
    verdict = decide(baseline, candidate, wanted, FAST, **more)
    json.dumps(verdict.model_dump(mode="json"), allow_nan=False)
    (found,) = verdict.checks
    assert verdict.status == found.status
    assert found.because
    assert "\n" not in found.because
    return found


# -- honest documents -----------------------------------------------------------------------------


def test_without_rules_every_metric_of_the_baseline_gets_its_default() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 30, N).astype(float)
    nats = 5 * tokens + rng.normal(size=N)
    columns = {"correct": right(), "nats": nats, "tokens": tokens}
    examples = examples_of([str(i) for i in range(N)], columns)
    ppl = metric("ppl", NATS.value(nats, tokens), better="lower", of=NATS)
    whole = Side(outcome("A", accuracy(right()), ppl), examples)
    verdict = decide(whole, whole, settings=FAST, task="both")
    assert [(c.rule.metric, c.rule.kind, c.rule.amount, c.rule.unit) for c in verdict.checks] == [
        ("accuracy", "max_drop", 1.0, "pp"),
        ("ppl", "max_rise", 2.0, "%"),
    ]
    assert verdict.status == "PASS"
    assert (verdict.baseline, verdict.candidate, verdict.task) == ("A", "A", "both")
    assert verdict.settings == FAST


@pytest.mark.parametrize(
    ("worse", "better", "status"), [(0, 0, "PASS"), (40, 4, "FAIL"), (20, 4, "INCONCLUSIVE")]
)
def test_the_three_answers_of_an_accuracy(worse: int, better: int, status: str) -> None:
    found = check(side(), side(right(worse, better)), "accuracy=1pp")
    assert found.status == status
    assert (found.n, found.worse, found.better) == (N, worse, better)
    assert found.loss == pytest.approx((worse - better) / 10)
    assert (found.baseline, found.candidate) == (0.8, pytest.approx(0.8 - (worse - better) / N))


def test_a_model_against_itself_passes_a_margin_of_zero() -> None:
    assert check(side(), side(), "accuracy=0").status == "PASS"
    assert check(side(right(n=100)), side(right(n=100)), "accuracy=0").status == "INCONCLUSIVE"


def test_a_margin_is_compared_before_anything_is_rounded() -> None:
    found = check(side(), side(right(40, 4)), "accuracy=1pp")
    assert found.low is not None
    nearly = found.low * (1 + 1e-9)
    assert check(side(), side(right(40, 4)), f"accuracy={nearly:.15g}pp").status == "INCONCLUSIVE"
    at = found.low * (1 - 1e-9)
    just = check(side(), side(right(40, 4)), f"accuracy={at:.15g}pp")
    assert just.status == "FAIL"
    assert "above 2.22 pp" not in just.because  # it would read as if it were the margin


def test_a_perplexity_under_its_other_name() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 30, 400).astype(float)
    nats = 5 * tokens + rng.normal(size=400)
    worse = nats + 0.1 * tokens * rng.uniform(0.9, 1.1, 400)
    rules = [parse_rule("max_rise", "ppl=2%")]
    for name in ("ppl", "perplexity"):
        sides = perplexity(nats, tokens, name), perplexity(worse, tokens, name)
        (found,) = decide(*sides, rules, FAST).checks
        assert (found.status, found.rule.metric) == ("FAIL", name)


def test_the_order_of_rules_is_that_of_the_checks_and_the_worst_decides() -> None:
    rules = [parse_size("0.4"), parse_rule("max_drop", "accuracy=1pp")]
    verdict = decide(side(nbytes=1_000), side(right(20, 4), nbytes=400), rules, FAST)
    assert [c.status for c in verdict.checks] == ["PASS", "INCONCLUSIVE"]
    assert verdict.status == "INCONCLUSIVE"
    assert worst(["PASS", "INCONCLUSIVE", "FAIL"]) == "FAIL"
    assert worst(["PASS", "PASS"]) == "PASS"


@pytest.mark.parametrize(
    ("before", "after", "allowed", "status"),
    [
        (1_000, 400, "0.4", "PASS"),
        (1_000, 401, "0.4", "FAIL"),
        (10, 3, "0.3", "PASS"),
        (10**15, 3 * 10**14 + 1, "30%", "FAIL"),
        (3, 1, "33.3%", "FAIL"),
        (0, 0, "0.4", "FAIL"),
    ],
)
def test_sizes_are_exact(before: int, after: int, allowed: str, status: str) -> None:
    verdict = decide(side(nbytes=before), side(nbytes=after), [parse_size(allowed)], FAST)
    (found,) = verdict.checks
    assert found.status == status
    assert (found.baseline, found.candidate) == (before, after)
    assert found.loss == (after / before if before else None)
    assert verdict.notes == ("no metric has a rule: only the sizes were compared",)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(60)), st.permutations(range(60)), st.booleans())
def test_examples_are_paired_by_id_and_not_by_position(
    one: Sequence[int], other: Sequence[int], zeros_and_ones: bool
) -> None:
    rng = np.random.default_rng(0)
    before = rng.random(60)
    after = before - 0.3 * rng.random(60)
    if zeros_and_ones:
        before, after = np.round(before), np.round(after)
    found = [
        check(
            side(before[list(a)], ids=[str(i) for i in a]),
            side(after[list(b)], ids=[str(i) for i in b]),
            "accuracy=1pp",
        )
        for a, b in ((range(60), range(60)), (one, other))
    ]
    assert found[0].low == pytest.approx(found[1].low, abs=1e-9)
    assert found[0].status == found[1].status


# -- without per-example results ------------------------------------------------------------------


def plain(value: float, **more: Any) -> Side:
    fields = {"better": "higher", "unit": "fraction", "n": 1_000, "stderr": 0.0126}
    return Side(outcome("model", metric("accuracy", value, **fields | more)))


def test_standard_errors_alone_give_an_unpaired_test() -> None:
    found = check(plain(0.8), plain(0.7), "accuracy=1pp")
    assert (found.status, found.method, found.n) == ("FAIL", "unpaired", 1_000)
    error = 1.26 * math.sqrt(2)
    assert found.loss == pytest.approx(10.0)
    assert found.low == pytest.approx(10 - 2.326348 * error)
    assert found.high == pytest.approx(10 + 1.644854 * error)
    assert found.detectable == pytest.approx(1 + (2.326348 + 0.841621) * error)
    wide = check(plain(0.8), plain(0.795), "accuracy=1pp")
    assert wide.status == "INCONCLUSIVE"
    assert "per-example results" in wide.because
    assert check(plain(0.8), plain(0.9), "accuracy=1pp").status == "PASS"


def test_a_relative_margin_without_examples_knows_that_the_baseline_is_uncertain() -> None:
    more = {"unit": "1", "stderr": 2.0}
    found = check(plain(100.0, **more), plain(50.0, **more), "accuracy=10%")
    error = math.hypot(2.0, 2.0 * 0.5)
    assert found.low == pytest.approx(50 - 2.326348 * error)
    near = check(plain(5.0, **more), plain(-50.0, **more), "accuracy=10%")
    assert near.status == "INCONCLUSIVE"
    assert check(plain(0.0, **more), plain(1.0, **more), "accuracy=10%").status == "INCONCLUSIVE"


def test_neither_examples_nor_standard_errors_are_inconclusive_and_say_what_helps() -> None:
    for more in ({"stderr": None}, {"stderr": None, "n": None}):
        found = check(plain(0.8, **more), plain(0.8, **more), "accuracy=1pp")
        assert found.status == "INCONCLUSIVE"
        assert "per-example results" in found.because
    one_sided = check(plain(0.8), plain(0.8, stderr=None), "accuracy=1pp")
    assert one_sided.status == "INCONCLUSIVE"


def test_a_standard_error_of_zero_is_not_believed() -> None:
    bound = plain(1.0, stderr=0.0)
    assert check(bound, plain(0.0, stderr=0.0), "accuracy=1pp").status == "FAIL"
    few = plain(1.0, stderr=0.0, n=100)
    assert check(few, few, "accuracy=1pp").status == "INCONCLUSIVE"
    score = {"unit": "1", "stderr": 0.0}
    assert check(plain(1.0, **score), plain(1.0, **score), "accuracy=1").status == "INCONCLUSIVE"


def test_examples_on_one_side_only_are_no_pairs() -> None:
    found = check(side(), side(right(100), kept=False), "accuracy=1pp")
    assert (found.method, found.status) == ("unpaired", "FAIL")


# -- what can't pass ------------------------------------------------------------------------------


def altered(**more: Any) -> Side:
    return side(name="candidate", **more)


LIES: Mapping[str, tuple[Side, str]] = {
    "another value than its examples make": (altered(value=0.99), "per-example results make 0.8"),
    "a value that is off by a millionth": (altered(value=0.8 + 1e-6), "results make 0.8"),
    "NaN": (altered(value=math.nan), "is nan"),
    "infinity": (altered(value=math.inf), "is inf"),
    "minus infinity": (altered(value=-math.inf), "is -inf"),
    "a fraction above 1": (altered(correct=100 * right()), "no fraction"),
    "another direction": (altered(better="lower"), "which way is better"),
    "another unit": (altered(unit="1"), "differ in the unit"),
    "another n": (altered(n=999), "number of examples"),
    "another aggregate": (altered(of=None), "made of per-example results"),
    "a column that is not there": (
        altered(of=Aggregate(score="wrong")), "'wrong', which its per-example results don't have",
    ),
    "other examples": (
        altered(ids=[str(i + 1) for i in range(N)]), "not scored on the same examples",
    ),
    "fewer examples": (
        altered(examples=examples_of([str(i) for i in range(800)], {"correct": np.ones(800)}),
                value=1.0),
        "200 of them are not among the candidate's",
    ),
    "no metric of the name": (
        Side(outcome("m", metric("f1", 1.0, better="higher"))),
        "the candidate does not have a metric 'accuracy'; there are f1",
    ),
    "a failed evaluation": (Side(outcome("m")), "candidate's evaluation failed: it crashed"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_candidate_that_cannot_be_compared_fails(lie: str) -> None:
    candidate, says = LIES[lie]
    found = check(side(), candidate, "accuracy=50pp")
    assert found.status == "FAIL"
    assert says in found.because
    assert found.low is found.high is None


@pytest.mark.parametrize("lie", LIES)
def test_a_baseline_that_cannot_be_compared_fails(lie: str) -> None:
    if lie == "another direction":  # then the rule is the wrong way round, see below
        return
    found = check(LIES[lie][0], side(), "accuracy=50" if lie == "another unit" else "accuracy=50pp")
    assert found.status == "FAIL"


def test_a_failed_evaluation_fails_every_check_that_of_the_size_too() -> None:
    rules = [parse_size("0.4"), parse_rule("max_drop", "accuracy")]
    for sides in ((side(), Side(outcome())), (Side(outcome()), side()), (Side(outcome()),) * 2):
        for wanted in (rules, rules[:1], []):
            verdict = decide(*sides, wanted, FAST)
            assert {c.status for c in verdict.checks} == {"FAIL"}
            assert "it crashed" in verdict.checks[0].because


def test_obstacles_fail_every_check_whatever_the_values_say() -> None:
    rules = [parse_size("0.4"), parse_rule("max_drop", "accuracy=50pp")]
    verdict = decide(side(), side(nbytes=1), rules, FAST, obstacles=["the data differ"])
    assert [c.because for c in verdict.checks] == ["the data differ"] * 2
    assert verdict.status == "FAIL"


def test_a_metric_that_neither_side_has_fails_and_says_what_may_be_meant() -> None:
    found = check(side(), side(), "acuracy=1pp")
    assert found.status == "FAIL"
    assert "did you mean accuracy?" in found.because
    assert check(side(), side(), "acuracy").rule.amount == 2.0


def test_a_metric_that_only_the_baseline_has_fails_without_rules_too() -> None:
    both = Side(outcome("A", accuracy(right()), metric("f1", 0.5, better="higher")), None)
    verdict = decide(both, side(kept=False), settings=FAST)
    assert [c.status for c in verdict.checks][1] == "FAIL"


def test_perplexities_over_other_numbers_of_words_fail() -> None:
    tokens = np.full(200, 10.0)
    nats = 5 * tokens + np.random.default_rng(0).normal(size=200)
    found = decide(perplexity(nats, tokens), perplexity(nats, 2 * tokens), settings=FAST).checks[0]
    assert found.status == "FAIL"
    assert "tokens" in found.because


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_negative_weights_fail(sign: float) -> None:
    tokens = np.r_[np.full(99, sign), -sign]
    nats = 5 * np.abs(tokens)
    ones = perplexity(nats, np.ones(100))
    found = decide(ones, perplexity(nats, tokens), settings=FAST).checks[0]
    assert found.status == "FAIL"
    assert "negative for some examples" in found.because
    assert decide(*[perplexity(nats, tokens)] * 2, settings=FAST).status == "FAIL"


def test_a_perplexity_whose_examples_overflow_fails() -> None:
    tokens, nats = np.ones(100), np.full(100, 1_000.0)
    sane = perplexity(np.ones(100), tokens)
    lying = Side(sane.outcome, perplexity(nats, tokens).examples)
    assert decide(sane, lying, settings=FAST).status == "FAIL"


def test_a_rule_against_the_direction_of_its_metric_is_a_mistake_of_usage() -> None:
    with pytest.raises(PlanError, match="higher is better"):
        decide(side(), side(), [parse_rule("max_rise", "accuracy")], FAST)


def test_half_of_a_fraction_is_said_to_be_fifty_points() -> None:
    verdict = decide(side(), side(), [parse_rule("max_drop", "accuracy=0.5")], FAST)
    assert any("50 percentage points" in note for note in verdict.notes)
    assert not decide(side(), side(), [parse_rule("max_drop", "accuracy=0.01")], FAST).notes


def test_one_model_with_two_scores_is_said_to_be_flaky() -> None:
    verdict = decide(side(), side(right(5, 5)), settings=FAST)
    assert not verdict.notes
    verdict = decide(side(), side(right(5, 6)), settings=FAST)
    assert any("from run to run" in note for note in verdict.notes)


# -- which outcome, and whether two documents are alike -------------------------------------------


def document(*outcomes: Outcome, **more: Any) -> Evaluation:
    fields = {
        "task": "sst5",
        "data": DataRecord(name="test.txt", sha256="a" * 64, nbytes=1),
        "protocol": {"batch_size": 32, "vocab": "b" * 64},
        "seed": 0,
        "tool": ToolRecord(name="ckptshrink", version="0"),
        "outcomes": outcomes or (outcome("m", accuracy(right())),),
    }
    return Evaluation(**fields | more)  # type: ignore[arg-type]


def test_the_outcome_that_is_meant() -> None:
    base, one, two = (
        outcome(n, accuracy(right()), role="baseline" if n == "base" else "variant")
        for n in ("base", "one", "two")
    )
    assert pick(document(one), "baseline") is one
    assert pick(document(base), "variant") is base
    assert pick(document(base, one), "baseline") is base
    assert pick(document(base, one), "variant") is one
    assert pick(document(base, one, two), "baseline") is base
    assert pick(document(base, one, two), "variant", "two") is two
    assert pick(document(base, one, two), "variant", "base") is base


def test_an_outcome_that_could_be_several_is_asked_for() -> None:
    one, two = (outcome(n, accuracy(right())) for n in ("one", "two"))
    for role in ("baseline", "variant"):
        with pytest.raises(EvaluationInputError, match="one, two"):
            pick(document(one, two), role)  # type: ignore[arg-type]
    with pytest.raises(EvaluationInputError, match="no model 'tow'") as caught:
        pick(document(one, two), "variant", "tow")
    assert caught.value.hint == "did you mean 'two'?"


def test_documents_are_alike_if_task_data_and_protocol_are() -> None:
    same = document()
    assert comparable(same, document(seed=1, environment={"torch": "2"})) == []
    renamed = DataRecord(name="copy.txt", sha256="a" * 64, nbytes=1)
    assert comparable(same, document(data=renamed)) == []
    assert comparable(document(data=None), document(data=None)) == []


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"task": "snli"}, "the tasks differ: sst5 and snli"),
        ({"data": DataRecord(name="x", sha256="c" * 64, nbytes=1)}, "data differ: test.txt (aa"),
        ({"data": None}, "the data differ: test.txt (aaaaaaaaaaaa) and none"),
        ({"protocol": {"batch_size": 1, "vocab": "b" * 64}}, "batch_size (32 and 1)"),
        ({"protocol": {"batch_size": 32, "vocab": "c" * 64}}, "the protocols differ in vocab"),
        ({"protocol": {"batch_size": 32}}, "the protocols differ in vocab"),
        ({"protocol": {"batch_size": 32, "vocab": "b" * 64, "x": 1}}, "x (nothing and 1)"),
        ({"protocol": {"batch_size": math.nan, "vocab": "b" * 64}}, "batch_size (32 and nan)"),
    ],
)  # fmt: skip
def test_documents_that_are_not_alike_say_why(more: dict[str, Any], says: str) -> None:
    (reason,) = comparable(document(), document(**more))
    assert says in reason
    assert len(comparable(document(), document(task="lm", data=None, protocol={}))) == 3


# -- how often it is wrong ------------------------------------------------------------------------


def test_a_model_against_an_equal_one_seldom_fails() -> None:
    rng = np.random.default_rng(0)
    statuses = []
    for _ in range(150):
        before = (rng.random(500) < 0.7).astype(float)
        after = np.where(rng.random(500) < 0.1, (rng.random(500) < 0.7).astype(float), before)
        statuses.append(decide(side(before), side(after), settings=FAST).status)
    assert statuses.count("FAIL") == 0
    assert 0 < statuses.count("PASS") < 150
