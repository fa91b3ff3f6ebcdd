"""Results of two models on the same examples, of every kind, become an answer to rely on."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import ArrayLike, NDArray
from scipy.stats import bootstrap

from ckptshrink.errors import PlanError
from ckptshrink.evaluation.gate import counts, paired, resample
from ckptshrink.evaluation.gate.finding import FEWEST, Columns, Finding, scale_of
from ckptshrink.evaluation.gate.verdict import Rule, Settings
from ckptshrink.evaluation.metrics import FRACTION, PERCENT, Aggregate, Better, metric

FAST = Settings(resamples=999)
MEAN = Aggregate(score="s")
RATIO = Aggregate(score="s", weight="w")
PPL = Aggregate(score="s", weight="w", transform="exp")
ORDER = {"FAIL": 0, "INCONCLUSIVE": 1, "PASS": 2}


def compared(
    before: ArrayLike,
    after: ArrayLike,
    allowed: str,
    *,
    better: Better = "higher",
    unit: str = "1",
    of: Aggregate = MEAN,
    weights: tuple[ArrayLike, ArrayLike] | None = None,
    settings: Settings = FAST,
) -> Finding:
    amount = float(allowed.rstrip("p%"))
    kind: Any = "max_drop" if better == "higher" else "max_rise"
    suffix: Any = allowed.lstrip("0123456789.")
    rule = Rule(kind=kind, metric="m", amount=amount, unit=suffix)
    scale = scale_of(rule, metric("m", 0.0, better=better, unit=unit))
    sides = [np.asarray(side, np.float64) for side in (before, after)]
    heavy = (None, None) if weights is None else tuple(np.asarray(w, np.float64) for w in weights)
    columns = [Columns(side, weight) for side, weight in zip(sides, heavy, strict=True)]
    return paired.compare(columns[0], columns[1], of, scale, rule, settings)


def right_and_wrong(n: int, worse: int, better: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return a baseline that gets 7 of 10 right, and a candidate that differs on some."""
    before = np.arange(n) < 0.7 * n
    after = before.copy()
    after[:worse] = False
    after[n - better :] = True
    return before.astype(float), after.astype(float)


# -- right and wrong ------------------------------------------------------------------------------


def test_counts_and_loss_of_right_and_wrong_are_in_the_rules_unit() -> None:
    before, after = right_and_wrong(2_000, 60, 20)
    found = compared(before, after, "1pp", unit=FRACTION)
    assert (found.worse, found.better, found.n) == (60, 20, 2_000)
    assert found.method == "McNemar and score test"
    assert found.loss == pytest.approx(2.0)
    plain = compared(before, after, "0.01", unit=FRACTION)
    assert plain.loss == pytest.approx(0.02)
    relative = compared(before, after, "1%", unit=FRACTION)
    assert relative.loss == pytest.approx(2.0 / 0.7)
    for other, factor in ((plain, 0.01), (relative, 1 / 0.7)):
        for name in ("low", "high"):
            assert getattr(other, name) == pytest.approx(factor * getattr(found, name))
    assert plain.detectable == pytest.approx(0.01 * (found.detectable or 0))


def test_percent_is_a_hundred_times_a_fraction() -> None:
    before, after = right_and_wrong(2_000, 60, 20)
    of_fraction = compared(before, after, "1pp", unit=FRACTION)
    of_percent = compared(100 * before, 100 * after, "1pp", unit=PERCENT)
    assert of_percent.method == of_fraction.method
    for name in ("loss", "low", "high", "detectable"):
        assert getattr(of_percent, name) == pytest.approx(getattr(of_fraction, name))
    assert of_percent.status == of_fraction.status


def test_an_error_rate_is_an_accuracy_upside_down() -> None:
    before, after = right_and_wrong(1_000, 60, 10)
    accuracy = compared(before, after, "1pp", unit=FRACTION)
    error = compared(1 - before, 1 - after, "1pp", unit=FRACTION, better="lower")
    assert error == accuracy
    assert accuracy.status == "FAIL"


