"""A trained biLM as the file that bilm-tf dumps and AllenNLP reads, with its options."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ckptshrink.errors import LayoutError
from ckptshrink.io.staging import Staging
from ckptshrink.runtime.bilm import ProjectedLSTM
from ckptshrink.runtime.character_cnn import CharacterCNN
from ckptshrink.runtime.elmo import load_elmo
from ckptshrink.runtime.elmo_options import ElmoOptions, options_path, read_options
from ckptshrink.runtime.layer import GATES
from ckptshrink.runtime.opened import Opened
from ckptshrink.runtime.weights import dense, reordered
from ckptshrink.training.bilm import BiLM, BiLMSizes

TF_GATES: Final = "igfo"
"""Order of the gates in the file: TensorFlow's i, j, f, o, with g for its candidate j."""

Array = NDArray[np.floating[Any]]


def write_bilm(
    model: BiLM, out: Path, options: Path, *, dtype: str = "float32", overwrite: bool = False
) -> None:
    """Write the weights of a biLM and the options beside them; the softmax is not part of it.

    Parameters
    ----------
    model : BiLM
    out : Path
        The HDF5 file to come.
    options : Path
        ``options.json`` to come.
    dtype : "float32" or "float16"
        AllenNLP and bilm-tf read both.

    Raises
    ------
    OutputError
        A file can't be written.
    """
    if dtype not in {"float32", "float16"}:
        raise ValueError(f"a biLM is stored in float32 or float16, and not in {dtype}")
    with Staging(out, single=True, overwrite=overwrite) as staging:
        with h5py.File(staging.adopt(out.name), "w") as file:
            for name, tensor in datasets(model):
                array = np.ascontiguousarray(tensor.detach().cpu().numpy(), dtype=dtype)
                file.create_dataset(name, data=array, track_times=False)
        staging.commit()
    with Staging(options, single=True, overwrite=overwrite) as staging:
        text = json.dumps(model.sizes.options(), indent=1) + "\n"
        staging.create(options.name).write(text.encode())
        staging.commit()


def read_bilm(
    path: Path, words: Sequence[str], softmax: nn.Linear, *, dropout: float = 0.0
) -> BiLM:
    """Return the biLM of an ELMo's file or artefact, to be scored or trained further.

    Parameters
    ----------
    path : Path
        As of `load_elmo`. Pairs stay pairs, and are trained as such.
    words : sequence of str
        The vocabulary of the softmax.
    softmax : nn.Linear
        From P to the words; the file has none.

    Returns
    -------
    BiLM
        In evaluation mode and float32.

    Raises
    ------
    LayoutError
        It has one direction, no skip connections, or reads tokens.
    CheckpointError, ManifestMismatchError
        It can't be read.
    """
    elmo = load_elmo(path)
    with Opened(path) as opened:
        said = read_options(options_path(opened.facts, None))
    embedding, bilm = elmo.embedder, elmo.bilm
    if (
        not isinstance(embedding, CharacterCNN)
        or bilm.directions != 2
        or not bilm.skip_connections
        or said.char_cnn is None
    ):
        raise LayoutError("is no biLM on characters of two directions", path=path)
    forward: Any = list(bilm.forward_layers)
    backward: Any = list(bilm.backward_layers)
    for lstm in backward:
        lstm.reverse = False  # in training the text is reversed
    sizes = _sizes(said, embedding)
    return BiLM(sizes, words, embedding, forward, backward, softmax, dropout=dropout).eval()


def _sizes(said: ElmoOptions, embedding: CharacterCNN) -> BiLMSizes:
    lstm, characters = said.lstm, said.char_cnn
    assert characters is not None  # noqa: S101 - `read_bilm` has refused it
    first: Any = embedding.embedding
    return BiLMSizes(
        lstm.dim,
        lstm.projection_dim,
        lstm.n_layers,
        characters.filters,
        characters.n_highway or 0,
        first.embedding_dim,
        lstm.cell_clip or 0.0,
        lstm.proj_clip or 0.0,
    )


def datasets(model: BiLM) -> Iterator[tuple[str, Tensor]]:
    """Yield every dataset of the file: rows are inputs, and the forget bias is 1 less."""
    cnn: Any = model.embedding
    yield "char_embed", cnn.embedding.weight[1:]  # row 0 is padding, which loaders add
    for k, conv in enumerate(cnn.convolutions):
        yield f"CNN/W_cnn_{k}", conv.weight.permute(2, 1, 0)[None]  # (1, width, d, n)
        yield f"CNN/b_cnn_{k}", conv.bias
    yield "CNN_proj/W_proj", cnn.projection.weight.t()
    yield "CNN_proj/b_proj", cnn.projection.bias
    for k, highway in enumerate(cnn.highways):
        for kind in ("carry", "transform"):
            linear = getattr(highway, kind)
            yield f"CNN_high_{k}/W_{kind}", linear.weight.t()
            yield f"CNN_high_{k}/b_{kind}", linear.bias
    stacks: list[Any] = [model.forward_layers, model.backward_layers]
    single = model.sizes.n_layers == 1
    for direction, stack in enumerate(stacks):
        for layer, lstm in enumerate(stack):
            cell = "LSTMCell" if single else f"MultiRNNCell/Cell{layer}/LSTMCell"
            yield from _cell(f"RNN_{direction}/RNN/{cell}", lstm)


def _cell(base: str, lstm: ProjectedLSTM) -> Iterator[tuple[str, Tensor]]:
    wi, wh = (dense(reordered(w, GATES, TF_GATES)) for w in (lstm.wi, lstm.wh))
    yield f"{base}/W_0", torch.cat([wi, wh], dim=1).t()  # (2 P, 4 H)
    bias = lstm.bias.detach().clone()
    h = lstm.hidden
    bias[h : 2 * h] -= 1.0  # TensorFlow adds it when it runs the cell
    yield f"{base}/B", dense(reordered(bias, GATES, TF_GATES))
    if lstm.proj is not None:
        yield f"{base}/W_P_0", dense(lstm.proj).t()
