"""ELMo's embedding of a word by its characters: convolutions, highways and a projection."""

from collections.abc import Callable, Iterable
from typing import Final

import torch
from torch import Tensor, nn

ACTIVATIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {"relu": torch.relu, "tanh": torch.tanh}
"""By their names in options.json."""

_WORDS_AT_ONCE: Final = 1024
"""Words a convolution, which bounds the memory: the published model's widest filters alone make
180 kB a word of 50 characters."""

_WORDS_AT_ONCE_ON_CPU: Final = 32
"""On a CPU a convolution's output is then still in the cache when its maximum is taken: 202 words
of 50 characters took 31 ms so, and 77 ms all at once."""


class Highway(nn.Module):
    """``g * relu(transform(x)) + (1 - g) * x`` with ``g = sigmoid(carry(x))``, as bilm-tf has it.

    Parameters
    ----------
    carry, transform : nn.Module
        Linear layers from F to F.
    """

    def __init__(self, carry: nn.Module, transform: nn.Module) -> None:
        super().__init__()
        self.carry = carry
        self.transform = transform

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., F) for x (..., F)."""
        return torch.lerp(x, torch.relu(self.transform(x)), torch.sigmoid(self.carry(x)))


class CharacterCNN(nn.Module):
    """Embeds words by their characters.

    Each distinct word of a call is computed once, and padding that is common to all words is left
    out as far as it changes no maximum, so that outputs are those of the plain computation.

    Parameters
    ----------
    embedding : nn.Module
        From ids to d.
    convolutions : iterable of nn.Conv1d
        From d to as many filters each; F in all.
    activation : str
        A key of `ACTIVATIONS`, applied to each filter's maximum over the word.
    highways : iterable of Highway
    projection : nn.Module or None
        From F to P; None where P is F.
    """

    def __init__(
        self,
        embedding: nn.Module,
        convolutions: Iterable[nn.Conv1d],
        activation: str,
        highways: Iterable[Highway],
        projection: nn.Module | None,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.convolutions = nn.ModuleList(convolutions)
        self.activation = activation
        self.highways = nn.ModuleList(highways)
        self.projection = projection
        self._widest = max(c.kernel_size[0] for c in self._convolutions())

    def forward(self, ids: Tensor) -> Tensor:
        """Return (N, P) for words as character ids (N, C)."""
        words, places = torch.unique(ids, dim=0, return_inverse=True)
        at_once = _WORDS_AT_ONCE_ON_CPU if ids.device.type == "cpu" else _WORDS_AT_ONCE
        x = torch.cat([self._maxima(part) for part in torch.split(self._trimmed(words), at_once)])
        x = ACTIVATIONS[self.activation](x)  # (words, F)
        for highway in self.highways:
            x = highway(x)
        if self.projection is not None:
            x = self.projection(x)
        return x.index_select(0, places)

    def _convolutions(self) -> Iterable[nn.Conv1d]:
        return self.convolutions  # type: ignore[return-value]

    def _trimmed(self, words: Tensor) -> Tensor:
        """Leave out the end where every window sees what the window before it saw, in each word."""
        differs = (words != words[:, -1:]).any(0).nonzero()
        inner = int(differs[-1]) + 1 if len(differs) else 0
        return words[:, : inner + self._widest]

    def _maxima(self, words: Tensor) -> Tensor:
        x = self.embedding(words).transpose(1, 2)  # (words, d, C)
        return torch.cat([conv(x).amax(-1) for conv in self._convolutions()], dim=1)

    def extra_repr(self) -> str:
        """Return the activation."""
        return f"activation={self.activation}"
