"""A text as parallel streams, cut into the windows that truncated backpropagation runs over."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

_LEAST: Final = 5
"""Steps of the shortest window but the last; shorter ones teach little and cost as much."""


@dataclass(frozen=True, slots=True)
class Window:
    """A piece of every stream.

    Attributes
    ----------
    tokens, targets : (T, B), int64
        Each target is the word after its token.
    start : int
        Steps of the streams before it.
    """

    tokens: Tensor
    targets: Tensor
    start: int

    @property
    def steps(self) -> int:
        """Length T."""
        return self.tokens.shape[0]


@dataclass(frozen=True, slots=True)
class Streams:
    """A text cut into B pieces of equal length that are read side by side.

    Attributes
    ----------
    tokens : (N, B), int64
        Column b is piece b; what is left over at the end of the text is not used.
    """

    tokens: Tensor

    @classmethod
    def of(cls, text: Tensor, batch: int) -> "Streams":
        """Cut a text (n,) into `batch` pieces.

        Raises
        ------
        ValueError
            The text is too short for two words in each piece.
        """
        length = len(text) // batch
        if length < 2:
            raise ValueError(f"{len(text)} words are too few for {batch} streams")
        return cls(text[: length * batch].view(batch, length).t().contiguous())

    @property
    def batch(self) -> int:
        """Number of streams."""
        return self.tokens.shape[1]

    @property
    def steps(self) -> int:
        """Targets of each stream."""
        return self.tokens.shape[0] - 1

    def windows(
        self, steps: int, generator: torch.Generator | None = None, *, start: int = 0
    ) -> Iterator[Window]:
        """Yield the streams window by window, so that every word but the first is a target once.

        Parameters
        ----------
        steps : int
            Length of a window; with a generator the mean of it.
        generator : torch.Generator, optional
            Draws lengths as awd-lstm-lm does, so that windows begin elsewhere in each epoch: one in
            twenty is half as long, and all differ by a normal deviate of 5 steps.
        start : int
            Steps that were read already.
        """
        while start < self.steps:
            length = steps if generator is None else _length(steps, generator)
            stop = min(start + length, self.steps)
            yield Window(self.tokens[start:stop], self.tokens[start + 1 : stop + 1], start)
            start = stop


def _length(steps: int, generator: torch.Generator) -> int:
    half, deviate = torch.rand((), generator=generator), torch.randn((), generator=generator)
    mean = steps if half < 0.95 else steps / 2
    return max(_LEAST, int(mean + 5 * float(deviate)))
