"""Recurrent language models: loaded from a file, run, scored, generated from.

The families are those of salesforce/awd-lstm-lm (LSTM, GRU and QRNN, tied or not), fastai's, and
pytorch/examples' word_language_model: an encoder, a stack of one-directional layers, a decoder.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn

from ckptshrink.errors import LayoutError
from ckptshrink.runtime.gru import FactoredGRU
from ckptshrink.runtime.language_model_parts import Layer, output_size, parts_of
from ckptshrink.runtime.linear import FactoredEmbedding, FactoredLinear
from ckptshrink.runtime.lstm import FactoredLSTM
from ckptshrink.runtime.opened import Opened
from ckptshrink.runtime.products import Remembered
from ckptshrink.runtime.qrnn import QRNNLayer
from ckptshrink.runtime.split_softmax import SplitSoftmax, log_softmax
from ckptshrink.runtime.weights import LowRank, PerGate, Weight, rank_of

LayerState: TypeAlias = Any
"""(h, c) of an LSTM, h of a GRU, each (1, B, H); a QRNN's `QRNNState`."""

State: TypeAlias = Sequence[LayerState]
"""One state a layer, first layer first."""

_CHUNK_BYTES: Final = 32 << 20
"""Most that `score` makes at a time of logits, and of a layer's gates. At 32 MiB a chunk has some
hundred rows even for 50 000 words, so that the products are as quick as large ones."""


