"""The tests of right and wrong: published values, and what must hold for any counts."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from ckptshrink.evaluation.gate.counts import ALIKE, decisions, limits, mcnemar, score
from ckptshrink.evaluation.gate.verdict import Settings

DEFAULT = Settings()
TWO_SIDED_95 = Settings(alpha=0.025, alarm=0.025)

margins = st.floats(0, 1, allow_nan=False)


@st.composite
def counted(draw: st.DrawFn) -> tuple[int, int, int]:
    """Draw how many of n examples got worse and better."""
    n = draw(st.integers(1, 3_000))
    worse = draw(st.integers(0, n))
    return worse, draw(st.integers(0, n - worse)), n


def answer(worse: int, better: int, n: int, margin: float, settings: Settings = DEFAULT) -> str:
    fails, passes = decisions(worse, better, n, margin, settings)
    assert not (fails and passes)
    return "FAIL" if fails else "PASS" if passes else "INCONCLUSIVE"


# -- known values ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("worse", "better", "n", "low", "high"),
    [
        # Fagerland, Lydersen and Laake (2014), Tango's interval of their two examples
        (1, 7, 21, -0.517, -0.026),
        (6, 16, 161, -0.1240, -0.0054),
    ],
)
def test_limits_are_those_published(
    worse: int, better: int, n: int, low: float, high: float
) -> None:
    found = limits(worse, better, n, TWO_SIDED_95)
    digits = 3 if n == 21 else 4
    assert (round(found[0], digits), round(found[1], digits)) == (low, high)


@pytest.mark.parametrize(
    ("worse", "better", "p"),
    [(0, 0, 1.0), (0, 1, 1.0), (1, 0, 0.5), (7, 0, 1 / 128), (8, 2, 56 / 1024), (7, 1, 9 / 256)],
)
def test_mcnemar_is_exact(worse: int, better: int, p: float) -> None:
    assert float(mcnemar(worse, better)) == pytest.approx(p, rel=1e-12)


def test_score_at_a_margin_of_zero_is_mcnemars_statistic() -> None:
    assert float(score(30, 14, 500, 0.0)) == pytest.approx(16 / math.sqrt(44), rel=1e-12)


@given(counted(), st.floats(-0.99, 0.99))
def test_score_is_that_of_the_most_likely_shares(
    counts: tuple[int, int, int], margin: float
) -> None:
    worse, better, n = counts
    same = n - worse - better

    def slope(q: float) -> float:
        """Derivative of the log-likelihood in the share of better, if the loss is the margin."""
        found = worse / (q + margin) if worse else 0.0
        found += better / q if better else 0.0
        return found - (2 * same / (1 - 2 * q - margin) if same else 0.0)

    least, most = max(0.0, -margin), (1 - margin) / 2
    edge = 1e-13
    if most - least < 1e-6:
        return
    ends = slope(least + edge), slope(most - edge)
    if ends[0] <= 0:
        q = least
    elif ends[1] >= 0:
        q = most
    else:
        q = brentq(slope, least + edge, most - edge, xtol=1e-15)
    variance = n * (2 * q + margin - margin**2)
    if variance < 1e-7 * n:
        return
    wanted = (worse - better - n * margin) / math.sqrt(variance)
    assert float(score(worse, better, n, margin)) == pytest.approx(wanted, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("n", [1, 2, 20, 500, 100_000])
def test_limits_where_nothing_changed(n: int) -> None:
    low, high = limits(0, 0, n, DEFAULT)
    z_low, z_high = norm.isf(DEFAULT.alarm) ** 2, norm.isf(DEFAULT.alpha) ** 2
    assert low == pytest.approx(-z_low / (n + z_low), rel=1e-6)
    assert high == pytest.approx(z_high / (n + z_high), rel=1e-6)


@pytest.mark.parametrize("n", [1, 2, 7, 50, 1_000])
def test_limits_where_everything_changed(n: int) -> None:
    low, high = limits(n, 0, n, DEFAULT)
    assert -1 <= low < 1
    assert high == 1
    assert limits(0, n, n, DEFAULT)[0] == -1


# -- laws -----------------------------------------------------------------------------------------


@given(counted(), st.floats(-1, 1))
def test_swapping_the_models_turns_the_sign(counts: tuple[int, int, int], margin: float) -> None:
    worse, better, n = counts
    one, other = score(worse, better, n, margin), score(better, worse, n, -margin)
    assert float(one) == -float(other)


@given(counted(), margins, margins)
def test_score_falls_as_the_margin_grows(
    counts: tuple[int, int, int], one: float, other: float
) -> None:
    less, more = sorted((one, other))
    assert float(score(*counts, less)) >= float(score(*counts, more)) - 1e-9


@given(counted())
def test_limits_hold_the_estimate_and_are_where_the_test_turns(
    counts: tuple[int, int, int],
) -> None:
    worse, better, n = counts
    low, high = limits(worse, better, n, DEFAULT)
    loss = (worse - better) / n
    assert -1 <= low <= loss <= high <= 1
    if low > -1:
        assert float(score(*counts, low)) == pytest.approx(norm.isf(DEFAULT.alarm), abs=1e-4)
    if high < 1:
        assert float(score(*counts, high)) == pytest.approx(-norm.isf(DEFAULT.alpha), abs=1e-4)


@given(counted())
def test_swapping_the_models_mirrors_the_limits(counts: tuple[int, int, int]) -> None:
    worse, better, n = counts
    low, high = limits(worse, better, n, TWO_SIDED_95)
    mirrored = limits(better, worse, n, TWO_SIDED_95)
    assert mirrored == (pytest.approx(-high, abs=1e-9), pytest.approx(-low, abs=1e-9))


ORDER = {"FAIL": 0, "INCONCLUSIVE": 1, "PASS": 2}


@given(counted(), margins, margins)
def test_who_allows_more_never_hears_worse(
    counts: tuple[int, int, int], one: float, other: float
) -> None:
    less, more = sorted((one, other))
    assert ORDER[answer(*counts, less)] <= ORDER[answer(*counts, more)]


@given(counted(), margins)
def test_one_more_that_got_worse_never_helps(counts: tuple[int, int, int], margin: float) -> None:
    worse, better, n = counts
    if worse + better == n:
        return
    assert ORDER[answer(worse + 1, better, n, margin)] <= ORDER[answer(*counts, margin)]


@given(counted(), margins)
def test_an_answer_is_the_same_alone_and_among_others(
    counts: tuple[int, int, int], margin: float
) -> None:
    worse, better, n = counts
    arrays = np.array([worse, 0, n]), np.array([better, 0, 0])
    fails, passes = decisions(*arrays, n, margin, DEFAULT)
    alone = decisions(worse, better, n, margin, DEFAULT)
    assert (bool(fails[0]), bool(passes[0])) == (bool(alone[0]), bool(alone[1]))


# -- what users ask -------------------------------------------------------------------------------


def test_results_that_are_all_alike_pass_a_margin_of_zero_once_there_are_enough() -> None:
    enough = math.ceil(norm.isf(DEFAULT.alpha) ** 2 * (1 - ALIKE) / ALIKE)
    assert answer(0, 0, enough, 0.0) == "PASS"
    assert answer(0, 0, enough - 1, 0.0) == "INCONCLUSIVE"
    assert answer(0, 0, 1, 0.0) == "INCONCLUSIVE"


def test_a_margin_of_zero_passes_only_what_is_shown_to_be_better_once_anything_changed() -> None:
    assert answer(5, 5, 2_000, 0.0) == "INCONCLUSIVE"
    assert answer(1, 0, 2_000, 0.0) == "INCONCLUSIVE"
    assert answer(5, 25, 2_000, 0.0) == "PASS"
    assert answer(25, 5, 2_000, 0.0) == "FAIL"


def test_six_examples_that_got_worse_are_too_few_to_fail() -> None:
    assert answer(6, 0, 10, 0.0) == "INCONCLUSIVE"  # 1 / 64
    assert answer(7, 0, 10, 0.0) == "FAIL"  # 1 / 128


def test_a_margin_of_everything_passes_everything() -> None:
    assert answer(99, 1, 100, 1.0) == "PASS"
    assert answer(0, 0, 1, 1.0) == "PASS"
