"""Metrics and how they follow from examples, against resampling and against plain arithmetic."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ckptshrink.evaluation.metrics import Aggregate, Metric, metric, relative_loss

MEAN = Aggregate(score="s")
RATIO = Aggregate(score="s", weight="w")
EXP = Aggregate(score="s", weight="w", transform="exp")


def test_an_accuracy_is_the_mean_and_its_error_the_binomial_one() -> None:
    right = [1, 0, 1, 1, 0, 1, 1, 1]
    assert MEAN.value(right) == 0.75
    assert MEAN.stderr(right) == pytest.approx(math.sqrt(0.75 * 0.25 / 7))
    assert MEAN.stderr([1, 1, 1]) == 0


def test_a_perplexity_is_the_exponential_of_nats_over_words() -> None:
    nats, words = [7.0, 2.0, 12.0], [3, 1, 5]
    assert RATIO.value(nats, words) == pytest.approx(21 / 9)
    assert EXP.value(nats, words) == pytest.approx(math.exp(21 / 9))
    assert EXP.stderr(nats, words) == pytest.approx(RATIO.stderr(nats, words) * math.exp(21 / 9))
    assert RATIO.stderr(nats, [1, 1, 1]) == pytest.approx(MEAN.stderr(nats))
    # an example without a word adds nothing
    assert EXP.value([*nats, 0.0], [*words, 0]) == EXP.value(nats, words)


@pytest.mark.parametrize("of", [MEAN, RATIO, EXP])
def test_the_standard_error_is_the_spread_over_resampled_examples(of: Aggregate) -> None:
    rng = np.random.default_rng(5)
    n = 400
    weight = rng.integers(1, 30, n).astype(float)
    score = weight * rng.gamma(4.0, 0.4, n)
    picks = rng.integers(0, n, (2_000, n))
    values = [of.value(score[pick], None if of.weight is None else weight[pick]) for pick in picks]
    found = of.stderr(score, None if of.weight is None else weight)
    # 2,000 draws give a spread to 1.6%; the delta method is good to some percent more
    assert found == pytest.approx(np.std(values), rel=0.08)


def test_nothing_gives_no_number_and_one_example_no_error() -> None:
    assert math.isnan(MEAN.value([]))
    assert math.isnan(EXP.value([], []))
    assert math.isnan(RATIO.value([0.0], [0]))
    assert MEAN.stderr([]) is None
    assert MEAN.stderr([1.0]) is None
    assert RATIO.stderr([0.0, 0.0], [0, 0]) is None


def test_what_is_beyond_measure_is_infinite_and_warns_of_nothing() -> None:
    assert EXP.value([800.0, 900.0], [1, 1]) == math.inf
    assert EXP.stderr([800.0, 900.0], [1, 1]) == math.inf
    assert MEAN.value([1e308, 1e308]) == math.inf
    found = metric("ppl", math.inf, better="lower", stderr=math.inf)
    assert (found.value, found.nonfinite, found.stderr) == (None, "inf", None)
    assert math.isnan(EXP.value([math.inf, -math.inf], [1, 1]))
    for scores in ([1e308, -1e308], [1e200, 1.0], [math.nan, 1.0]):
        assert not (MEAN.stderr(scores) or 0) < 0


@given(
    st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(0, 50)), min_size=2, max_size=30),
    st.randoms(),
)
def test_the_order_of_examples_is_of_no_account(rows: list[tuple[float, int]], random: Any) -> None:
    other = list(rows)
    random.shuffle(other)
    for of in (MEAN, RATIO):
        found = [
            of.value(*([s for s, _ in r], [w for _, w in r])[: 1 if of.weight is None else 2])
            for r in (rows, other)
        ]
        assert found[0] == pytest.approx(found[1], rel=1e-9, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize(
    "fields",
    [
        {"value": None},
        {"value": 1.0, "nonfinite": "nan"},
        {"value": math.nan},
        {"value": math.inf},
        {"value": 1.0, "n": -1},
        {"value": 1.0, "stderr": -0.1},
        {"value": 1.0, "stderr": math.nan},
        {"value": 1.0, "better": "up"},
        {"value": 1.0, "name": ""},
        {"value": 1.0, "more": 1},
        {"value": None, "nonfinite": "big"},
    ],
)
def test_a_metric_that_can_not_be_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Metric(**{"name": "m", "better": "higher", **fields})


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_any_number_comes_back_from_a_metric_and_from_its_json(value: float) -> None:
    found = metric("m", value, better="lower")
    for one in (found, Metric.model_validate_json(found.model_dump_json())):
        same = math.isnan(value) and math.isnan(one.number)
        assert same or one.number == value
        assert (one.value is None) == (not math.isfinite(value))


def loss(value: float, before: float, better: Any) -> float | None:
    return relative_loss(metric("m", value, better=better), metric("m", before, better=better))


def test_a_relative_loss_is_positive_where_the_metric_got_worse() -> None:
    assert loss(63.0, 60.0, "lower") == pytest.approx(0.05)
    assert loss(57.0, 60.0, "lower") == pytest.approx(-0.05)
    assert loss(0.76, 0.8, "higher") == pytest.approx(0.05)
    assert loss(0.84, 0.8, "higher") == pytest.approx(-0.05)
    # of a log likelihood, which is below zero
    assert loss(-2.2, -2.0, "higher") == pytest.approx(0.1)
    assert loss(-1.8, -2.0, "higher") == pytest.approx(-0.1)
    for better in ("higher", "lower"):
        assert str(loss(60.0, 60.0, better)) == "0.0"


@pytest.mark.parametrize(
    ("value", "before"),
    [(1.0, 0.0), (math.nan, 1.0), (1.0, math.nan), (math.inf, 1.0), (1.0, 5e-324), (1e308, -1e-10),
     (1e308, -1e308)],
)  # fmt: skip
def test_there_is_no_relative_loss_without_finite_numbers(value: float, before: float) -> None:
    assert loss(value, before, "lower") is None
