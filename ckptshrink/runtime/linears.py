"""The module for a weight, however the weight is held."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ckptshrink.runtime.linear import FactoredEmbedding, FactoredLinear
from ckptshrink.runtime.weights import LowRank, PerGate, Weight, as_parameter, dense


class StackedLinear(nn.Module):
    """Linear layers of one input whose outputs are joined, in order.

    Parameters
    ----------
    parts : iterable of nn.Module
        Each takes (..., n).
    """

    def __init__(self, parts: Iterable[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., sum of the parts' outputs) for x (..., n)."""
        return torch.cat([part(x) for part in self.parts], dim=-1)


def linear_of(weight: Weight, bias: Tensor | None = None) -> nn.Module:
    """Return the linear layer of a weight W (m, n): `nn.Linear`, or one that runs the pairs.

    A tensor is not copied.
    """
    if isinstance(weight, LowRank):
        return FactoredLinear(weight, bias)
    if isinstance(weight, PerGate):
        pairs = list(weight.pairs())
        biases: Sequence[Tensor | None] = [None] * len(pairs)
        if bias is not None:
            biases = [b.clone() for b in bias.chunk(len(pairs))]
        return StackedLinear(map(FactoredLinear, pairs, biases))
    return dense_linear(weight, bias)


def dense_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return the `nn.Linear` of a weight and a bias; they are not copied."""
    m, n = weight.shape
    layer = nn.Linear(n, m, bias is not None, device="meta")
    layer.weight = as_parameter(weight)
    if bias is not None:
        layer.bias = as_parameter(bias)
    return layer


def embedding_of(weight: Weight) -> nn.Module:
    """Return the embedding whose row 0 is zero, for padding, and whose others are a weight's rows.

    Parameters
    ----------
    weight : Tensor or LowRank
        (n, d), without the row of the padding.
    """
    if isinstance(weight, LowRank):
        padded = LowRank(_under_zeros(weight.U.detach()), weight.V)
        return FactoredEmbedding(padded, padding_idx=0)
    rows = _under_zeros(dense(weight))
    n, d = rows.shape
    return nn.Embedding(n, d, padding_idx=0, _weight=rows)


def _under_zeros(rows: Tensor) -> Tensor:
    return torch.cat([rows.new_zeros(1, rows.shape[1]), rows])
