"""The parts of a language model, found among the names of a checkpoint."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import torch
from torch import Tensor, nn

from ckptshrink.errors import LayoutError
from ckptshrink.gates import GateMatrix
from ckptshrink.runtime.gru import FactoredGRU
from ckptshrink.runtime.linear import FactoredEmbedding, FactoredLinear
from ckptshrink.runtime.linears import dense_linear
from ckptshrink.runtime.lstm import FactoredLSTM
from ckptshrink.runtime.opened import Opened
from ckptshrink.runtime.qrnn import WINDOWS, QRNNLayer
from ckptshrink.runtime.split_softmax import SplitSoftmax, awd_splits
from ckptshrink.runtime.state import owners_of
from ckptshrink.runtime.weights import Weight, as_parameter, shape_of

Layer: TypeAlias = FactoredLSTM | FactoredGRU | QRNNLayer

_FAMILIES: Final = (
    "known are AWD-LSTM, AWD-GRU, AWD-QRNN, fastai's language models and word_language_model"
)
_AWD_FAMILIES: Final = frozenset({"awd-lstm", "awd-qrnn", "fastai"})
_DTYPES: Final = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
_RECURRENT_NAME: Final = re.compile(r"weight_(?:ih|hh|hr)(?P<end>(?:_l\d+)?)(?:_raw)?")
_TORCH_NAMES: Final = {"Wi": "weight_ih_l0", "Wh": "weight_hh_l0", "P": "weight_hr_l0"}


def output_size(layer: Layer) -> int:
    """Return the size of what a layer puts out a step."""
    if isinstance(layer, FactoredLSTM) and layer.proj_size:
        return layer.proj_size
    return layer.hidden_size


@dataclass(frozen=True, slots=True)
class Parts:
    """What a language model is made of; see `LanguageModel`."""

    encoder: nn.Embedding | FactoredEmbedding
    layers: tuple[Layer, ...]
    decoder: nn.Linear | FactoredLinear
    split: SplitSoftmax | None
    unknown_splits: int


def parts_of(opened: Opened, splits: Sequence[int] | None) -> Parts:
    """Return the parts of a language model, by the names and shapes of a checkpoint.

    Raises
    ------
    LayoutError
        It is no language model of the known families; the message says what it lacks.
    """
    return _Finder(opened).parts(splits)


class _Finder:
    """Finds the parts of a language model among the names of a checkpoint."""

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self.facts = opened.facts
        self._owners = owners_of(opened.facts)
        self._by_source = {m.source: m for m in self.facts.matrices if m.part is None}
        self._taken: dict[str, Weight] = {}

    def parts(self, splits: Sequence[int] | None) -> Parts:
        stack = self._stack()
        encoder_name = self._encoder()
        encoder = _embedding(self._weight(encoder_name))
        layers: list[Layer] = []
        width = encoder.embedding_dim
        for matrices in stack:
            layers.append(self._layer(matrices, width))
            width = output_size(layers[-1])
        name = self._decoder(encoder_name, (encoder.num_embeddings, width))
        decoder = _linear(self._weight(name), self._beside(name, "bias"))
        split, unknown = self._split(splits, encoder.num_embeddings, width)
        self._check_all_taken()
        return Parts(encoder, tuple(layers), decoder, split, unknown)

    # -- which names -------------------------------------------------------------------------

    def _stack(self) -> list[dict[str, GateMatrix]]:
        """Return the matrices of each layer by role."""
        if self.facts.family == "elmo":
            raise LayoutError(
                "is an ELMo and no language model of one direction: it has no decoder",
                hint="load it with ckptshrink.runtime's load_elmo",
            )
        cells = [m for m in self.facts.matrices if m.cell or m.role in _TORCH_NAMES]
        if not cells:
            raise _missing("recurrent layer")
        if any(m.direction == "backward" for m in cells):
            raise _unfit("its recurrent layers go both ways")
        kinds = sorted({m.cell for m in cells})
        if len(kinds) > 1 or kinds[0] not in ("lstm", "gru", "qrnn"):
            raise _unfit(f"its recurrent layers are of kind {' and '.join(kinds)}")
        layers: dict[int, dict[str, GateMatrix]] = {}
        for matrix in cells:
            roles = layers.setdefault(matrix.layer or 0, {})
            if matrix.role in roles:
                raise _unfit(
                    f"{roles[matrix.role].source} and {matrix.source} are no single stack of layers"
                )
            roles[matrix.role] = matrix
        if sorted(layers) != list(range(len(layers))):
            raise _missing(f"recurrent layer {min(set(range(len(layers))) - set(layers))}")
        return [layers[i] for i in range(len(layers))]

    def _encoder(self) -> str:
        found = self._named("encoder.weight")
        if not found and self.facts.family not in _AWD_FAMILIES:
            found = [m.source for m in self.facts.matrices if m.role == "embedding"]
        return _the_one(found, "encoder.weight, an embedding of words")

    def _decoder(self, encoder: str, shape: tuple[int, int]) -> str:
        found = self._named("decoder.weight")
        if not found and self.facts.family not in _AWD_FAMILIES:
            recurrent = {m.source for m in self.facts.matrices if m.role in _TORCH_NAMES}
            found = [
                name
                for name, owner in self._owners.items()
                if self._shape(name) == shape and owner not in recurrent and name != encoder
            ]
        what = f"decoder.weight, a layer from {shape[1]} values to {shape[0]} words"
        name = _the_one(found, what)
        if self._shape(name) != shape:
            raise _unfit(f"{name} is {self._shape(name)}, and {shape} is wanted")
        return name

    def _named(self, end: str) -> list[str]:
        """Return the names of matrices that are `end`, or end so behind a dot."""
        found = [n for n in self._owners if n == end or n.endswith(f".{end}")]
        return [n for n in found if len(self._shape(n)) == 2]

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.facts.shapes[self._owners[name]]

    def _check_all_taken(self) -> None:
        """Refuse a model that has more to it: its outputs would be other than these."""
        left = [
            name
            for name, owner in self._owners.items()
            if owner not in self._taken and self.opened.tensor(owner).dtype.is_floating_point
        ]
        if left:
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            raise _unfit(f"it has no place for {', '.join(left[:3])}{more}")

    # -- which values ------------------------------------------------------------------------

    def _weight(self, name: str) -> Weight:
        """Return a tensor of the checkpoint, tied names the same one; as a pair if it is one."""
        owner = self._owners.get(name, name)
        if owner not in self._taken:
            matrix = self._by_source.get(owner)
            weight = self.opened.tensor(owner) if matrix is None else self.opened.weight(matrix)
            if isinstance(weight, Tensor):
                if weight.dtype not in _DTYPES:
                    raise _unfit(f"{name} is of dtype {weight.dtype}")
                weight = as_parameter(weight)
            self._taken[owner] = weight
        return self._taken[owner]

    def _beside(self, weight: str, leaf: str) -> Tensor | None:
        """Return a vector that belongs to a weight: beside it, or past a wrapper."""
        parent = weight[: weight.rfind(".") + 1]
        for place in (parent, f"{parent}module.", parent.removesuffix("module.")):
            if place + leaf in self._owners:
                vector = self._weight(place + leaf)
                return vector if isinstance(vector, Tensor) else None
        return None

    def _layer(self, matrices: Mapping[str, GateMatrix], width: int) -> Layer:
        given = matrices.get("Wi")
        if given is None:
            raise _missing(f"input weight beside {next(iter(matrices.values())).source}")
        if any(m.part is not None or m.layout.transposed for m in matrices.values()):
            raise _unfit(f"{given.source} is not packed as in torch")
        if given.cell == "qrnn":
            return self._qrnn(given, width)
        weights: dict[str, Weight] = {
            _TORCH_NAMES[role]: self._weight(m.source) for role, m in matrices.items()
        }
        for role, matrix in matrices.items():
            name = _RECURRENT_NAME.fullmatch(matrix.source.rpartition(".")[2])
            if name is None:
                raise _unfit(f"{matrix.source} is not named as in torch")
            kind = {"Wi": "bias_ih", "Wh": "bias_hh"}.get(role)
            bias = self._beside(given.source, kind + name["end"]) if kind else None
            if bias is not None:
                weights[f"{kind}_l0"] = bias
        columns = shape_of(weights["weight_ih_l0"])[1]
        if columns != width:
            raise _unfit(f"{given.source} takes {columns} values, and the layer before has {width}")
        if given.cell == "gru":
            return FactoredGRU.from_weights(weights)
        return FactoredLSTM.from_weights(weights)

    def _qrnn(self, given: GateMatrix, width: int) -> QRNNLayer:
        weight = self._weight(given.source)
        columns = shape_of(weight)[1]
        if columns not in [window * width for window in WINDOWS]:
            raise _unfit(f"{given.source} takes {columns} values, and the layer before has {width}")
        linear = _linear(weight, self._beside(given.source, "bias"))
        return QRNNLayer(linear, window=columns // width)

    def _split(
        self, splits: Sequence[int] | None, vocabulary: int, width: int
    ) -> tuple[SplitSoftmax | None, int]:
        """Return the clusters of a split softmax, or how many there are that can't be told."""
        found = self._named("tail_vectors")
        if not found:
            if splits is not None:
                raise LayoutError("its softmax is not split: it has no tail_vectors")
            return None, 0
        name = _the_one(found, "tail_vectors")
        vectors, bias = self._weight(name), self._beside(name, "tail_bias")
        K, columns = shape_of(vectors)
        if bias is None or tuple(bias.shape) != (K,) or columns != width:
            raise _unfit(f"{name} is {K} x {columns}, without a bias or for other layers")
        if splits is None:
            splits = awd_splits(vocabulary)
            if len(splits) != K:
                return None, K
        return SplitSoftmax(vectors, bias, splits), 0


def _unfit(why: str) -> LayoutError:
    return LayoutError(f"is no language model that can be run: {why}", hint=_FAMILIES)


def _missing(what: str) -> LayoutError:
    return _unfit(f"it has no {what}")


def _the_one(names: Sequence[str], what: str) -> str:
    if not names:
        raise _missing(what)
    if len(names) > 1:
        raise _unfit(f"it has {' and '.join(names[:3])}, any of which could be its {what}")
    return names[0]


def _embedding(weight: Weight) -> nn.Embedding | FactoredEmbedding:
    if not isinstance(weight, Tensor):
        return FactoredEmbedding(weight)
    m, n = weight.shape
    embedding = nn.Embedding(m, n, device="meta")
    embedding.weight = as_parameter(weight)
    return embedding


def _linear(weight: Weight, bias: Tensor | None) -> nn.Linear | FactoredLinear:
    if isinstance(weight, Tensor):
        return dense_linear(weight, bias)
    return FactoredLinear(weight, bias)
