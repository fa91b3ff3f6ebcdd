"""Lines of progress where there is no terminal: few, and none for a short job."""

import pytest

from ckptshrink.events import Progress
from ckptshrink_cli.progress import SECONDS, Lines, Nested


def test_a_line_at_most_every_ten_seconds() -> None:
    said: list[str] = []
    now = [0.0]
    lines = Lines(said.append, clock=lambda: now[0])
    for second in range(36):
        now[0] = float(second)
        lines(Progress(f"t{second}", second, 40))
    assert SECONDS == 10
    assert said == [" 25% t10", " 50% t20", " 75% t30"]


def test_nothing_to_do_is_all_done() -> None:
    said: list[str] = []
    now = [0.0]
    lines = Lines(said.append, clock=lambda: now[0])
    now[0] = 11.0
    lines(Progress("end", 0, 0))
    assert said == ["100% end"]


def test_progress_inside_a_job_is_a_share_of_it() -> None:
    told: list[Progress] = []
    nested = Nested(told.append)
    nested.jobs(Progress("one", 0, 2))
    nested.inside(Progress("3 of 4 words", 3, 4))
    nested.jobs(Progress("two", 1, 2))
    nested.inside(Progress("nothing", 0, 0))
    shares = [p.done / p.total for p in told]
    assert shares == pytest.approx([0, 0.375, 0.5, 0.5])
    assert told[1].doing == "one: 3 of 4 words"
