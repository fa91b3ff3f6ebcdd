"""A language model from scratch, with AWD-LSTM's sizes and initial weights."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ckptshrink.runtime.language_model import LanguageModel
from ckptshrink.runtime.lstm import FactoredLSTM

_BOUND = 0.1
"""Largest initial entry of the embedding, as awd-lstm-lm draws it."""


def new_language_model(
    vocab_size: int,
    embedding_dim: int,
    hidden: int,
    n_layers: int = 3,
    *,
    ranks: Mapping[str, int] | None = None,
    generator: torch.Generator | None = None,
) -> LanguageModel:
    """Return a tied language model of LSTM layers with random weights.

    Parameters
    ----------
    vocab_size, embedding_dim, hidden : int
        The last layer has `embedding_dim` cells, since encoder and decoder have one weight.
    n_layers : int
    ranks : mapping of str to int, optional
        By torch's weight name (``weight_hh_l0``), for every layer: those weights are pairs from the
        beginning, a factorized cell.
    generator : torch.Generator, optional
        Of all random weights; torch's own if not given.

    Returns
    -------
    LanguageModel
        In evaluation mode.
    """
    if min(vocab_size, embedding_dim, hidden, n_layers) < 1:
        raise ValueError("all sizes are 1 or more")
    widths = [embedding_dim, *[hidden] * (n_layers - 1), embedding_dim]
    layers = []
    for inputs, cells in pairwise(widths):
        layer = FactoredLSTM(inputs, cells, ranks=ranks)
        _draw(layer, cells**-0.5, generator)
        layers.append(layer)
    encoder = nn.Embedding(vocab_size, embedding_dim)
    decoder = nn.Linear(embedding_dim, vocab_size)
    with torch.no_grad():
        encoder.weight.uniform_(-_BOUND, _BOUND, generator=generator)
        decoder.bias.zero_()
    decoder.weight = encoder.weight
    return LanguageModel(encoder, layers, decoder)


def _draw(layer: nn.Module, bound: float, generator: torch.Generator | None) -> None:
    """Draw all weights anew from a generator, each within the bounds it was drawn in before."""
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            pair = name.endswith((".U", ".V"))
            most = float(parameter.abs().max()) if pair else bound
            parameter.uniform_(-most, most, generator=generator)


def awd_state_dict(model: LanguageModel) -> dict[str, Tensor]:
    """Return a model's weights under the names that awd-lstm-lm saves them by.

    Raises
    ------
    ValueError
        It has another kind of layer, or weights that are pairs.
    """
    if model.cell != "lstm":
        raise ValueError(f"layers of kind {model.cell} have other names")
    encoder, decoder, layers = _parts(model)
    for name, module in (("encoder", encoder), ("decoder", decoder), *layers):
        if any(n.endswith((".U", ".V")) for n, _ in module.named_parameters()):
            raise ValueError(f"a weight of {name} is a pair")
    state: dict[str, Tensor] = {"encoder.weight": encoder.weight.detach()}
    for prefix, layer in layers:
        for name, parameter in layer.named_parameters():
            raw = "_raw" if name.startswith("weight_hh") else ""
            state[f"{prefix}.module.{name}{raw}"] = parameter.detach()
    own = state["encoder.weight"] if model.tied else decoder.weight.detach()
    state["decoder.weight"] = own
    if decoder.bias is not None:
        state["decoder.bias"] = decoder.bias.detach()
    return state


def _parts(model: LanguageModel) -> tuple[Any, Any, list[tuple[str, nn.Module]]]:
    layers = [(f"rnns.{i}", layer) for i, layer in enumerate(model.rnns)]
    return model.encoder, model.decoder, layers
