"""The shared budget: never over it, never worse than any other choice, and honest where cut off."""

import itertools
import math
import time
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptshrink.errors import PlanError
from ckptshrink.planning import knapsack
from ckptshrink.planning.allocate import Allocation, Curve, allocate


def ranks_and_dense(name: str, m: int, n: int, S: np.ndarray, itemsize: int = 4) -> Curve:
    """Return the options of an (m, n) matrix: ranks 1 to break-even, and staying dense."""
    tail = np.concatenate((np.cumsum(np.sort(S**2))[::-1], [0.0]))  # of rank 0, 1, ...
    r = np.arange(1, min(len(S), (m * n - 1) // (m + n)) + 1)
    costs = np.concatenate((r * (m + n), [m * n])) * itemsize
    return Curve(name, costs.astype(np.float64), np.concatenate((tail[r], [0.0])))


def decaying(seed: int, k: int, power: float = 0.5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.arange(1, k + 1) ** -power * rng.uniform(0.8, 1.2, k) * rng.uniform(0.5, 2)


@cache
def gaussian(k: int) -> np.ndarray:
    return np.linalg.svd(np.random.default_rng(1).standard_normal((2 * k, k)), compute_uv=False)


def least_of_all(curves: list[Curve], budget: float) -> float | None:
    """Return the least summed error by trying every choice."""
    best = None
    for choice in itertools.product(*(range(len(c.costs)) for c in curves)):
        pairs = list(zip(curves, choice, strict=True))
        if math.fsum(c.costs[j] for c, j in pairs) <= budget:
            error = math.fsum(c.errors[j] for c, j in pairs)
            best = error if best is None else min(best, error)
    return best


def check(curves: list[Curve], budget: float, found: Allocation) -> None:
    """Check what must hold of every allocation, proven least or not."""
    pairs = list(zip(curves, found.choice, strict=True))
    assert found.cost == math.fsum(c.costs[j] for c, j in pairs) <= budget
    assert found.error == math.fsum(max(c.errors[j], 0.0) for c, j in pairs)
    assert found.bound <= found.error
    if found.error == found.bound:
        assert found.gap == 0
    else:
        assert found.gap == pytest.approx(1 - found.bound / found.error, abs=1e-12)


ANY = st.lists(
    st.tuples(st.integers(0, 30), st.one_of(st.integers(0, 20), st.floats(0, 20))),
    min_size=1,
    max_size=5,
)
CONVEX = st.builds(
    lambda m, n, S: list(
        zip(*(np.asarray(x).tolist() for x in _options(ranks_and_dense("", m, n, S))), strict=True)
    ),
    st.integers(2, 7),
    st.integers(2, 7),
    st.lists(st.floats(0.1, 3), min_size=1, max_size=4).map(np.asarray),
)


def _options(curve: Curve) -> tuple[object, object]:
    return curve.costs, curve.errors


@given(
    classes=st.lists(st.one_of(ANY, CONVEX), min_size=1, max_size=5),
    share=st.floats(0, 1),
    nudge=st.sampled_from([0, 0, -1, 1]),
)
@settings(max_examples=500, deadline=None)
def test_no_choice_is_better(
    classes: list[list[tuple[float, float]]], share: float, nudge: int
) -> None:
    curves = [
        Curve(str(i), [c for c, _ in options], [e for _, e in options])
        for i, options in enumerate(classes)
    ]
    low = sum(min(curve.costs) for curve in curves)
    high = sum(max(curve.costs) for curve in curves)
    budget = round(low + share * (high - low)) + nudge
    best = least_of_all(curves, budget)
    if best is None:
        with pytest.raises(PlanError, match=f"{low:,.0f}"):
            allocate(curves, budget)
        return
    found = allocate(curves, budget)
    check(curves, budget, found)
    assert found.error == pytest.approx(best, rel=1e-12, abs=1e-11)
    assert found.gap == 0


def least_by_table(curves: list[Curve], budget: int) -> float:
    """Return the least summed error, from a table of the least at every whole cost."""
    table = np.zeros(budget + 1)
    for curve in curves:
        later = np.full(budget + 1, np.inf)
        for cost, error in zip(curve.costs, curve.errors, strict=True):
            at = int(cost)
            if at <= budget:
                later[at:] = np.minimum(later[at:], table[: budget + 1 - at] + error)
        table = later
    return float(table[budget])


@pytest.mark.parametrize("seed", range(300))
def test_hard_knapsacks_against_a_table(seed: int) -> None:
    """Gains nearly in proportion to costs, so that the relaxation decides little."""
    rng = np.random.default_rng(seed)
    curves = []
    for i in range(int(rng.integers(2, 40))):
        costs = np.sort(rng.integers(0, 60, rng.integers(1, 8)))
        errors = 60_000 - 1000 * costs + rng.integers(0, 4000, len(costs))
        curves.append(Curve(str(i), costs.astype(float), errors.astype(float)))
    low, high = (sum(int(f(c.costs)) for c in curves) for f in (np.min, np.max))
    budget = int(rng.integers(low, high + 1))
    found = allocate(curves, budget)
    check(curves, budget, found)
    assert found.error == least_by_table(curves, budget)
    assert found.gap == 0


@pytest.mark.parametrize("width", [1, 2])
@given(
    classes=st.lists(st.one_of(ANY, CONVEX), min_size=2, max_size=5),
    share=st.floats(0, 1),
)
@settings(max_examples=150, deadline=None)
def test_a_search_that_is_cut_off_tells_a_true_bound(
    width: int, classes: list[list[tuple[float, float]]], share: float
) -> None:
    curves = [
        Curve(str(i), [c for c, _ in options], [e for _, e in options])
        for i, options in enumerate(classes)
    ]
    low = sum(min(curve.costs) for curve in curves)
    budget = low + share * (sum(max(curve.costs) for curve in curves) - low)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knapsack, "WIDTHS", (width,))
        found = allocate(curves, budget)
    check(curves, budget, found)
    best = least_of_all(curves, budget)
    assert best is not None
    assert found.bound <= best + 1e-11
    assert found.error >= best - 1e-11
    if found.gap == 0:
        assert found.error == pytest.approx(best, rel=1e-12, abs=1e-11)


def test_the_option_off_the_hull_is_taken_where_it_fits() -> None:
    # between 1 and 10 no mixture is possible: 4 lies above the line and is still the best
    curve = Curve("W", [1, 4, 10], [9.0, 8.0, 0.0])
    assert allocate([curve], 9).choice == (1,)
    assert allocate([curve], 10).choice == (2,)


def test_a_budget_hit_to_the_byte() -> None:
    curves = [ranks_and_dense(str(i), 40, 30, decaying(i, 30)) for i in range(4)]
    ranks = (3, 5, 7, 2)
    exact = sum(float(c.costs[r - 1]) for c, r in zip(curves, ranks, strict=True))
    at, under = allocate(curves, exact), allocate(curves, exact - 1)
    assert at.cost == exact
    assert under.cost <= exact - 280 < exact - 1
    assert under.error > at.error


def test_everything_dense_where_it_fits() -> None:
    curves = [ranks_and_dense(str(i), 40, 30, decaying(i, 30)) for i in range(4)]
    dense = 4 * 40 * 30 * 4
    found = allocate(curves, dense)
    assert found.choice == tuple(len(c.costs) - 1 for c in curves)
    assert (found.cost, found.error, found.gap) == (dense, 0, 0)
    assert allocate(curves, dense - 1).error > 0


def test_the_least_that_can_be_met() -> None:
    curves = [ranks_and_dense(str(i), 40, 30, decaying(i, 30)) for i in range(3)]
    assert allocate(curves, 840).choice == (0, 0, 0)
    with pytest.raises(PlanError, match="840") as caught:
        allocate(curves, 839)
    assert "840" in str(caught.value.hint)
    for hopeless in (-1.0, -math.inf, math.nan):
        with pytest.raises(PlanError):
            allocate(curves, hopeless)
    assert allocate(curves, math.inf).error == 0


def test_no_matrices() -> None:
    assert allocate([], 0) == Allocation((), 0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("costs", "errors"),
    [
        ([], []),
        ([1, 2], [1]),
        ([[1]], [[1]]),
        ([1, math.nan], [1, 0]),
        ([1, 2], [math.inf, 0]),
        ([-1, 2], [1, 0]),
        ([1, 2], [1, -1]),
    ],
)
def test_faulty_curves_are_named(costs: list[float], errors: list[float]) -> None:
    good = Curve("good", [1], [1])
    with pytest.raises(PlanError) as caught:
        allocate([good, Curve("lstm.W", costs, errors)], 100)
    assert caught.value.tensor == "lstm.W"


def test_a_tail_just_below_zero_is_zero() -> None:
    found = allocate([Curve("W", [1, 2, 3], [5.0, 1.0, -1e-12])], 3)
    assert (found.choice, found.error) == ((2,), 0.0)


def test_of_equal_options_the_first_is_taken() -> None:
    curve = Curve("W", [3, 1, 1, 3], [1.0, 4.0, 4.0, 1.0])
    assert allocate([curve], 2).choice == (1,)
    assert allocate([curve], 3).choice == (0,)


def test_the_order_of_matrices_does_not_matter() -> None:
    curves = [ranks_and_dense(str(i), 40 + i, 30, decaying(i, 30)) for i in range(9)]
    one = allocate(curves, 20_000)
    other = allocate(curves[::-1], 20_000)
    assert one.error == pytest.approx(other.error, rel=1e-12)
    assert allocate(curves, 20_000) == one


ELMO = [(16_384, 512)] * 8 + [(4096, 512)] * 4
AWD = [(10_000, 400), (4600, 400), *[(4600, 1150)] * 3, (1600, 1150), (1600, 400)]
BERT = [(768, 768), (768, 768), (768, 768), (768, 768), (3072, 768), (768, 3072)] * 12
SQUARE = [(1600, 1600)] * 72


@pytest.mark.parametrize("share", [0.1, 0.4, 0.7, 0.9])
@pytest.mark.parametrize("spectrum", ["decaying", "gaussian"])
@pytest.mark.parametrize(
    "shapes", [ELMO, AWD, BERT, SQUARE], ids=["ELMo", "AWD-LSTM", "BERT", "72 square"]
)
def test_real_shapes_are_solved_in_a_second(
    shapes: list[tuple[int, int]], spectrum: str, share: float
) -> None:
    noise = {k: gaussian(k) if spectrum == "gaussian" else None for k in {min(s) for s in shapes}}
    curves = []
    for i, (m, n) in enumerate(shapes):
        S = noise[min(m, n)]
        curves.append(ranks_and_dense(str(i), m, n, decaying(i, min(m, n)) if S is None else S))
    budget = share * sum(4 * m * n for m, n in shapes)
    start = time.perf_counter()
    found = allocate(curves, budget)
    assert time.perf_counter() - start < 3  # measured: 0.5 s at worst
    check(curves, budget, found)
    assert found.gap < 1e-3  # 2.6e-4 where 72 spectra are the very same, 0 otherwise


def test_300_matrices_of_300_shapes() -> None:
    rng = np.random.default_rng(3)
    curves = [
        ranks_and_dense(str(i), int(rng.integers(800, 4000)), 800, decaying(i, 800))
        for i in range(300)
    ]
    budget = 0.4 * sum(float(c.costs[-1]) for c in curves)
    start = time.perf_counter()
    found = allocate(curves, budget)
    assert time.perf_counter() - start < 10  # measured: 0.3 s
    check(curves, budget, found)
    assert found.gap < 1e-6


def test_what_is_too_hard_is_cut_off_and_says_so() -> None:
    # flat spectra: no rank is worth more than another, and which matrices stay dense is open
    curves = [ranks_and_dense(str(i), 3200, 800, np.ones(800)) for i in range(72)]
    budget = 0.5 * sum(float(c.costs[-1]) for c in curves)
    start = time.perf_counter()
    found = allocate(curves, budget)
    assert time.perf_counter() - start < 10  # measured: 0.4 s
    check(curves, budget, found)
    assert 0 < found.gap < 0.05
