"""A biLM from scratch, with bilm-tf's initial weights."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ckptshrink.runtime.bilm import ProjectedLSTM
from ckptshrink.runtime.character_cnn import CharacterCNN, Highway
from ckptshrink.training.bilm import N_CHARACTERS, BiLM, BiLMSizes


def new_bilm(sizes: BiLMSizes, words: Sequence[str], *, dropout: float = 0.1) -> BiLM:
    """Return a biLM with random weights, drawn from torch's own generator.

    Parameters
    ----------
    sizes : BiLMSizes
    words : sequence of str
        The vocabulary of the softmax, ``<S>`` and ``</S>`` in it.
    dropout : float

    Raises
    ------
    ValueError
        Sizes that bilm-tf and AllenNLP could not exchange, a vocabulary without borders, or a
        dropout out of range.
    """
    if sizes.n_filters == sizes.projection_dim or sizes.dim == sizes.projection_dim:
        # bilm-tf leaves out a projection between equal sizes, and AllenNLP always reads it
        raise ValueError("filters, cells and projection must differ in number")
    embedding = _character_cnn(sizes)
    forward = [_lstm(sizes) for _ in range(sizes.n_layers)]
    backward = [_lstm(sizes) for _ in range(sizes.n_layers)]
    softmax = nn.Linear(sizes.projection_dim, len(words))
    nn.init.normal_(softmax.weight, std=sizes.projection_dim**-0.5)
    nn.init.zeros_(softmax.bias)
    return BiLM(sizes, words, embedding, forward, backward, softmax, dropout=dropout)


def _lstm(sizes: BiLMSizes) -> ProjectedLSTM:
    h, p = sizes.dim, sizes.projection_dim

    def drawn(*shape: int) -> Tensor:
        return nn.init.xavier_uniform_(torch.empty(shape))

    bias = torch.zeros(4 * h)
    bias[h : 2 * h] = 1.0  # of the forget gate, which the file does not have; see `bilm_hdf5`
    return ProjectedLSTM(
        drawn(4 * h, p), drawn(4 * h, p), bias, drawn(p, h),
        cell_clip=sizes.cell_clip, proj_clip=sizes.proj_clip,
    )  # fmt: skip


def _character_cnn(sizes: BiLMSizes) -> CharacterCNN:
    f = sizes.n_filters
    embedding = nn.Embedding(N_CHARACTERS, sizes.char_dim, padding_idx=0)
    nn.init.uniform_(embedding.weight[1:], -1.0, 1.0)
    convolutions = []
    for width, n in sizes.filters:
        conv = nn.Conv1d(sizes.char_dim, n, width)
        nn.init.uniform_(conv.weight, -0.05, 0.05)  # bilm-tf's, for relu
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        convolutions.append(conv)
    highways = []
    for _ in range(sizes.n_highway):
        highway = Highway(nn.Linear(f, f), nn.Linear(f, f))
        for linear, bias in ((highway.carry, -2.0), (highway.transform, 0.0)):
            nn.init.normal_(linear.weight, std=f**-0.5)  # type: ignore[arg-type]
            nn.init.constant_(linear.bias, bias)  # type: ignore[arg-type]
        highways.append(highway)
    projection = nn.Linear(f, sizes.projection_dim)
    nn.init.normal_(projection.weight, std=f**-0.5)
    nn.init.zeros_(projection.bias)
    return CharacterCNN(embedding, convolutions, "relu", highways, projection)
