"""ELMo: sentences to the activations of every layer of its bidirectional language model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from ckptshrink.errors import CheckpointError, LayoutError
from ckptshrink.runtime.bilm import BiLM, ProjectedLSTM
from ckptshrink.runtime.character_cnn import CharacterCNN, Highway
from ckptshrink.runtime.characters import CharacterIds
from ckptshrink.runtime.elmo_options import ElmoOptions, options_path, read_options
from ckptshrink.runtime.elmo_parts import CellParts, CharacterParts, PartsReader, check_options
from ckptshrink.runtime.linears import embedding_of, linear_of
from ckptshrink.runtime.opened import Opened
from ckptshrink.runtime.token_ids import TokenIds
from ckptshrink.runtime.weights import Weight, shape_of


class Indexer(Protocol):
    """Turns words into ids. `begin` and `end` are those of the borders of a sentence."""

    begin: Tensor
    end: Tensor

    def batch(self, sentences: Sequence[Sequence[str]]) -> Tensor:
        """Return ids (B, T) or (B, T, C), padded with 0."""
        ...


class Activations(NamedTuple):
    """What an ELMo makes of a batch.

    Attributes
    ----------
    layers : (L + 1, B, T, 2P)
        The embedding of the words, twice, then each layer's forward and backward outputs. Zero
        where there is padding.
    mask : (B, T)
        Where there are words.
    """

    layers: Tensor
    mask: Tensor


class Elmo(nn.Module):
    """An ELMo whose weights may be low-rank pairs, which are run as pairs.

    The borders of a sentence are added inside and left out of the outputs; an empty sentence is the
    two borders. With `stateful` an LSTM starts a batch from the state in which it ended the last
    one, row by row, as bilm-tf and AllenNLP do; otherwise from zeros, so that outputs depend on a
    sentence alone.

    Ask for no gradients (`torch.no_grad`, `torch.inference_mode`, or frozen parameters) where none
    are wanted: the fast routes have none.

    Parameters
    ----------
    embedder : nn.Module
        From ids (N, C) or (N,) to (N, P).
    bilm : BiLM
    indexer : Indexer

    Examples
    --------
    >>> elmo = load_elmo("elmo.hdf5", options="options.json")  # doctest: +SKIP
    >>> [tuple(x.shape) for x in elmo.embed([["An", "example", "."], []])]  # doctest: +SKIP
    [(3, 3, 1024), (3, 0, 1024)]
    """

    def __init__(self, embedder: nn.Module, bilm: BiLM, indexer: Indexer) -> None:
        super().__init__()
        self.embedder = embedder
        self.bilm = bilm
        self.indexer = indexer

    @property
    def n_layers(self) -> int:
        """Number L + 1 of layers in the outputs: the embedding and each LSTM."""
        return 1 + len(self.bilm.forward_layers)

    def forward(self, ids: Tensor) -> Activations:
        """Return the activations of a batch.

        Parameters
        ----------
        ids : (B, T, C) character ids, or (B, T) token ids; integers
            As `indexer` gives them: without the borders, and 0 after a sentence's last word.

        Raises
        ------
        ValueError
            The ids have another shape, or 0 between words.
        """
        mask = self._mask(ids)
        if not len(ids):
            return Activations(self._nothing(ids), mask)
        framed = with_borders(ids, mask.sum(1), self.indexer.begin, self.indexer.end)
        B, T = framed.shape[:2]
        # places in the padded batch, packed step by step: nothing is computed for padding
        places, *packing = pack_padded_sequence(
            torch.arange(B * T, device=ids.device).view(B, T),
            (mask.sum(1) + 2).cpu(),
            batch_first=True,
            enforce_sorted=False,
        )
        embedded = self.embedder(framed.flatten(0, 1).index_select(0, places))  # (words, P)
        outputs = self.bilm(PackedSequence(embedded, *packing))
        layers = torch.stack([embedded.repeat(1, self.bilm.directions), *outputs])
        padded = layers.new_zeros(len(layers), B * T, layers.shape[-1])
        padded = padded.index_copy(1, places, layers).view(len(layers), B, T, -1)
        return Activations(padded[:, :, 1:-1].masked_fill(~mask[..., None], 0), mask)

    def embed(self, sentences: Sequence[Sequence[str]], *, batch_size: int = 64) -> list[Tensor]:
        """Return the activations (L + 1, words, 2P) of each sentence, given as a list of words.

        There are gradients in training mode only. A stateful ELMo takes the sentences in their
        order; another one puts those of similar length into a batch.

        Raises
        ------
        TypeError
            A sentence is a text and not a list of words.
        ValueError
            `batch_size` is below 1.
        """
        if isinstance(sentences, str) or any(isinstance(s, str) for s in sentences):
            raise TypeError("a sentence is a list of words: split the text first")
        if batch_size < 1:
            raise ValueError(f"a batch of {batch_size} sentences")
        order = list(range(len(sentences)))
        if not self.bilm.stateful:
            order.sort(key=lambda i: len(sentences[i]), reverse=True)
        device = next(self.parameters()).device
        found: dict[int, Tensor] = {}
        with torch.set_grad_enabled(self.training and torch.is_grad_enabled()):
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                ids = self.indexer.batch([sentences[i] for i in rows])
                layers = self(ids.to(device)).layers
                for row, i in enumerate(rows):
                    # a copy: a view would keep the whole batch in memory
                    found[i] = layers[:, row, : len(sentences[i])].clone()
        return [found[i] for i in range(len(sentences))]

    def reset(self) -> None:
        """Forget the states of a stateful ELMo, so that the next batch starts from zeros."""
        self.bilm.reset()

    def extra_repr(self) -> str:
        """Return sizes, and what the ids are of."""
        read = "characters" if self.indexer.begin.ndim else "tokens"
        return f"reads {read}, layers={self.n_layers}, width={self.bilm.width}"

    def _mask(self, ids: Tensor) -> Tensor:
        wanted = self.indexer.begin.shape
        if ids.ndim != 2 + len(wanted) or ids.shape[2:] != wanted:
            shape = ", ".join(["B", "T", *map(str, wanted)])
            raise ValueError(f"ids of shape {tuple(ids.shape)}, where ({shape}) is wanted")
        mask = (ids > 0).any(-1) if ids.ndim == 3 else ids > 0
        if (mask[:, 1:] & ~mask[:, :-1]).any():
            raise ValueError("ids of padding (0) between words")
        return mask

    def _nothing(self, ids: Tensor) -> Tensor:
        first = next(self.parameters())
        return first.new_zeros(self.n_layers, 0, ids.shape[1], self.bilm.width)


def with_borders(ids: Tensor, lengths: Tensor, begin: Tensor, end: Tensor) -> Tensor:
    """Return ids (B, T + 2, ...) with `begin` before and `end` after the words of each sentence.

    Parameters
    ----------
    ids : (B, T) or (B, T, C), integers
    lengths : (B,)
        Words of each.
    begin, end : () or (C,)
    """
    B, T = ids.shape[:2]
    framed = ids.new_zeros(B, T + 2, *ids.shape[2:], dtype=torch.long)
    framed[:, 1:-1] = ids
    framed[:, 0] = begin.to(ids.device)
    framed[torch.arange(B, device=ids.device), lengths + 1] = end.to(ids.device)
    return framed


def load_elmo(
    path: str | Path,
    *,
    options: str | Path | None = None,
    vocab: str | Path | None = None,
    embeddings: str | Path | None = None,
    stateful: bool = False,
    device: str | torch.device = "cpu",
) -> Elmo:
    """Load an ELMo, ready to embed: in evaluation mode and float32.

    Parameters
    ----------
    path : path
        An HDF5 file in bilm-tf's layout, or an artefact made of one.
    options : path, optional
        The model's options.json; the one beside the weights, or in the artefact, if not given.
    vocab : path, optional
        The vocabulary file of a model that reads whole tokens; models that read characters need
        none and ignore it.
    embeddings : path, optional
        An HDF5 file with the dataset ``embedding``, or an artefact made of one, for a model that
        reads whole tokens and does not hold it. With it a model that has characters reads tokens.
    stateful : bool
        Whether LSTM states go from batch to batch, as in the original.
    device : str or torch.device

    Raises
    ------
    CheckpointError, ManifestMismatchError
        A file can't be read.
    LayoutError
        It is no ELMo, or its shapes, options and vocabulary don't go together.
    """
    path = Path(path)
    with Opened(path) as opened:
        said = read_options(options_path(opened.facts, options))
        reader = PartsReader(opened)
        cells = reader.cells()
        takes = shape_of(cells["forward"][0].wi)[1]
        embedder: nn.Module
        indexer: Indexer
        if reader.has_characters and embeddings is None:
            characters = reader.characters()
            check_options(said, cells, characters, path)
            embedder, indexer = _by_characters(characters, said, takes, path)
        else:
            check_options(said, cells, None, path)
            weight = reader.tokens() if embeddings is None else _tokens_of(Path(embeddings))
            embedder, indexer = _by_tokens(weight, vocab, takes, Path(embeddings or path))
    return Elmo(embedder, _bilm(cells, said, stateful), indexer).to(device).eval()


def _by_characters(
    parts: CharacterParts, options: ElmoOptions, takes: int, path: Path
) -> tuple[nn.Module, Indexer]:
    said = options.char_cnn
    if said is None:
        raise LayoutError("reads characters, and its options have no char_cnn", path=path)
    convolutions = []
    for weight, bias in parts.convolutions:
        filters, d, width = weight.shape
        if width > said.max_characters_per_token:
            raise LayoutError(
                f"has filters of {width} characters, and words of {said.max_characters_per_token}",
                path=path,
            )
        convolution = nn.Conv1d(d, filters, width, device="meta")
        convolution.weight, convolution.bias = nn.Parameter(weight), nn.Parameter(bias)
        convolutions.append(convolution)
    gives = sum(len(bias) for _, bias in parts.convolutions)
    projection = None
    if parts.projection is not None:
        gives = len(parts.projection.bias)
        projection = linear_of(parts.projection.weight, parts.projection.bias)
    if gives != takes:
        raise LayoutError(f"embeds words as {gives} values, and its LSTMs take {takes}", path=path)
    highways = [
        Highway(linear_of(carry.weight, carry.bias), linear_of(transform.weight, transform.bias))
        for carry, transform in parts.highways
    ]
    embedding = embedding_of(parts.embedding)
    cnn = CharacterCNN(embedding, convolutions, said.activation, highways, projection)
    return cnn, CharacterIds(said.max_characters_per_token)


def _tokens_of(path: Path) -> Weight:
    with Opened(path) as opened:
        return PartsReader(opened).tokens()


def _by_tokens(
    weight: Weight, vocab: str | Path | None, takes: int, path: Path
) -> tuple[nn.Module, Indexer]:
    n, gives = shape_of(weight)
    if gives != takes:
        raise LayoutError(f"embeds words as {gives} values, and the LSTMs take {takes}", path=path)
    if vocab is None:
        raise CheckpointError(
            "is a model that reads whole tokens, by a vocabulary",
            path=path,
            hint="give the vocabulary file, a word a line, as vocab=",
        )
    indexer = TokenIds(Path(vocab))
    if indexer.size != n:
        raise CheckpointError(
            f"has {indexer.size} words, and the model has {n}",
            path=vocab,
            hint="the vocabulary file that the model was trained with, a word a line",
        )
    return embedding_of(weight), indexer


def _bilm(cells: Mapping[str, Sequence[CellParts]], options: ElmoOptions, stateful: bool) -> BiLM:
    said = options.lstm
    stacks = {
        direction: [
            ProjectedLSTM(
                cell.wi,
                cell.wh,
                cell.bias,
                cell.proj,
                cell_clip=said.cell_clip,
                proj_clip=said.proj_clip,
                reverse=direction == "backward",
            )
            for cell in stack
        ]
        for direction, stack in cells.items()
    }
    return BiLM(
        stacks["forward"],
        stacks.get("backward", []),
        skip_connections=said.use_skip_connections,
        stateful=stateful,
    )
