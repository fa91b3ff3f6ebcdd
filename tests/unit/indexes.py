"""Checkpoint indexes from names and shapes, and the names that known programs write."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from torch import nn

from ckptshrink.gates import GateMatrix
from ckptshrink.io.checkpoint import Checkpoint
from ckptshrink.layouts import Recognition, recognise
from ckptshrink.tensors import TensorRef, nbytes_of

Shapes = dict[str, tuple[int, ...]]


def index_of(
    shapes: Mapping[str, tuple[int, ...]],
    *,
    shares: Mapping[str, str] | None = None,
    copies: Mapping[str, str] | None = None,
    dtype: str = "F32",
    dtypes: Mapping[str, str] | None = None,
) -> Checkpoint:
    """Return an index without payload; `shares` says which names are whose storage."""
    tensors = {}
    for name, shape in shapes.items():
        code = (dtypes or {}).get(name, dtype)
        owner = (shares or {}).get(name)
        tensors[name] = TensorRef(name, shape, code, nbytes_of(shape, code), "model", owner)
    return Checkpoint(Path("model"), "torch-zip", tensors, (), copies=copies or {})


def by_key(recognition: Recognition) -> dict[str, GateMatrix]:
    """Return the matrices by key."""
    return {matrix.key: matrix for matrix in recognition.matrices}


def shapes_of(module: nn.Module) -> Shapes:
    """Return the shapes of a module's state dict."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def recurrent(shapes: Shapes) -> list[tuple[str, str, int | None, str | None, str]]:
    """Return key, role, layer, direction and cell of every gate matrix."""
    found = recognise(index_of(shapes))
    assert not found.unrecognised
    return [
        (m.key, m.role, m.layer, m.direction, m.cell) for m in found.matrices if m.layer is not None
    ]


def awd_lstm(
    n_tokens: int = 50,
    sizes: tuple[int, ...] = (8, 12, 12, 8),
    *,
    blocks: int = 4,
    prefix: str = "",
    before_raw: str = ".module.",
    raw: str = "_raw",
) -> Shapes:
    """Return the tensors of salesforce/awd-lstm-lm: one-layer modules in a list, WeightDrop."""
    shapes: Shapes = {f"{prefix}encoder.weight": (n_tokens, sizes[0])}
    for layer, (n_in, hidden) in enumerate(pairwise(sizes)):
        inner = f"{prefix}rnns.{layer}{'.module.' if raw else '.'}"
        shapes[f"{inner}weight_ih_l0"] = (blocks * hidden, n_in)
        shapes[f"{inner}bias_ih_l0"] = (blocks * hidden,)
        shapes[f"{inner}bias_hh_l0"] = (blocks * hidden,)
        held = f"{prefix}rnns.{layer}{before_raw if raw else '.'}"
        shapes[f"{held}weight_hh_l0{raw}"] = (blocks * hidden, hidden)
    shapes[f"{prefix}decoder.weight"] = (n_tokens, sizes[-1])
    shapes[f"{prefix}decoder.bias"] = (n_tokens,)
    return shapes


def awd_qrnn(n_tokens: int = 50, sizes: tuple[int, ...] = (8, 12, 12, 8)) -> Shapes:
    """Return the tensors of its QRNN variant; the first layer sees two steps."""
    shapes: Shapes = {"encoder.weight": (n_tokens, sizes[0])}
    for layer, (n_in, hidden) in enumerate(pairwise(sizes)):
        window = 2 if layer == 0 else 1
        shapes[f"rnns.{layer}.linear.module.bias"] = (3 * hidden,)
        shapes[f"rnns.{layer}.linear.module.weight_raw"] = (3 * hidden, window * n_in)
    shapes["decoder.weight"] = (n_tokens, sizes[-1])
    shapes["decoder.bias"] = (n_tokens,)
    return shapes


FILTERS = ((1, 32), (2, 32), (3, 64), (4, 128), (5, 256), (6, 512), (7, 1024))


def elmo(
    dim: int,
    projection: int,
    *,
    n_highway: int = 2,
    n_layers: int = 2,
    filters: tuple[tuple[int, int], ...] = FILTERS,
    characters: bool = True,
) -> Shapes:
    """Return the datasets that bilm-tf dumps."""
    shapes: Shapes = {}
    n_filters = sum(n for _, n in filters)
    if characters:
        shapes["char_embed"] = (261, 16)
        for k, (width, n) in enumerate(filters):
            shapes[f"CNN/W_cnn_{k}"] = (1, width, 16, n)
            shapes[f"CNN/b_cnn_{k}"] = (n,)
        for k in range(n_highway):
            for gate in ("carry", "transform"):
                shapes[f"CNN_high_{k}/W_{gate}"] = (n_filters, n_filters)
                shapes[f"CNN_high_{k}/b_{gate}"] = (n_filters,)
        shapes["CNN_proj/W_proj"] = (n_filters, projection)
        shapes["CNN_proj/b_proj"] = (projection,)
    for direction in (0, 1):
        for layer in range(n_layers):
            stacked = f"MultiRNNCell/Cell{layer}/" if n_layers > 1 else ""
            cell = f"RNN_{direction}/RNN/{stacked}LSTMCell"
            shapes[f"{cell}/B"] = (4 * dim,)
            shapes[f"{cell}/W_0"] = (2 * projection, 4 * dim)
            if projection < dim:
                shapes[f"{cell}/W_P_0"] = (dim, projection)
    return shapes