class LanguageModel(nn.Module):
    """A recurrent language model whose every weight may be dense or a pair.

    It is in evaluation mode after loading. Gradients work in both modes; the dropouts of AWD-LSTM
    (of embeddings, weights and layers) are no part of it and are not applied in training. Where no
    gradients are wanted, call it under `torch.no_grad`: only then are the factors of recurrent
    layers run as they are, which is quicker; `score` and `generate` do that themselves.

    Parameters
    ----------
    encoder : nn.Embedding or FactoredEmbedding
    rnns : iterable of FactoredLSTM, FactoredGRU or QRNNLayer
        Of one layer and one direction each, time first.
    decoder : nn.Linear or FactoredLinear
        Tied to the encoder if it holds the very same weight.
    split : SplitSoftmax, optional
        The clusters of a split softmax; without it there is one softmax over all words.
    unknown_splits : int
        Number of clusters that the checkpoint has without saying where they begin. The model runs,
        and anything that asks for a probability is an error.

    Attributes
    ----------
    cell : str
        ``"lstm"``, ``"gru"`` or ``"qrnn"``.
    vocab_size, embedding_dim : int
    hidden_sizes : tuple of int
        Of the output of each layer.
    output_size : int
        The last of them.
    n_layers : int
    """

    def __init__(
        self,
        encoder: nn.Embedding | FactoredEmbedding,
        rnns: Iterable[Layer],
        decoder: nn.Linear | FactoredLinear,
        split: SplitSoftmax | None = None,
        *,
        unknown_splits: int = 0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.rnns = nn.ModuleList(rnns)
        self.decoder = decoder
        self.split = split
        self.unknown_splits = unknown_splits
        self._product = Remembered()
        self.vocab_size = encoder.num_embeddings
        self.embedding_dim = encoder.embedding_dim
        self.hidden_sizes = tuple(output_size(layer) for layer in self._layers())
        self.output_size = self.hidden_sizes[-1]
        self.n_layers = len(self.hidden_sizes)
        first = self.rnns[0]
        kinds = (("lstm", FactoredLSTM), ("gru", FactoredGRU), ("qrnn", QRNNLayer))
        self.cell = next(name for name, kind in kinds if isinstance(first, kind))
        self.eval()

    @property
    def tied(self) -> bool:
        """Whether encoder and decoder have one weight."""
        return self.encoder.weight is self.decoder.weight

    def initial_state(self, batch: int) -> tuple[LayerState, ...]:
        """Return the state before any text: zeros."""
        like = next(self.parameters())
        states: list[LayerState] = []
        for layer in self._layers():
            if isinstance(layer, QRNNLayer):
                states.append(layer.initial_state(batch))
                continue
            h = like.new_zeros(1, batch, output_size(layer))
            if isinstance(layer, FactoredLSTM):
                states.append((h, like.new_zeros(1, batch, layer.hidden_size)))
            else:
                states.append(h)
        return tuple(states)

    def forward(
        self, tokens: Tensor, state: State | None = None
    ) -> tuple[Tensor, tuple[LayerState, ...]]:
        """Run a text.

        Parameters
        ----------
        tokens : (T, B), integer
        state : State, optional
            As an earlier call returned it; zeros if not given.

        Returns
        -------
        output : (T, B, E)
            Of the last layer.
        state : tuple
            One state a layer, for the text that follows.

        Raises
        ------
        ValueError
            `tokens` is not (T, B), or `state` has another number of layers.
        """
        if tokens.dim() != 2:
            raise ValueError(f"tokens are to be (T, B), and are {tuple(tokens.shape)}")
        if state is None:
            state = self.initial_state(tokens.shape[1])
        if len(state) != self.n_layers:
            raise ValueError(f"{len(state)} states, and {self.n_layers} layers")
        x = self.encoder(tokens)
        states: list[LayerState] = []
        for layer, before in zip(self.rnns, state, strict=True):
            x, after = layer(x, before)
            states.append(after)
        return x, tuple(states)

    def logits(self, output: Tensor) -> Tensor:
        """Return logits (..., V) of an output (..., E), without the clusters of a split softmax."""
        flat = self._decoded(output.flatten(0, -2))
        return flat.view(*output.shape[:-1], self.vocab_size)

    def log_probs(
        self, tokens: Tensor, state: State | None = None
    ) -> tuple[Tensor, tuple[LayerState, ...]]:
        """Return the log probability of every word after each step, and the state.

        Parameters
        ----------
        tokens, state
            As of `forward`.

        Returns
        -------
        log_probs : (T, B, V)
            In nats; float32 for a model of half precision.
        state : tuple

        Raises
        ------
        LayoutError
            Where the words of a split softmax are split is not known.
        """
        output, after = self(tokens, state)
        flat = self._log_probs(output.flatten(0, 1))
        return flat.view(*output.shape[:2], self.vocab_size), after

    def score(
        self, tokens: Tensor, targets: Tensor, state: State | None = None
    ) -> tuple[Tensor, tuple[LayerState, ...]]:
        """Return the negative log likelihood of the words that follow, in bounded memory.

        A text is run in parts of as many steps as fit; the result doesn't depend on them. No
        gradients.

        Parameters
        ----------
        tokens, targets : (T, B), integer
            Each target is the word after its token.
        state : State, optional
            As of `forward`.

        Returns
        -------
        nll : (), float64
            Sum over all targets, in nats; the perplexity is ``exp(nll / targets.numel())``.
        state : tuple

        Raises
        ------
        ValueError
            Shapes differ, or a target is no word of the vocabulary.
        LayoutError
            As of `log_probs`.
        """
        nll, after = self.score_words(tokens, targets, state)
        return nll.sum(), after

    def score_words(
        self, tokens: Tensor, targets: Tensor, state: State | None = None
    ) -> tuple[Tensor, tuple[LayerState, ...]]:
        """Return the negative log likelihood of each word that follows, in bounded memory.

        Parameters
        ----------
        tokens, targets, state
            As of `score`.

        Returns
        -------
        nll : (T, B), float64
            Of each target, in nats.
        state : tuple

        Raises
        ------
        ValueError, LayoutError
            As of `score`.
        """
        if tokens.shape != targets.shape or tokens.dim() != 2:
            raise ValueError(
                f"tokens {tuple(tokens.shape)} and targets {tuple(targets.shape)} are to be (T, B)"
            )
        self._check_words(targets)
        after = self.initial_state(tokens.shape[1]) if state is None else tuple(state)
        nll = torch.zeros(tokens.shape, dtype=torch.float64, device=tokens.device)
        if tokens.numel() == 0:
            return nll, after
        size = next(self.parameters()).element_size()
        rows = max(1, _CHUNK_BYTES // (4 * max(self.hidden_sizes) * size))
        steps = max(1, rows // tokens.shape[1])
        with torch.no_grad():
            for start in range(0, len(tokens), steps):
                part = slice(start, start + steps)
                output, after = self(tokens[part], after)
                found = self._log_likelihoods(output.flatten(0, 1), targets[part].flatten())
                nll[part] = -found.view_as(nll[part])
        return nll, after

    def generate(
        self,
        prompt: Sequence[int],
        n: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
        greedy: bool = False,
    ) -> list[int]:
        """Return the n words that the model puts after a prompt.

        Parameters
        ----------
        prompt : sequence of int
            At least one word.
        n : int
        temperature : float
            Log probabilities are divided by it before drawing.
        top_k : int, optional
            Draw among the k likeliest only.
        generator : torch.Generator, optional
            Source of randomness; torch's own if not given.
        greedy : bool
            Whether to take the likeliest word each time, drawing nothing.

        Raises
        ------
        ValueError
            The prompt is empty or has a word out of the vocabulary, or a number is out of range.
        LayoutError
            As of `log_probs`.
        """
        if not prompt:
            raise ValueError("the prompt is empty")
        if n < 0 or temperature <= 0 or (top_k is not None and top_k < 1):
            raise ValueError("n is to be 0 or more, temperature above 0, and top_k 1 or more")
        device = next(self.parameters()).device
        tokens = torch.tensor(list(prompt), dtype=torch.int64)
        self._check_words(tokens)
        made: list[int] = []
        with torch.no_grad():
            output, state = self(tokens[:, None].to(device))
            while len(made) < n:
                scores = self._log_probs(output[-1])[0]
                if greedy:
                    made.append(int(scores.argmax()))
                else:
                    made.append(_drawn(scores, temperature, top_k, generator))
                if len(made) < n:
                    output, state = self(torch.tensor([made[-1:]], device=device), state)
        return made

    def __repr__(self) -> str:
        """Return sizes, and which weights of each layer are pairs, and of what rank."""
        n_params = sum(p.numel() for p in self.parameters())
        lines = [f"LanguageModel({self.cell}, {self.vocab_size:,} words, {n_params:,} parameters"]
        lines.append(
            f"  encoder: {self.vocab_size} x {self.embedding_dim} {_said(self.encoder.weight)}"
        )
        width = self.embedding_dim
        for i, layer in enumerate(self._layers()):
            weights = ", ".join(f"{name} {_said(w)}" for name, w in _weights_of(layer))
            extra = f", window {layer.window}" if isinstance(layer, QRNNLayer) else ""
            lines.append(f"  rnns.{i}: {width} -> {self.hidden_sizes[i]}{extra}, {weights}")
            width = self.hidden_sizes[i]
        weight = "tied to the encoder" if self.tied else _said(self.decoder.weight)
        bias = "bias" if self.decoder.bias is not None else "no bias"
        lines.append(f"  decoder: {self.vocab_size} x {width} {weight}, {bias}")
        if self.split is not None:
            lines.append(f"  softmax: split at {list(self.split.splits)}")
        elif self.unknown_splits:
            lines.append(f"  softmax: split into {self.unknown_splits + 1}, not known where")
        return "\n".join([*lines, ")"])

    def _layers(self) -> list[Layer]:
        return list(self.rnns)  # type: ignore[arg-type]

    def _check_words(self, words: Tensor) -> None:
        if words.numel() == 0:
            return
        for word in (int(words.min()), int(words.max())):
            if not 0 <= word < self.vocab_size:
                raise ValueError(f"{word} is no word of a vocabulary of {self.vocab_size}")

    def _log_probs(self, hidden: Tensor) -> Tensor:
        """Return log probabilities (N, V) for (N, E)."""
        self._check_splits()
        if self.split is not None:
            return self.split.log_probs(hidden, self._logits_of, self.vocab_size)
        return log_softmax(self._decoded(hidden))

    def _log_likelihoods(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the targets' log probabilities (N,) in float64, for (N, E) and (N,)."""
        self._check_splits()
        rows = max(1, _CHUNK_BYTES // (self.vocab_size * max(4, hidden.element_size())))
        found = torch.empty(len(targets), dtype=torch.float64, device=hidden.device)
        for start in range(0, len(hidden), rows):
            some, wanted = hidden[start : start + rows], targets[start : start + rows]
            if self.split is not None:
                part = self.split.log_prob_of(some, wanted, self._logits_of, self.vocab_size)
            else:
                part = log_softmax(self._decoded(some)).gather(1, wanted[:, None])[:, 0]
            found[start : start + rows] = part
        return found

    def _decoded(self, hidden: Tensor) -> Tensor:
        """Return the decoder's outputs (N, V) for (N, E)."""
        if isinstance(self.decoder, nn.Linear):
            return self._product(hidden, self.decoder.weight, self.decoder.bias)
        y: Tensor = self.decoder(hidden)
        return y

    def _logits_of(self, hidden: Tensor, start: int, stop: int) -> Tensor:
        """Return the logits (N, stop - start) of a run of words for (N, E)."""
        decoder: Any = self.decoder
        rows = decoder.weight
        if isinstance(rows, LowRank):
            hidden, rows = nn.functional.linear(hidden, rows.V), rows.U
        bias = None if decoder.bias is None else decoder.bias[start:stop]
        return nn.functional.linear(hidden, rows[start:stop], bias)

    def _check_splits(self) -> None:
        if self.unknown_splits:
            raise LayoutError(
                f"its softmax is split into {self.unknown_splits + 1} clusters of words, and the "
                "checkpoint does not say where",
                hint="load it with splits=[...], the numbers that its training gave the criterion",
            )


def load_language_model(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    splits: Sequence[int] | None = None,
) -> LanguageModel:
    """Load a language model from a source checkpoint or an artefact; what is factored stays so.

    Parameters
    ----------
    path : path
        An artefact's folder, or a checkpoint: ``[model, criterion, optimizer]`` or a bare model as
        torch pickles it, a state dict, safetensors. No code in it is run.
    device : device
    dtype : torch.dtype, optional
        Of all weights. By default the one that all of the file's own can be had in: float32 where
        pairs were stored in float16 beside a float32 bias.
    splits : sequence of int, optional
        Where the vocabulary of a split softmax is split, as its training gave it to
        ``SplitCrossEntropyLoss`` (without the 0 in front). No checkpoint holds them. If not given,
        they are those of awd-lstm-lm's training script, if there are that many for this size of
        vocabulary; if not, the model has outputs and no probabilities.

    Returns
    -------
    LanguageModel
        In evaluation mode.

    Raises
    ------
    LayoutError
        It is no language model of these families; the message says what it lacks.
    CheckpointError, ManifestMismatchError
        It can't be read.
    """
    path = Path(path)
    try:
        with Opened(path) as opened:
            parts = parts_of(opened, splits)
    except LayoutError as error:
        error.path = error.path or str(path)
        raise
    model = LanguageModel(
        parts.encoder, parts.layers, parts.decoder, parts.split,
        unknown_splits=parts.unknown_splits,
    )  # fmt: skip
    if dtype is None:
        dtype = _common_dtype(model.parameters())
    return model.to(device=device, dtype=dtype)


def _common_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    found = {tensor.dtype for tensor in tensors}
    common = found.pop()
    for dtype in found:
        common = torch.promote_types(common, dtype)
    return common


def _weights_of(layer: Layer) -> list[tuple[str, Weight]]:
    """Return the weight matrices of a layer by what they are called."""
    if isinstance(layer, QRNNLayer):
        return [("W", layer.linear.weight)]
    names = {
        "Wi": "weight_ih_l0",
        "Wh": "weight_hh_l0",
        "[Wi, Wh]": "weight_l0",
        "P": "weight_hr_l0",
    }
    return [(said, getattr(layer, name)) for said, name in names.items() if hasattr(layer, name)]


def _said(weight: Weight) -> str:
    if isinstance(weight, PerGate):
        return "ranks " + "+".join(str(pair.rank) for pair in weight.pairs())
    rank = rank_of(weight)
    return "dense" if rank is None else f"rank {rank}"


def _drawn(
    scores: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None
) -> int:
    """Draw a word by log probabilities (V,)."""
    words = None
    if top_k is not None and top_k < len(scores):
        scores, words = scores.topk(top_k)
    chances = (scores / temperature).softmax(dim=0)
    if generator is not None:
        chances = chances.to(generator.device)
    drawn = int(torch.multinomial(chances, 1, generator=generator))
    return drawn if words is None else int(words[drawn])