def test_an_error_rate_relative_to_itself_goes_to_the_bootstrap() -> None:
    before, after = right_and_wrong(1_000, 60, 10)
    found = compared(1 - before, 1 - after, "5%", unit=FRACTION, better="lower")
    assert found.method == "paired bootstrap"
    assert found.loss == pytest.approx(100 * 50 / 300)
    assert found.status == "FAIL"


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_an_accuracy_at_its_bound(share: float) -> None:
    same = np.full(500, share)
    assert compared(same, same, "1pp", unit=FRACTION).status == "PASS"
    lost = compared(np.ones(500), np.zeros(500), "1pp", unit=FRACTION)
    assert (lost.status, lost.loss, lost.high) == ("FAIL", 100.0, 100.0)
    gained = compared(np.zeros(500), np.ones(500), "1pp", unit=FRACTION)
    assert (gained.status, gained.loss, gained.low) == ("PASS", -100.0, -100.0)


@pytest.mark.parametrize("n", [1, 2, 5, 19])
def test_a_handful_of_examples_is_inconclusive(n: int) -> None:
    for after in (np.ones(n), np.where(np.arange(n) % 4, 1.0, 0.0)):
        assert compared(np.ones(n), after, "1pp", unit=FRACTION).status == "INCONCLUSIVE"


# -- anything else: known values ------------------------------------------------------------------


def normal(n: int, mean: float, sd: float, seed: int = 0) -> NDArray[np.float64]:
    """Return values of exactly that mean and standard deviation."""
    values = np.random.default_rng(seed).normal(size=n)
    return mean + sd * (values - values.mean()) / values.std(ddof=1)


def test_limits_of_a_mean_are_those_of_scipys_bootstrap() -> None:
    before, change = normal(400, 5.0, 2.0), normal(400, -0.3, 1.0, seed=1)
    found = compared(before, before + change, "0.1", settings=Settings())
    assert found.loss == pytest.approx(0.3)
    for level, side, name in ((0.98, 0, "low"), (0.9, 1, "high")):
        reference = bootstrap(
            (-change,), np.mean, confidence_level=level, n_resamples=9_999, method="percentile"
        ).confidence_interval
        assert getattr(found, name) == pytest.approx(reference[side], abs=0.01)
    assert found.method == "paired bootstrap"
    assert found.detectable == pytest.approx(0.1 + (2.3263 + 0.8416) / 20, rel=1e-3)


def test_a_perplexity_is_compared_as_a_share_of_the_baselines() -> None:
    words = np.arange(1.0, 401)
    nats = 4 * words + normal(400, 0, 1.0) * np.sqrt(words)
    noise = normal(400, 0, 0.1, seed=1) * np.sqrt(words)
    noise -= noise.sum() / words.sum() * words
    after = nats + math.log(1.05) * words + noise
    found = compared(nats, after, "2%", better="lower", of=PPL, weights=(words, words))
    assert found.loss == pytest.approx(5.0)
    assert found.low is not None
    assert found.high is not None
    assert 4.5 < found.low < 5.0 < found.high < 5.5
    assert found.status == "FAIL"
    gained = compared(after, nats, "2%", better="lower", of=PPL, weights=(words, words))
    assert gained.loss == pytest.approx(-100 * (1 - 1 / 1.05))
    assert gained.status == "PASS"
    plain = compared(nats, after, "1", better="lower", of=PPL, weights=(words, words))
    level = math.exp(nats.sum() / words.sum())
    assert plain.loss == pytest.approx(0.05 * level)


def test_a_negative_metric_loses_in_the_direction_that_is_worse() -> None:
    before = normal(300, -120.0, 30.0)
    worse, better = (before + normal(300, shift, 2.0, seed=1) for shift in (-6.0, 6.0))
    lost = compared(before, worse, "2%")
    assert lost.loss == pytest.approx(5.0)
    assert lost.status == "FAIL"
    gained = compared(before, better, "2%")
    assert gained.loss == pytest.approx(-5.0)
    assert gained.status == "PASS"
    # and where lower is better, as for an energy
    assert compared(before, worse, "2%", better="lower").status == "PASS"
    assert compared(before, better, "2%", better="lower").status == "FAIL"


def test_a_share_of_a_baseline_around_zero_says_nothing() -> None:
    before = normal(300, 0.1, 1.0)
    found = compared(before, before - 0.5, "2%")
    assert found.status == "INCONCLUSIVE"
    assert "0" in found.because
    assert compared(before, before - normal(300, 0.5, 0.1), "0.1").status == "FAIL"
    zeros = np.zeros(300)
    assert compared(zeros, zeros + 1, "2%").status == "INCONCLUSIVE"
    assert compared(zeros, zeros, "2%", unit=FRACTION).status == "INCONCLUSIVE"


