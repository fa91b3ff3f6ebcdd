"""An ELMo's biLM in training: characters in, the next and the previous word out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ckptshrink.runtime.bilm import ProjectedLSTM
from ckptshrink.runtime.character_cnn import CharacterCNN
from ckptshrink.runtime.characters import BEGIN, END, MAX_CHARACTERS, CharacterIds
from ckptshrink.training.recipe import Recipe
from ckptshrink.training.regularized import locked
from ckptshrink.training.softmax import IGNORED, cross_entropy
from ckptshrink.training.streams import Streams, Window
from ckptshrink.training.trainer import Step

N_CHARACTERS = 262
"""Ids of characters, 0 being padding."""


@dataclass(frozen=True, slots=True)
class BiLMSizes:
    """Sizes of a biLM, in the words of options.json.

    Attributes
    ----------
    dim, projection_dim : int
        Cells H, and size P of the state.
    n_layers : int
    filters : tuple of (int, int)
        Width and number of each convolution; F in all.
    n_highway : int
    char_dim : int
    cell_clip, proj_clip : float
    """

    dim: int
    projection_dim: int
    n_layers: int = 2
    filters: tuple[tuple[int, int], ...] = ((1, 16), (2, 16), (3, 32), (4, 64), (5, 128))
    n_highway: int = 2
    char_dim: int = 16
    cell_clip: float = 3.0
    proj_clip: float = 3.0

    @property
    def n_filters(self) -> int:
        """F, the filters of all convolutions."""
        return sum(n for _, n in self.filters)

    def options(self) -> dict[str, Any]:
        """Return options.json as bilm-tf and AllenNLP read it."""
        return {
            "lstm": {
                "use_skip_connections": True,
                "projection_dim": self.projection_dim,
                "cell_clip": self.cell_clip,
                "proj_clip": self.proj_clip,
                "dim": self.dim,
                "n_layers": self.n_layers,
            },
            "char_cnn": {
                "activation": "relu",
                "filters": [list(pair) for pair in self.filters],
                "n_highway": self.n_highway,
                "embedding": {"dim": self.char_dim},
                "n_characters": N_CHARACTERS,
                "max_characters_per_token": MAX_CHARACTERS,
            },
        }


class BiLM(nn.Module):
    """A biLM with its softmax over words, which both directions share.

    A batch has two halves of columns, as `streams_both_ways` makes them: the first half is read
    forwards, the second has its text in reverse and is read by the backward layers.

    Parameters
    ----------
    sizes : BiLMSizes
    words : sequence of str
        The vocabulary of the softmax, ``<S>`` and ``</S>`` in it.
    embedding : CharacterCNN
        From characters to P.
    forward_layers, backward_layers : sequence of ProjectedLSTM
        As many each; none runs in reverse, since the text does.
    softmax : nn.Linear
        From P to the words.
    dropout : float
        Between layers, and of the output; one mask for all steps of a window.

    Source
    ------
    Peters et al. 2018; the layout and the borders of sentences are bilm-tf's.
    """

    characters: Tensor

    def __init__(
        self,
        sizes: BiLMSizes,
        words: Sequence[str],
        embedding: CharacterCNN,
        forward_layers: Sequence[ProjectedLSTM],
        backward_layers: Sequence[ProjectedLSTM],
        softmax: nn.Linear,
        *,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not {BEGIN, END} <= set(words):
            raise ValueError(f"the vocabulary lacks {BEGIN} or {END}")
        if softmax.out_features != len(words):
            raise ValueError(f"a softmax over {softmax.out_features} words, of {len(words)}")
        if not 0 <= dropout < 1:
            raise ValueError(f"a dropout lies in [0, 1), and is {dropout}")
        self.sizes = sizes
        self.dropout = dropout
        self.begin, self.end = words.index(BEGIN), words.index(END)
        ids = CharacterIds()
        table = torch.tensor([ids.word(word) for word in words])  # (V, C)
        self.register_buffer("characters", table, persistent=False)
        self.embedding = embedding
        self.forward_layers = nn.ModuleList(forward_layers)
        self.backward_layers = nn.ModuleList(backward_layers)
        self.softmax = softmax

    def start(self, batch: int) -> tuple[tuple[Tensor, Tensor], ...]:
        """Return zeros for every layer, the forward ones first; `batch` has both halves."""
        like = self.softmax.weight
        rows = batch // 2
        return tuple(
            (like.new_zeros(rows, lstm.state), like.new_zeros(rows, lstm.hidden))
            for lstm in (*self._stack(0), *self._stack(1))
        )

    def forward(
        self, tokens: Tensor, state: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, tuple[tuple[Tensor, Tensor], ...]]:
        """Return outputs (T, B, P) of the last layers for words (T, B), and the states."""
        steps, batch = tokens.shape
        # most words of a window stand in it more than once, and their characters say the same
        words, places = torch.unique(tokens, return_inverse=True)
        x = self.embedding(self.characters[words])[places].view(steps, batch, -1)
        x = locked(x, self._p())
        outputs, after = [], []
        n = self.sizes.n_layers
        for k, half in enumerate(x.chunk(2, dim=1)):
            out, states = self._run(self._stack(k), half, state[k * n : (k + 1) * n])
            outputs.append(out)
            after += states
        return torch.cat(outputs, dim=1), tuple(after)

    def step(self, window: Window, state: Any, recipe: Recipe) -> Step:
        """Return the loss of a window, mean of both directions."""
        nats, count, after = self._summed(window, state)
        return Step(nats / count, float(nats.detach()), count, after)

    @torch.no_grad()
    def score(self, window: Window, state: Any) -> tuple[float, int, Any]:
        """Return the summed loss of a window in nats, its number of targets, and the state."""
        nats, count, after = self._summed(window, state)
        return float(nats), count, after

    @torch.no_grad()
    def nats(self, window: Window, state: Any) -> tuple[Tensor, Tensor, Any]:
        """Return the loss of each target.

        Returns
        -------
        nats : (T, B), float64
        counted : (T, B), bool
            False for a border that always follows the other one, whose loss is not to be counted.
        state : tuple
        """
        out, after = self(window.tokens, state)
        targets = self._targets(window)
        logits = self.softmax(out).float()
        nats = nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
        )
        return nats.view_as(targets).double(), targets != IGNORED, after

    def _summed(self, window: Window, state: Any) -> tuple[Tensor, int, Any]:
        out, after = self(window.tokens, state)
        out = locked(out, self._p())
        targets = self._targets(window)
        nats = cross_entropy(
            out.flatten(0, 1), self.softmax.weight, self.softmax.bias, targets.flatten()
        )
        detached = tuple((h.detach(), c.detach()) for h, c in after)
        return nats, int((targets != IGNORED).sum()), detached

    def _targets(self, window: Window) -> Tensor:
        """Return the targets without the border that always follows the other one."""
        targets = window.targets.clone()
        forward, backward = targets.chunk(2, dim=1)
        ahead, behind = window.tokens.chunk(2, dim=1)
        forward[(ahead == self.end) & (forward == self.begin)] = IGNORED
        backward[(behind == self.begin) & (backward == self.end)] = IGNORED
        return targets

    def _run(
        self, stack: Sequence[ProjectedLSTM], x: Tensor, state: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Run the layers of a direction on x (T, B, P)."""
        steps, batch = x.shape[:2]
        after = []
        for number, (lstm, (h, c)) in enumerate(zip(stack, state, strict=True)):
            out, h, c = lstm(x.flatten(0, 1), [batch] * steps, h, c)
            after.append((h, c))
            out = out.view(steps, batch, -1)
            out = out + x if number > 0 else out
            x = locked(out, self._p()) if number < len(stack) - 1 else out
        return x, after

    def _stack(self, direction: int) -> Sequence[ProjectedLSTM]:
        layers: Any = (self.forward_layers, self.backward_layers)[direction]
        return list(layers)

    def _p(self) -> float:
        return self.dropout if self.training else 0.0


def streams_both_ways(text: Tensor, batch: int) -> Streams:
    """Return streams whose first `batch` columns are a text's pieces, and the others its reverse's.

    Raises
    ------
    ValueError
        As of `Streams.of`.
    """
    forward, backward = Streams.of(text, batch), Streams.of(text.flip(0), batch)
    return Streams(torch.cat([forward.tokens, backward.tokens], dim=1))
