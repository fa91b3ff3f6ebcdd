"""Factored weights inside AllenNLP's own ELMo, whose cells only call their linear layers.

AllenNLP is not imported: its modules are known by their attributes, so that any version and any
wrapper will do.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ckptshrink.errors import LayoutError
from ckptshrink.runtime.elmo_options import ElmoOptions, options_path, read_options
from ckptshrink.runtime.elmo_parts import (
    CellParts,
    CharacterParts,
    LinearParts,
    PartsReader,
    check_options,
)
from ckptshrink.runtime.linears import StackedLinear, linear_of
from ckptshrink.runtime.opened import Opened
from ckptshrink.runtime.weights import LowRank, dense, shape_of

M = TypeVar("M", bound=nn.Module)


def factor_elmo(model: M, path: str | Path, *, options: str | Path | None = None) -> M:
    """Give every ELMo in a module the weights of an artefact: pairs where those are factored.

    Each cell's `input_linearity`, `state_linearity` and `state_projection`, the highway layers and
    the projection of the characters become layers that run the pairs; what the artefact holds
    dense is copied. All values of the biLM are then the artefact's. What a task has trained around
    it, the scalar mixes too, stays. States that the LSTMs hold stay; `reset_states` clears them.

    Parameters
    ----------
    model : nn.Module
        An `allennlp.modules.elmo.Elmo`, or any module that has one or more of them in it. Changed
        in place, only once everything was found to fit. The new parameters are on the device, of
        the dtype and as frozen as those that they replace.
    path : path
        An artefact made of an ELMo in bilm-tf's layout, or such a checkpoint.
    options : path, optional
        The artefact's options.json, if it is not in it.

    Returns
    -------
    nn.Module
        `model` itself.

    Raises
    ------
    CheckpointError, ManifestMismatchError
        A file can't be read.
    LayoutError
        There is no ELMo in `model`, or it is another model than the artefact was made of: layers,
        shapes, bounds, activation or skip connections differ.
    """
    path = Path(path)
    found = list(_bilms(model))
    if not found:
        raise LayoutError(f"there is no ELMo of AllenNLP in this {type(model).__name__}")
    with Opened(path) as opened:
        said = read_options(options_path(opened.facts, options))
        reader = PartsReader(opened)
        swaps: list[_Swap] = []
        for bilm in found:
            # read again for each, since parameters of two modules are not to be shared unasked
            cells, characters = reader.cells(), reader.characters()
            check_options(said, cells, characters, path)
            _check_behaviour(bilm, said, path)
            fitting = _Fitting(path)
            fitting.lstms(bilm._elmo_lstm, cells)
            fitting.characters(bilm._token_embedder, characters)
            swaps += fitting.swaps
    for swap in swaps:
        setattr(swap.parent, swap.name, swap.new)
    return model


@dataclass(frozen=True, slots=True)
class _Swap:
    """What is to take the place of ``parent.name``: a module or a parameter."""

    parent: nn.Module
    name: str
    new: nn.Module | nn.Parameter


def _bilms(model: nn.Module) -> Iterator[Any]:
    """Yield every ``_ElmoBiLm``, each once."""
    for module in model.modules():
        lstm = getattr(module, "_elmo_lstm", None)
        if hasattr(module, "_token_embedder") and hasattr(lstm, "forward_layer_0"):
            yield module


def _check_behaviour(bilm: Any, options: ElmoOptions, path: Path) -> None:
    """Check what no shape tells: that AllenNLP's modules compute what the artefact's model does."""
    if getattr(bilm, "_word_embedding", None) is not None:
        raise LayoutError(
            "the ELMo holds words embedded by its old weights (vocab_to_cache)",
            path=path,
            hint="build it without, and call create_cached_cnn_embeddings after this",
        )
    if not options.lstm.use_skip_connections:
        raise LayoutError("has no skip connections, and AllenNLP's ELMo always has", path=path)
    if options.char_cnn is not None:
        held = getattr(bilm._token_embedder, "_options", {}).get("char_cnn", {})
        said = options.char_cnn.activation
        if held.get("activation", said) != said:
            raise LayoutError(f"has {said} filters, and the ELMo {held['activation']}", path=path)
    for cell in (bilm._elmo_lstm.forward_layer_0, bilm._elmo_lstm.backward_layer_0):
        clips = (cell.memory_cell_clip_value or None, cell.state_projection_clip_value or None)
        if clips != (options.lstm.cell_clip, options.lstm.proj_clip):
            raise LayoutError(
                f"bounds cell and state by {options.lstm.cell_clip} and {options.lstm.proj_clip}, "
                f"and the ELMo by {clips[0]} and {clips[1]}",
                path=path,
            )


class _Fitting:
    """Collects what is to be swapped, after a check of its shape."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.swaps: list[_Swap] = []

    def lstms(self, lstm: nn.Module, cells: dict[str, tuple[CellParts, ...]]) -> None:
        """Fit every cell of an ``ElmoLstm``."""
        for direction in ("forward", "backward"):
            held = _numbered(lstm, f"{direction}_layer_{{}}")
            parts = cells.get(direction, ())
            self._same(f"{direction} LSTM layers", len(parts), len(held))
            for layer, (cell, part) in enumerate(zip(held, parts, strict=True)):
                self._cell(cell, part, f"{direction} layer {layer}")

    def characters(self, embedder: Any, parts: CharacterParts) -> None:
        """Fit an ``_ElmoCharacterEncoder``."""
        rows = dense(parts.embedding)
        table = torch.cat([rows.new_zeros(1, rows.shape[1]), rows])
        self._parameter(embedder, "_char_embedding_weights", table)
        convolutions = _numbered(embedder, "char_conv_{}")
        self._same("character convolutions", len(parts.convolutions), len(convolutions))
        for convolution, (weight, bias) in zip(convolutions, parts.convolutions, strict=True):
            self._parameter(convolution, "weight", weight)
            self._parameter(convolution, "bias", bias)
        layers = embedder._highways._layers
        self._same("highway layers", len(parts.highways), len(layers))
        for k, (carry, transform) in enumerate(parts.highways):
            n = embedder._highways._input_dim
            self._same("values of a highway", len(carry.bias), n)
            self._module(layers, str(k), _highway(carry, transform))
        if parts.projection is None:
            raise LayoutError("has no CNN_proj, and AllenNLP's ELMo always has", path=self.path)
        projection = parts.projection
        self._same("values of a word", len(projection.bias), embedder.output_dim)
        self._module(embedder, "_projection", linear_of(projection.weight, projection.bias))

    def _cell(self, cell: Any, part: CellParts, place: str) -> None:
        sizes = (cell.input_size, cell.hidden_size, cell.cell_size)
        self._same(
            f"inputs, state and cells of the {place}",
            (shape_of(part.wi)[1], part.state, part.hidden),
            sizes,
        )
        if part.proj is None:
            raise LayoutError("has no projection, and AllenNLP's cells always have", path=self.path)
        self._module(cell, "input_linearity", linear_of(part.wi))
        self._module(cell, "state_linearity", linear_of(part.wh, part.bias))
        self._module(cell, "state_projection", linear_of(part.proj))

    def _module(self, parent: nn.Module, name: str, new: nn.Module) -> None:
        old = getattr(parent, name)
        like = next(old.parameters())
        new.to(like.device, like.dtype).requires_grad_(like.requires_grad).train(old.training)
        self.swaps.append(_Swap(parent, name, new))

    def _parameter(self, parent: nn.Module, name: str, new: Tensor) -> None:
        old = getattr(parent, name)
        self._same(name.strip("_"), tuple(new.shape), tuple(old.shape))
        placed = new.detach().to(old.device, old.dtype)
        self.swaps.append(_Swap(parent, name, nn.Parameter(placed, old.requires_grad)))

    def _same(self, what: str, stored: object, held: object) -> None:
        if stored != held:
            raise LayoutError(f"has {stored} {what}, and the ELMo has {held}", path=self.path)


def _numbered(module: nn.Module, template: str) -> list[Any]:
    found: list[Any] = []
    while hasattr(module, template.format(len(found))):
        found.append(getattr(module, template.format(len(found))))
    return found


def _highway(carry: LinearParts, transform: LinearParts) -> nn.Module:
    """Return AllenNLP's one layer for both; its gate is on the input, so the carry is negated."""
    if isinstance(carry.weight, Tensor) and isinstance(transform.weight, Tensor):
        weight = torch.cat([transform.weight, -carry.weight])
        return linear_of(weight, torch.cat([transform.bias, -carry.bias]))
    negated = (
        LowRank(-carry.weight.U.detach(), carry.weight.V)
        if isinstance(carry.weight, LowRank)
        else -dense(carry.weight)
    )
    return StackedLinear(
        [linear_of(transform.weight, transform.bias), linear_of(negated, -carry.bias)]
    )