def test_a_ratio_whose_weights_differ_is_compared_as_a_ratio() -> None:
    rng = np.random.default_rng(0)
    weights = rng.integers(1, 20, (2, 500)).astype(float)
    hits = rng.binomial(weights.astype(int), np.array([[0.8], [0.6]])).astype(float)
    found = compared(*hits, "5pp", unit=FRACTION, of=RATIO, weights=(weights[0], weights[1]))
    ratios = hits.sum(axis=1) / weights.sum(axis=1)
    assert found.loss == pytest.approx(100 * (ratios[0] - ratios[1]))
    assert found.status == "FAIL"


def test_fewer_examples_than_the_bootstrap_can_bear_are_inconclusive() -> None:
    for n, status in ((FEWEST - 1, "INCONCLUSIVE"), (FEWEST, "FAIL")):
        assert compared(normal(n, 5, 1), normal(n, 1, 1, seed=1), "0.1").status == status


# -- few or no changes ----------------------------------------------------------------------------


def test_scores_that_are_all_alike_pass_even_a_margin_of_zero() -> None:
    scores = normal(FEWEST, 5.0, 1.0)
    found = compared(scores, scores, "0")
    assert (found.status, found.loss, found.low, found.high) == ("PASS", 0.0, 0.0, 0.0)
    assert "not one" in found.because


def test_proportions_that_are_all_alike_pass_once_there_are_enough() -> None:
    for n, status in ((100, "INCONCLUSIVE"), (400, "PASS")):
        scores = np.random.default_rng(0).random(n)
        assert compared(scores, scores, "0", unit=FRACTION).status == status
        assert compared(scores, scores, "1pp", unit=FRACTION).status == status
    assert compared(scores[:100], scores[:100], "5pp", unit=FRACTION).status == "PASS"


def test_few_changes_of_a_proportion_count_as_parts_of_whole_ones() -> None:
    before = np.full(400, 0.5)
    after, whole = before.copy(), np.ones(400)
    after[:10] = 0.0
    lost = np.where(np.arange(400) < 5, 0.0, 1.0)
    halves = compared(before, after, "1pp", unit=FRACTION)
    assert halves.method == "score test"
    # 10 halves are 5 wholes
    exact = compared(whole, lost, "1pp", unit=FRACTION)
    assert halves.loss == pytest.approx(exact.loss) == pytest.approx(1.25)
    assert halves.high == pytest.approx(exact.high)
    assert halves.low == pytest.approx(exact.low)


def test_six_changes_are_too_few_to_fail() -> None:
    before = normal(500, 5.0, 1.0)
    for n_changed, status in ((6, "INCONCLUSIVE"), (10, "FAIL")):
        after = before.copy()
        after[:n_changed] -= 100.0
        found = compared(before, after, "0.01")
        assert found.low is not None
        assert found.status == status
    assert "chance" in compared(before, np.r_[before[:6] - 100, before[6:]], "0.01").because


def test_one_change_by_rounding_passes() -> None:
    before = normal(500, 5.0, 1.0)
    after = np.r_[before[0] + 1e-12, before[1:]]
    assert compared(before, after, "0.1%").status == "PASS"


# -- resampling -----------------------------------------------------------------------------------


def test_flipped_signs_are_exact_for_few_differences() -> None:
    assert resample.flipped(np.r_[np.ones(5), np.zeros(95)], FAST) == 1 / 32
    assert resample.flipped(np.r_[3.0, 2.0, -1.0], FAST) == 2 / 8  # 4: itself, and 6
    assert resample.flipped(np.zeros(10), FAST) == 1.0
    assert resample.flipped(-np.ones(50), FAST) == 1.0
    assert resample.flipped(np.ones(50), FAST) == 1 / 1_000
    eighteen = resample.flipped(np.r_[np.ones(13), -np.ones(5)], Settings(resamples=99_999))
    assert eighteen == pytest.approx(float(counts.mcnemar(13, 5)), abs=0.002)


def test_groups_keep_every_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resample, "MOST_GROUPS", 100)
    columns = [normal(1_234, 5, 1), np.ones(1_234)]
    found = resample.grouped(columns, FAST)
    assert [len(column) for column in found] == [100, 100]
    assert [c.sum() for c in found] == pytest.approx([c.sum() for c in columns])
    assert set(found[1]) == {12.0, 13.0}


