"""Multiple-choice knapsack: of every class take one option, least summed loss within a summed cost.

The linear relaxation gives a bound and a price of cost. Priced so, most options lie further from
their class's best than the best solution known lies from the bound, and can't be in a better one.
What is left is searched a class at a time: of the partial choices, dominated ones are dropped, and
those that the relaxation of the remaining classes proves to be no better than the best known.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

WIDTHS: Final = (64, 1024, 16384)
"""Partial choices kept after each class, search by search; each starts from the last one's best."""

EXPANSIONS: Final = 6_000_000
"""Partial choices made in one search, at most: about a second."""

LONG_STEP: Final = 8
"""Options that a step along a hull skips at least, to be called long."""

ROUNDING: Final = 1e-13
"""Part of the largest summed loss below which two losses count as equal."""


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a class of which none is better than another: costs rise, losses fall."""

    costs: Floats
    losses: Floats


@dataclass(frozen=True, slots=True)
class Solution:
    """Options taken, by class, and a proven bound of the summed loss.

    Attributes
    ----------
    picks : tuple of int
    bound : float
    exact : bool
        Whether nothing better exists, to rounding.
    """

    picks: tuple[int, ...]
    bound: float
    exact: bool


def solve(classes: Sequence[Options], budget: float) -> Solution:
    """Return the best options found for a budget that the cheapest options meet.

    Source
    ------
    Sinha and Zoltners (1979), Operations Research 27, 503-515, for the relaxation; Pisinger (1995),
    European Journal of Operational Research 83, 394-410, for reducing classes and dominance.
    """
    relaxed = _relax(classes, budget)
    picks, bound = _rounded(classes, relaxed, budget), relaxed.bound
    unit = ROUNDING * _loss(classes, [0] * len(classes))
    for width in WIDTHS:
        best = _loss(classes, picks)
        # a search looks for what is better by a unit, so that its bound may be a unit too low
        if best - bound <= 2 * unit:
            break
        picks, proven = _search(classes, relaxed, picks, best - unit, width)
        bound = max(bound, proven)
    best = _loss(classes, picks)
    return Solution(tuple(picks), min(bound, best), exact=best - bound <= 2 * unit)


@dataclass(frozen=True, slots=True)
class _Relaxation:
    """The linear relaxation's solution.

    Attributes
    ----------
    picks : list of int
        Its whole options; the one class that it splits has the cheaper of the two.
    bound : float
    price : float
        Loss that one unit of cost more would take away.
    slack : float
        Cost that the whole options leave.
    split, target : int
        The class that is split, and the dearer of its two options.
    """

    picks: list[int]
    bound: float
    price: float
    slack: float
    split: int
    target: int


def _loss(classes: Sequence[Options], picks: Sequence[int]) -> float:
    return math.fsum(c.losses[j] for c, j in zip(classes, picks, strict=True))


def _slack(classes: Sequence[Options], picks: Sequence[int], budget: float) -> float:
    return budget - math.fsum(c.costs[j] for c, j in zip(classes, picks, strict=True))


def _hull(x: Floats, y: Floats) -> Ints:
    """Return the indices of the lower convex hull of points with rising x and falling y."""
    hull: list[int] = []
    xs, ys = x.tolist(), y.tolist()
    for i, (at, value) in enumerate(zip(xs, ys, strict=True)):
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            if (ys[b] - ys[a]) * (at - xs[a]) < (value - ys[a]) * (xs[b] - xs[a]):
                break
            hull.pop()
        hull.append(i)
    return np.asarray(hull, dtype=np.intp)


def _relax(classes: Sequence[Options], budget: float) -> _Relaxation:
    """Solve the linear relaxation: buy the steps along the hulls, best value first."""
    hulls = [_hull(c.costs, c.losses) for c in classes]
    pairs = list(zip(classes, hulls, strict=True))
    gain = np.concatenate([-np.diff(c.losses[h]) / np.diff(c.costs[h]) for c, h in pairs])
    owner = np.repeat(np.arange(len(hulls)), [len(h) - 1 for h in hulls])
    target = np.concatenate([h[1:] for h in hulls])
    picks = [0] * len(classes)
    slack, price, split = _slack(classes, picks, budget), 0.0, (0, 0)
    # gains fall along a hull, and the sort is stable: the steps of a class stay in order
    for step in np.argsort(-gain, kind="stable").tolist():
        i, j = int(owner[step]), int(target[step])
        extra = float(classes[i].costs[j] - classes[i].costs[picks[i]])
        if extra > slack:
            price, split = float(gain[step]), (i, j)
            break
        picks[i] = j
        slack -= extra
    return _Relaxation(picks, _loss(classes, picks) - price * slack, price, slack, *split)


def _rounded(classes: Sequence[Options], relaxed: _Relaxation, budget: float) -> list[int]:
    """Return whole options near the relaxation's.

    Where the class that is split has a long step before it (to staying dense, say), the rest of the
    budget does little good in that class alone. So the step is taken, or not, and what is lacking
    or left is spread over all by relaxing again, without the long steps of the others.
    """
    found = [_filled(classes, relaxed.picks, budget)]
    stops = [_before_long_step(c, j) for c, j in zip(classes, relaxed.picks, strict=True)]
    for taken in (False, True):
        starts = [0] * len(classes)
        if taken:
            starts[relaxed.split] = relaxed.target
            stops[relaxed.split] = len(classes[relaxed.split].costs)
        parts = [
            Options(c.costs[start:stop], c.losses[start:stop])
            for c, start, stop in zip(classes, starts, stops, strict=True)
        ]
        tops = [len(part.costs) - 1 for part in parts]
        if _slack(parts, [0] * len(parts), budget) >= 0 > _slack(parts, tops, budget):
            inner = _relax(parts, budget).picks
            whole = [start + j for start, j in zip(starts, inner, strict=True)]
            found.append(_filled(classes, whole, budget))
    return min(found, key=lambda picks: _loss(classes, picks))


def _before_long_step(c: Options, j: int) -> int:
    """Return how many options there are before the first long step of the hull after option j."""
    hull = j + _hull(c.costs[j:], c.losses[j:])
    long = np.flatnonzero(np.diff(hull) > LONG_STEP)
    return int(hull[long[0] + 1]) if len(long) else len(c.costs)


def _filled(classes: Sequence[Options], picks: Sequence[int], budget: float) -> list[int]:
    """Return `picks` with the rest of the budget spent, each time on the largest gain in reach."""
    picks = list(picks)
    while True:
        slack = _slack(classes, picks, budget)
        gains, reached = [], []
        for c, j in zip(classes, picks, strict=True):
            reach = int(np.searchsorted(c.costs, c.costs[j] + slack, side="right")) - 1
            gains.append(float(c.losses[j] - c.losses[reach]))
            reached.append(reach)
        best = int(np.argmax(gains))
        if gains[best] <= 0:
            return picks
        picks[best] = reached[best]


@dataclass(frozen=True, slots=True)
class _Stage:
    """A class in a search: the options worth a look, relative to the relaxation's whole option.

    Attributes
    ----------
    owner : int
        Which class.
    options : (k,) of int
    cost, loss : (k,)
    """

    owner: int
    options: Ints
    cost: Floats
    loss: Floats


@dataclass(frozen=True, slots=True)
class _Rest:
    """The relaxation of the classes after a stage: least loss by cost, between the points given."""

    cost: Floats
    loss: Floats

    def least(self, slack: Floats) -> Floats:
        """Return the least loss at a slack; infinite where even the cheapest options exceed it."""
        return np.interp(slack, self.cost, self.loss, left=np.inf)


def _search(
    classes: Sequence[Options],
    relaxed: _Relaxation,
    picks: list[int],
    limit: float,
    width: int,
) -> tuple[list[int], float]:
    """Look for options of less loss than `limit`, keeping `width` partial choices a class.

    Returns
    -------
    (picks, bound)
        The best options, those given if there are none; and what no others can go below.
    """
    whole = _loss(classes, relaxed.picks)
    stages = _stages(classes, relaxed, limit - relaxed.bound)
    rests = _rests(stages)
    n_options = max(1, sum(len(stage.options) for stage in stages))
    width = min(width, max(1, EXPANSIONS // n_options))
    cost, loss = np.zeros(1), np.zeros(1)
    bound = limit
    trail: list[tuple[Ints, Ints]] = []
    for stage, rest in zip(stages, rests, strict=True):
        made_cost = np.add.outer(cost, stage.cost).ravel()
        made_loss = np.add.outer(loss, stage.loss).ravel()
        least = whole + made_loss + rest.least(relaxed.slack - made_cost)
        worth = np.flatnonzero(least < limit)
        worth = worth[undominated(made_cost[worth], made_loss[worth])]
        if len(worth) > width:
            order = np.argsort(least[worth], kind="stable")
            bound = min(bound, float(least[worth[order[width]]]))
            worth = np.sort(worth[order[:width]])
        if not len(worth):
            return picks, bound
        cost, loss = made_cost[worth], made_loss[worth]
        trail.append(np.divmod(worth, len(stage.options)))
    found = list(relaxed.picks)
    at = int(np.argmin(loss))
    for stage, (parents, options) in zip(reversed(stages), reversed(trail), strict=True):
        found[stage.owner] = int(stage.options[options[at]])
        at = int(parents[at])
    return found, min(bound, _loss(classes, found))


def _stages(classes: Sequence[Options], relaxed: _Relaxation, gap: float) -> list[_Stage]:
    """Return the classes by falling step size, with the options that can lie within the gap."""
    stages = []
    for i, (c, j) in enumerate(zip(classes, relaxed.picks, strict=True)):
        priced = c.losses + relaxed.price * c.costs
        options = np.flatnonzero(priced - priced.min() < gap)
        stages.append(
            _Stage(i, options, c.costs[options] - c.costs[j], c.losses[options] - c.losses[j])
        )
    # small steps last: they use up what large ones leave
    return sorted(stages, key=lambda s: -float(np.ptp(s.cost)) / max(1, len(s.cost) - 1))


def _rests(stages: Sequence[_Stage]) -> list[_Rest]:
    """Return, for every stage, the relaxation of those after it."""
    steps = []
    for i, stage in enumerate(stages):
        hull = _hull(stage.cost, stage.loss)
        cost, loss = np.diff(stage.cost[hull]), np.diff(stage.loss[hull])
        steps.append(np.stack([np.full(len(cost), float(i)), cost, loss]))
    owner, cost, loss = np.concatenate(steps, axis=1)
    order = np.argsort(loss / cost, kind="stable")
    owner, cost, loss = owner[order], cost[order], loss[order]
    rests = []
    for i in range(len(stages)):
        after = owner > i
        start_cost = math.fsum(stage.cost[0] for stage in stages[i + 1 :])
        start_loss = math.fsum(stage.loss[0] for stage in stages[i + 1 :])
        rests.append(
            _Rest(
                start_cost + np.concatenate(([0.0], np.cumsum(cost[after]))),
                start_loss + np.concatenate(([0.0], np.cumsum(loss[after]))),
            )
        )
    return rests


def undominated(cost: Floats, loss: Floats) -> Ints:
    """Return the indices, by cost, of points that no point is as good as in both."""
    order = np.lexsort((loss, cost))
    before = np.minimum.accumulate(loss[order])
    return order[np.concatenate(([True], loss[order][1:] < before[:-1]))[: len(order)]]
