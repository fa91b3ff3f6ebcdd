"""AWD-LSTM's dropouts and penalties around a language model, whatever its weights are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ckptshrink.runtime.language_model import LanguageModel
from ckptshrink.training.recipe import Recipe
from ckptshrink.training.softmax import cross_entropy
from ckptshrink.training.streams import Window
from ckptshrink.training.trainer import Step


@dataclass(frozen=True, slots=True)
class Dropouts:
    """Probabilities of AWD-LSTM's five dropouts; the defaults are those of its Penn Treebank run.

    Attributes
    ----------
    words : float
        Whole words of the embedding, wherever they stand in the window.
    inputs, layers, outputs : float
        Components of what goes into the first layer, between layers, and out of the last; one mask
        for all steps of a window.
    weights : float
        Entries of recurrent weights; of a pair U V those of U.
    """

    words: float = 0.1
    inputs: float = 0.4
    layers: float = 0.25
    outputs: float = 0.4
    weights: float = 0.5

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"a dropout lies in [0, 1); {name} is {getattr(self, name)}")


class Regularized(nn.Module):
    """A language model in training; its parameters are the model's own.

    Parameters
    ----------
    model : LanguageModel
        Dense, or with pairs for weights: whatever parameters it has are trained.
    dropouts : Dropouts

    Source
    ------
    Merity, Keskar and Socher 2018; the masks of Gal and Ghahramani 2016.
    """

    def __init__(self, model: LanguageModel, dropouts: Dropouts | None = None) -> None:
        super().__init__()
        self.model = model
        self.dropouts = dropouts or Dropouts()

    def forward(
        self, tokens: Tensor, state: Sequence[Any]
    ) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
        """Run a window.

        Returns
        -------
        dropped, raw : (T, B, E)
            Output of the last layer, with and without its dropout.
        state : tuple
        """
        drops = self.dropouts if self.training else Dropouts(0, 0, 0, 0, 0)
        x = self.model.encoder(tokens)  # (T, B, E)
        if drops.words:
            kept = x.new_empty(self.model.vocab_size, 1).bernoulli_(1 - drops.words)  # (V, 1)
            x = x * (kept / (1 - drops.words))[tokens]
        x = locked(x, drops.inputs)
        after: list[Any] = []
        raw = x
        for i, (layer, before) in enumerate(zip(self.model.rnns, state, strict=True)):
            raw, h = functional_call(layer, _dropped_weights(layer, drops.weights), (x, before))
            after.append(h)
            last = i == len(self.model.rnns) - 1
            x = locked(raw, drops.outputs if last else drops.layers)
        return x, raw, tuple(after)

    def start(self, batch: int) -> tuple[Any, ...]:
        """Return the state before any text."""
        return self.model.initial_state(batch)

    def step(self, window: Window, state: Any, recipe: Recipe) -> Step:
        """Return the loss of a window, penalties and all, and its likelihood without them."""
        dropped, raw, after = self(window.tokens, state)
        count = window.targets.numel()
        nats = self._nats(dropped.flatten(0, 1), window.targets.flatten())
        loss = nats / count
        if recipe.alpha:
            loss = loss + recipe.alpha * dropped.float().pow(2).mean()
        if recipe.beta and len(raw) > 1:
            loss = loss + recipe.beta * (raw[1:] - raw[:-1]).float().pow(2).mean()
        return Step(loss, float(nats.detach()), count, _detached(after))

    @torch.no_grad()
    def score(self, window: Window, state: Any) -> tuple[float, int, Any]:
        """Return the summed loss of a window in nats, its number of targets, and the state."""
        nats, after = self.model.score(window.tokens, window.targets, state)
        return float(nats), window.targets.numel(), after

    def _nats(self, output: Tensor, targets: Tensor) -> Tensor:
        """Return the summed loss of outputs (N, E), one softmax over all words."""
        decoder: nn.Module = self.model.decoder
        if isinstance(decoder, nn.Linear):
            return cross_entropy(output, decoder.weight, decoder.bias, targets)
        logits = self.model.logits(output)
        return nn.functional.cross_entropy(logits.float(), targets, reduction="sum")


def locked(x: Tensor, p: float) -> Tensor:
    """Drop components of (T, B, E) by one mask (1, B, E) for all steps; nothing where p is 0."""
    if not p:
        return x
    mask = x.new_empty(1, *x.shape[1:]).bernoulli_(1 - p) / (1 - p)
    return x * mask


def _dropped_weights(layer: nn.Module, p: float) -> dict[str, Tensor]:
    """Return a layer's recurrent weights with entries dropped; of a pair those of its U."""
    if not p:
        return {}
    return {
        name: nn.functional.dropout(parameter, p)
        for name, parameter in layer.named_parameters()
        if name.startswith("weight_hh") and not name.endswith(".V")
    }


def _detached(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach()
    parts = [_detached(part) for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
