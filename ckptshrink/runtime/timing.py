"""Paired measuring: contestants take turns in one process, and ratios are taken round by round.

On a shared machine one and the same product took 20 ms now and 30 ms a minute later. Whatever slows
one contestant of a round slows its rivals too, so that a ratio within a round holds still where
seconds don't.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

LEAST_TURN: Final = 0.03
"""Seconds that a turn lasts at least: one step of one sentence takes 0.2 ms, of which a single
call would show the clock and the scheduler."""

MOST_CALLS: Final = 1000
"""Calls in a turn at most."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as long one contestant takes as another.

    Attributes
    ----------
    median, least, most : float
        Of the ratios of all rounds.
    """

    median: float
    least: float
    most: float


@dataclass(frozen=True, slots=True)
class Timing:
    """What a contestant took.

    Attributes
    ----------
    seconds : tuple of float
        Of one call, by round.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median seconds of one call."""
        return statistics.median(self.seconds)

    def over(self, other: "Timing") -> Ratio:
        """Return how many times as long this took as another of the same rounds.

        Examples
        --------
        >>> Timing((4.0, 9.0, 5.0)).over(Timing((2.0, 3.0, 2.0)))
        Ratio(median=2.5, least=2.0, most=3.0)
        """
        ratios = [a / b for a, b in zip(self.seconds, other.seconds, strict=True)]
        return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def total(timings: Sequence[Timing]) -> Timing:
    """Return what several took one after the other, round by round.

    Examples
    --------
    >>> total([Timing((1.0, 2.0)), Timing((0.5, 0.5))])
    Timing(seconds=(1.5, 2.5))
    """
    return Timing(tuple(map(sum, zip(*(timing.seconds for timing in timings), strict=True))))


def interleaved(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    settle: Callable[[], object] = lambda: None,
    after_turn: Callable[[str], object] = lambda name: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Return what each contestant took in each round: A B C, C B A, A B C ...

    Each is called before the first round, so that nothing is measured that happens once. A turn is
    as many calls as make `LEAST_TURN`.

    Parameters
    ----------
    contestants : mapping of str to callable
    rounds : int, at least 1
    settle : callable, optional
        Waits for what a device still has to do; called before the clock is read.
    after_turn : callable, optional
        Takes the contestant's name; called after each turn of each round.
    clock : callable, optional
        Seconds that only grow.
    """

    def turn(run: Callable[[], object], calls: int) -> float:
        settle()
        start = clock()
        for _ in range(calls):
            run()
        settle()
        return (clock() - start) / calls

    calls: dict[str, int] = {}
    for name, run in contestants.items():
        run()  # compiles, packs weights, takes memory from the system
        calls[name] = _calls(turn(run, 1))
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        # turned about, so that nobody always runs in the caches that one rival leaves behind
        order = list(contestants) if number % 2 == 0 else list(contestants)[::-1]
        for name in order:
            seconds[name].append(turn(contestants[name], calls[name]))
            after_turn(name)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def _calls(seconds: float) -> int:
    if seconds >= LEAST_TURN:
        return 1
    return min(MOST_CALLS, math.ceil(LEAST_TURN / max(seconds, LEAST_TURN / MOST_CALLS)))
