"""Paired measuring, by a clock that the contestants themselves move."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptshrink.runtime.timing import LEAST_TURN, MOST_CALLS, Timing, interleaved, total

SECONDS = st.floats(1e-6, 1e3)


class Clock:
    """A clock that stands still but for what is run, and the names of what was run."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ran: list[str] = []

    def __call__(self) -> float:
        return self.now

    def taking(self, name: str, *seconds: float) -> Callable[[], None]:
        """Return a contestant whose calls take these seconds, the last of them for ever after."""
        left = list(seconds)

        def run() -> None:
            self.ran.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


def test_contestants_take_turns_and_turn_about() -> None:
    clock = Clock()
    names = {name: clock.taking(name, 1.0) for name in "abc"}
    interleaved(names, 3, clock=clock)
    warm_up, rounds = clock.ran[:6], clock.ran[6:]
    assert "".join(warm_up) == "aabbcc"
    assert "".join(rounds) == "abccbaabc"


def test_what_happens_only_once_is_not_measured() -> None:
    clock = Clock()
    found = interleaved({"a": clock.taking("a", 50.0, 2.0)}, 4, clock=clock)
    assert found["a"].seconds == (2.0, 2.0, 2.0, 2.0)


def test_seconds_are_those_of_one_call_however_many_a_turn_has() -> None:
    clock = Clock()
    found = interleaved({"a": clock.taking("a", LEAST_TURN / 10)}, 2, clock=clock)
    assert found["a"].median == pytest.approx(LEAST_TURN / 10)
    assert 2 + 2 * 10 <= len(clock.ran) <= 2 + 2 * 11


def test_a_contestant_that_takes_no_time_ends_all_the_same() -> None:
    clock = Clock()
    interleaved({"a": clock.taking("a", 0.0)}, 1, clock=clock)
    assert len(clock.ran) == 2 + MOST_CALLS


def test_what_a_device_still_has_to_do_is_counted() -> None:
    clock = Clock()
    waiting: list[float] = []

    def settle() -> None:
        clock.now += sum(waiting)
        waiting.clear()

    found = interleaved({"a": lambda: waiting.append(3.0)}, 2, settle=settle, clock=clock)
    assert found["a"].seconds == (3.0, 3.0)


def test_each_turn_is_told() -> None:
    clock = Clock()
    told: list[str] = []
    interleaved(
        {"a": clock.taking("a", 1.0), "b": clock.taking("b", 1.0)},
        2,
        after_turn=told.append,
        clock=clock,
    )
    assert told == ["a", "b", "b", "a"]


@given(st.lists(st.tuples(SECONDS, SECONDS), min_size=1, max_size=9), st.floats(0.1, 10.0))
def test_a_ratio_is_taken_within_rounds(rounds: list[tuple[float, float]], times: float) -> None:
    """However slow a round is, a contestant that takes twice as long has the ratio 2."""
    base = Timing(tuple(a for a, _ in rounds))
    slower = Timing(tuple(a * times for a, _ in rounds))
    ratio = slower.over(base)
    assert ratio.median == pytest.approx(times)
    assert ratio.least == pytest.approx(ratio.most)
    other = Timing(tuple(b for _, b in rounds))
    there, back = base.over(other), other.over(base)
    assert there.least <= there.median <= there.most
    assert there.most == pytest.approx(1 / back.least)


def test_rounds_that_are_no_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Timing((1.0, 2.0)).over(Timing((1.0,)))


def test_a_total_goes_round_by_round() -> None:
    assert total([Timing((1.0, 5.0)), Timing((2.0, 1.0))]) == Timing((3.0, 6.0))


def test_real_seconds_are_positive() -> None:
    found = interleaved({"a": lambda: sum(range(1000))}, 3)
    assert len(found["a"].seconds) == 3
    assert min(found["a"].seconds) > 0
