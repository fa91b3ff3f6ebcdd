"""What a long job tells its caller while it runs: plain values, no terminal."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a job is.

    Attributes
    ----------
    doing : str
        What is being done now: the name of a tensor or of a step.
    done, total : int
        Bytes of the source dealt with, and altogether.
    """

    doing: str
    done: int
    total: int


Listener = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Listen to nothing."""
