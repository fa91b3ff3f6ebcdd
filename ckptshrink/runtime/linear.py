"""Drop-ins for `nn.Linear` and `nn.Embedding` whose weight is a low-rank pair."""

import torch
from torch import Tensor, nn

from ckptshrink.errors import LayoutError
from ckptshrink.runtime.weights import LowRank, PerGate, as_parameter, factorized


class FactoredLinear(nn.Module):
    """A linear layer ``y = (x V') U' + bias``.

    State-dict names are ``weight.U``, ``weight.V`` and ``bias``: those of a compressed
    `nn.Linear` in an artefact.

    Parameters
    ----------
    weight : LowRank or PerGate
        Of shape (out_features, in_features).
    bias : (out_features,), optional
        A parameter is used as it is, so that two layers can share it.

    Examples
    --------
    >>> layer = FactoredLinear.from_linear(nn.Linear(64, 32), rank=4)
    >>> tuple(layer(torch.ones(2, 64)).shape), sum(p.numel() for p in layer.parameters())
    ((2, 32), 416)
    """

    bias: nn.Parameter | None

    def __init__(self, weight: LowRank | PerGate, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = weight
        self.register_parameter("bias", None if bias is None else as_parameter(bias))

    @classmethod
    def from_linear(cls, linear: nn.Linear, rank: int) -> "FactoredLinear":
        """Factorize a linear layer by truncated SVD; its bias parameter is shared.

        Raises
        ------
        RankError
            The rank is not within 1 .. min(out_features, in_features).
        NonFiniteError
            The weight has a NaN or an infinity.
        """
        layer = cls(_factorized(linear.weight, rank), linear.bias)
        return layer.train(linear.training)

    @property
    def rank(self) -> int:
        """Rank of the weight."""
        return self.weight.rank

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out_features) for x (..., in_features)."""
        y: Tensor = self.weight(x, self.bias)
        return y

    def dense(self) -> nn.Linear:
        """Return the layer multiplied back, with tensors of its own."""
        layer = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        layer.weight = _multiplied(self.weight)
        if self.bias is not None:
            layer.bias = nn.Parameter(self.bias.detach().clone(), self.bias.requires_grad)
        return layer.train(self.training)

    def extra_repr(self) -> str:
        """Return sides and whether there is a bias; the rank is in the weight's own line."""
        bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}"


class FactoredEmbedding(nn.Module):
    """An embedding whose row i is ``U[i] @ V``; state-dict names ``weight.U`` and ``weight.V``.

    Parameters
    ----------
    weight : LowRank or PerGate
        Of shape (num_embeddings, embedding_dim).
    padding_idx : int, optional
        Token whose outputs give no gradient; negative from the end. Its row is what it is: zero
        where it was zero in the matrix that was factorized.

    Raises
    ------
    LayoutError
        `padding_idx` is no row.

    Examples
    --------
    >>> layer = FactoredEmbedding.from_embedding(nn.Embedding(100, 16), rank=2)
    >>> tuple(layer(torch.tensor([[1, 2, 3]])).shape)
    (1, 3, 16)
    """

    # What code that looks its weight up by itself asks an nn.Embedding for: AWD-LSTM's does. The
    # values are those of an embedding without these options, the only one there is here.
    max_norm = None
    norm_type = 2.0
    scale_grad_by_freq = False
    sparse = False

    def __init__(self, weight: LowRank | PerGate, padding_idx: int | None = None) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = weight.shape
        if padding_idx is not None:
            if not -self.num_embeddings <= padding_idx < self.num_embeddings:
                raise LayoutError(
                    f"padding_idx {padding_idx} is none of {self.num_embeddings} rows"
                )
            padding_idx %= self.num_embeddings
        self.padding_idx = padding_idx
        self.weight = weight

    @classmethod
    def from_embedding(cls, embedding: nn.Embedding, rank: int) -> "FactoredEmbedding":
        """Factorize an embedding by truncated SVD.

        Raises
        ------
        RankError
            The rank is not within 1 .. min(num_embeddings, embedding_dim).
        LayoutError
            It has an option that a pair has no equal for: see `refusal`.
        """
        if why := refusal(embedding):
            raise LayoutError(why)
        pair, padding = _factorized(embedding.weight, rank), embedding.padding_idx
        if padding is not None and not torch.any(embedding.weight[padding]):
            with torch.no_grad():
                pair.U[padding] = 0  # it is but for rounding, and a rest would move with V
        layer = cls(pair, padding)
        return layer.train(embedding.training)

    @property
    def rank(self) -> int:
        """Rank of the weight."""
        return self.weight.rank

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (..., embedding_dim) for integer tokens (...)."""
        return self.weight.rows(tokens, self.padding_idx)

    def dense(self) -> nn.Embedding:
        """Return the embedding multiplied back, with a tensor of its own."""
        n, d = self.weight.shape
        layer = nn.Embedding(n, d, self.padding_idx, device="meta")
        layer.weight = _multiplied(self.weight)
        return layer.train(self.training)

    def extra_repr(self) -> str:
        """Return sides and padding; the rank is in the weight's own line."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"


def refusal(embedding: nn.Embedding) -> str | None:
    """Return why an embedding can't become a pair, or None if it can.

    `max_norm` rewrites rows of the dense weight as they are used; `scale_grad_by_freq` and `sparse`
    are about gradients by row, which V doesn't have.
    """
    for option in ("max_norm", "scale_grad_by_freq", "sparse"):
        value = getattr(embedding, option)
        if value is not None and value is not False:
            return f"an embedding with {option}={value} works on rows of a dense weight"
    return None


def _factorized(weight: Tensor, rank: int) -> LowRank:
    return factorized(weight, rank).requires_grad_(weight.requires_grad)


def _multiplied(weight: LowRank | PerGate) -> nn.Parameter:
    learns = any(factor.requires_grad for factor in weight.parameters())
    return nn.Parameter(weight.dense().detach(), learns)
