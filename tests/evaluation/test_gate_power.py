"""What is stated before a run: by brute force, and by drawing results."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multinomial, norm

from ckptshrink.errors import PlanError
from ckptshrink.evaluation.gate.counts import decisions
from ckptshrink.evaluation.gate.power import (
    Outlook,
    detectable,
    detectable_normal,
    needed,
    power,
    power_normal,
)
from ckptshrink.evaluation.gate.verdict import Settings

DEFAULT = Settings()


def brute(n: int, worse: float, better: float, margin: float) -> Outlook:
    """Sum over every pair of counts."""
    b, c = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
    inside = b + c <= n
    b, c = b[inside], c[inside]
    p = multinomial.pmf(
        np.stack([b, c, n - b - c], axis=-1), n, [worse, better, 1 - worse - better]
    )
    fails, passes = decisions(b, c, n, margin, DEFAULT)
    return Outlook(float(p[passes].sum()), float(p[fails].sum()), float(p[~passes & ~fails].sum()))


@pytest.mark.parametrize(
    ("n", "loss", "disagreement", "margin"),
    [
        (1, 0.0, 0.5, 0.01),
        (40, 0.3, 0.4, 0.05),
        (150, 0.1, 0.1, 0.01),
        (150, -0.05, 0.2, 0.0),
        (300, 0.0, 0.0, 0.01),
        (300, 0.05, 0.2, 0.01),
        (300, 0.02, 0.3, 0.5),
    ],
)
def test_power_is_the_sum_over_all_counts(
    n: int, loss: float, disagreement: float, margin: float
) -> None:
    found = power(n, loss, disagreement, margin, DEFAULT)
    wanted = brute(n, (disagreement + loss) / 2, (disagreement - loss) / 2, margin)
    assert found.p_fail == pytest.approx(wanted.p_fail, abs=1e-9)
    assert found.p_pass == pytest.approx(wanted.p_pass, abs=1e-9)
    assert found.p_inconclusive == pytest.approx(wanted.p_inconclusive, abs=1e-9)


@given(st.integers(0, 5_000), st.floats(-0.3, 0.3), st.floats(0, 0.5), st.floats(0, 0.1))
def test_the_three_answers_share_out_all_probability(
    n: int, loss: float, disagreement: float, margin: float
) -> None:
    found = power(n, loss, disagreement, margin, DEFAULT)
    shares = (found.p_pass, found.p_fail, found.p_inconclusive)
    assert all(0 <= share <= 1 + 1e-9 for share in shares)
    assert sum(shares) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("n", [500, 1_000, 2_000, 5_000, 10_000])
@pytest.mark.parametrize("disagreement", [0.0, 0.02, 0.05, 0.1, 0.2])
def test_equal_models_fail_in_less_than_1_percent_of_gates(n: int, disagreement: float) -> None:
    for margin in (0.0, 0.01):
        assert power(n, 0.0, disagreement, margin, DEFAULT).p_fail <= 0.01


def test_power_at_ten_thousand_examples_takes_less_than_the_blink_of_an_eye() -> None:
    power(9_999, 0.01, 0.2, 0.01, DEFAULT)  # imports
    started = time.perf_counter()
    power(10_000, 0.01, 0.2, 0.01, DEFAULT)
    assert time.perf_counter() - started < 0.3


@settings(max_examples=30, deadline=None)
@given(st.integers(200, 20_000), st.floats(0, 0.3), st.sampled_from([0.0, 0.005, 0.01]))
def test_what_is_detectable_fails_in_4_of_5_gates(
    n: int, disagreement: float, margin: float
) -> None:
    loss = detectable(n, disagreement, margin, DEFAULT)
    assert loss is not None
    assert loss > margin
    assert power(n, loss, disagreement, margin, DEFAULT).p_fail == pytest.approx(0.8, abs=0.002)


def test_more_examples_show_less() -> None:
    found = [detectable(n, 0.05, 0.01, DEFAULT) or 0 for n in (500, 2_000, 10_000, 150_000)]
    assert found == sorted(found, reverse=True)
    assert found[-1] > 0.01


def test_detectable_is_the_same_by_all_counts_and_by_the_likely_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    every = detectable(3_000, 0.1, 0.01, DEFAULT)
    monkeypatch.setattr("ckptshrink.evaluation.gate.power._MOST_COUNTS", 10)
    assert detectable(3_000, 0.1, 0.01, DEFAULT) == pytest.approx(every, abs=1e-6)


def test_the_smallest_of_shares_are_none() -> None:
    assert power(200, 0.0, 1e-308, 0.01, DEFAULT) == power(200, 0.0, 0.0, 0.01, DEFAULT)
    assert detectable(200, 5e-324, 0.01, DEFAULT) == detectable(200, 0.0, 0.01, DEFAULT)


def test_less_power_than_the_risk_of_an_alarm_is_had_for_nothing() -> None:
    assert detectable(3_000, 0.1, 0.0, DEFAULT, power=0.001) == 0.0


def test_a_handful_of_examples_shows_nothing() -> None:
    assert detectable(0, 0.1, 0.01, DEFAULT) is None
    assert detectable(6, 0.1, 0.01, DEFAULT) is None
    assert detectable(12, 0.1, 0.01, DEFAULT) is not None


@pytest.mark.parametrize(("loss", "share"), [(0.03, "p_fail"), (0.0, "p_pass")])
def test_needed_examples_are_enough_and_hardly_more(loss: float, share: str) -> None:
    n = needed(loss, 0.05, 0.01, DEFAULT)
    assert n is not None
    assert getattr(power(n, loss, 0.05, 0.01, DEFAULT), share) >= 0.8
    assert getattr(power(int(0.97 * n), loss, 0.05, 0.01, DEFAULT), share) < 0.8


def test_no_number_of_examples_tells_a_loss_of_exactly_the_margin() -> None:
    assert needed(0.01, 0.05, 0.01, DEFAULT) is None


@pytest.mark.parametrize(
    "given_", [{"loss": 1.5}, {"disagreement": 5}, {"margin": 1.2}, {"loss": math.nan}]
)
def test_percentage_points_in_place_of_shares_are_refused(given_: dict[str, float]) -> None:
    with pytest.raises(PlanError, match=f"{next(iter(given_))} is a share"):
        power(**{"n": 10, "loss": 0.0, "disagreement": 0.1, "margin": 0.01, **given_},
              settings=DEFAULT)  # fmt: skip


def test_the_normal_approximation_at_known_points() -> None:
    at_margin = power_normal(400, 2.0, 10.0, 2.0, DEFAULT)
    assert at_margin.p_fail == pytest.approx(0.01)
    assert at_margin.p_pass == pytest.approx(0.05)
    loss = detectable_normal(400, 10.0, 2.0, DEFAULT)
    assert loss == pytest.approx(2 + (norm.isf(0.01) + norm.isf(0.2)) * 0.5)
    assert power_normal(400, loss, 10.0, 2.0, DEFAULT).p_fail == pytest.approx(0.8)
    assert power_normal(0, 5.0, 1.0, 2.0, DEFAULT).p_inconclusive == 1
    assert power_normal(10, 5.0, 0.0, 2.0, DEFAULT).p_fail == 1


def test_drawn_results_are_answered_as_often_as_stated() -> None:
    rng = np.random.default_rng(0)
    gates = 20_000
    for n, loss, disagreement in ((500, 0.03, 0.05), (2_000, 0.0, 0.05), (2_000, 0.02, 0.1)):
        shares = [(disagreement + loss) / 2, (disagreement - loss) / 2, 1 - disagreement]
        worse, better, _ = rng.multinomial(n, shares, gates).T
        fails, passes = decisions(worse, better, n, 0.01, DEFAULT)
        stated = power(n, loss, disagreement, 0.01, DEFAULT)
        assert fails.mean() == pytest.approx(stated.p_fail, abs=0.015)
        assert passes.mean() == pytest.approx(stated.p_pass, abs=0.015)