def test_limits_by_groups_are_those_by_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = normal(3_000, 5, 1), normal(3_000, 4.9, 1, seed=1)
    one = compared(before, after, "0.05", settings=Settings())
    monkeypatch.setattr(resample, "MOST_GROUPS", 500)
    other = compared(before, after, "0.05", settings=Settings())
    assert other.loss == one.loss
    # the limits are 0.06 and 0.04 away from the loss; 500 groups are off by 3% of that
    assert other.low == pytest.approx(one.low, abs=0.008)
    assert other.high == pytest.approx(one.high, abs=0.006)


def test_the_same_seed_gives_the_same_limits_and_another_others() -> None:
    before, after = normal(200, 5, 1), normal(200, 4.9, 1, seed=1)
    found = [
        compared(before, after, "0.05", settings=FAST.model_copy(update={"seed": seed}))
        for seed in (0, 0, 1)
    ]
    assert found[0] == found[1]
    assert found[0].low != found[2].low


def test_risks_that_the_resamples_cannot_tell_are_refused() -> None:
    with pytest.raises(PlanError, match="999 resamples") as caught:
        compared(normal(100, 5, 1), normal(100, 4, 1, seed=1), "0.1",
                 settings=Settings(alarm=1e-4, resamples=999))  # fmt: skip
    assert caught.value.hint == "at least 10000 resamples"


# -- laws -----------------------------------------------------------------------------------------

scores = arrays(
    np.float64, st.integers(FEWEST, 60), elements=st.floats(-100, 100, allow_subnormal=False)
)


@settings(max_examples=40, deadline=None)
@given(scores, st.randoms(use_true_random=False), st.floats(0, 5), st.floats(0, 5))
def test_answers_hold_the_estimate_and_get_no_worse_as_more_is_allowed(
    before: NDArray[np.float64], random: Any, one: float, other: float
) -> None:
    after = before + np.array([random.choice([0.0, -1.0, 0.5, 3.0]) for _ in before])
    less, more = sorted((one, other))
    strict, lenient = (compared(before, after, f"{m:.6f}") for m in (less, more))
    assert ORDER[strict.status] <= ORDER[lenient.status]
    assert strict.low is not None
    assert strict.high is not None
    assert strict.loss is not None
    assert strict.low <= strict.loss + 1e-9
    assert strict.loss <= strict.high + 1e-9
    assert strict.loss == pytest.approx(-(after - before).mean(), abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100))
def test_the_unit_of_a_metric_makes_no_difference_to_a_relative_margin(
    seed: int, factor: float
) -> None:
    before = normal(100, 10, 2, seed)
    after = before - normal(100, 0.2, 0.7, seed + 1)
    one, other = (compared(f * before, f * after, "2%") for f in (1.0, factor))
    assert one.status == other.status
    assert one.low == pytest.approx(other.low, rel=1e-6, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_turning_better_around_turns_the_scores_around(seed: int) -> None:
    before = normal(100, 10, 2, seed)
    after = before - normal(100, 0.2, 0.7, seed + 1)
    one = compared(before, after, "2%")
    other = compared(-before, -after, "2%", better="lower")
    assert (one.status, one.loss, one.low) == (other.status, other.loss, other.low)


# -- how often it is wrong ------------------------------------------------------------------------


def test_equal_models_seldom_fail_and_a_loss_of_the_margin_seldom_passes() -> None:
    rng = np.random.default_rng(0)
    gates, n = 400, 200
    equal, edge = [], []
    for _ in range(gates):
        before = np.where(rng.random(n) < 0.7, 1.0, rng.random(n))
        changed = rng.random(n) < 0.3
        drawn = np.where(rng.random(n) < 0.7, 1.0, rng.random(n))
        other = np.where(changed, drawn, before)
        equal.append(compared(before, other, "0", unit=FRACTION).status)
        edge.append(compared(before, other - 0.02, "0.02", unit=FRACTION).status)
    # of 400 with risks of 1% and 5%: 4 and 20, and hardly ever more than 10 and 35
    assert equal.count("FAIL") <= 10
    assert edge.count("FAIL") <= 10
    assert edge.count("PASS") <= 35
