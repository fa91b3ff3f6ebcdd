"""Weights as a module holds them: dense, a low-rank pair, or a pair a gate.

A pair is a module of its own whose parameters are `U` and `V`, so that a weight ``T`` of a model
becomes ``T.U`` and ``T.V`` in its state dict: the names that an artefact stores.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ckptshrink.errors import LayoutError, RankError
from ckptshrink.linalg.factors import Options
from ckptshrink.linalg.svd import svd


class Product(nn.Module):
    """A weight W (m, n) held as factors, which torch's functions take in place of a tensor.

    A language model's code reads the weight of its embedding for the softmax, and AWD-LSTM's for
    its dropout: ``F.linear(h, self.encoder.weight)``. `F.linear` and `F.embedding` then run the
    factors; any other function is given W multiplied back. Nothing can be written through it.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the dense weight, (m, n)."""
        raise NotImplementedError

    @property
    def rank(self) -> int:
        """Columns of the left factors, summed."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the factors."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the factors."""
        return next(self.parameters()).device

    def size(self, dim: int | None = None) -> Any:
        """Return the shape of the dense weight, or one side of it."""
        return torch.Size(self.shape) if dim is None else self.shape[dim]

    def dense(self) -> Tensor:
        """Return W (m, n); differentiable."""
        raise NotImplementedError

    def rows(self, tokens: Tensor, padding_idx: int | None = None) -> Tensor:
        """Return the rows of W (..., n) at integer tokens (...), as `F.embedding` does."""
        return nn.functional.embedding(tokens, self.dense(), padding_idx)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a function of torch that was called with a weight held as factors."""
        kwargs = {} if kwargs is None else kwargs
        if func is nn.functional.linear:
            return _linear(*args, **kwargs)
        if func is nn.functional.embedding:
            return _embedding(*args, **kwargs)
        name = getattr(func, "__name__", "it")
        in_place = (name.endswith("_") and not name.endswith("__")) or kwargs.get("inplace")
        target = next(iter((*args, *kwargs.values())), None) if in_place else kwargs.get("out")
        if isinstance(target, Product):
            raise TypeError(f"{name}: a weight held as factors isn't written to; change U and V")
        return func(*_multiplied(tuple(args)), **{k: _multiplied(v) for k, v in kwargs.items()})


def _linear(input: Any, weight: Any, bias: Any = None) -> Tensor:
    return apply(weight, _multiplied(input), _multiplied(bias))


def _embedding(
    input: Tensor,
    weight: Any,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    if max_norm is None and not scale_grad_by_freq:
        rows: Tensor = weight.rows(input, padding_idx)
        return rows
    return nn.functional.embedding(
        input, weight.dense(), padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse
    )


def _multiplied(value: Any) -> Any:
    """Return a function's argument with every weight in it multiplied back."""
    if isinstance(value, Product):
        return value.dense()
    if type(value) in {list, tuple}:
        return type(value)(_multiplied(item) for item in value)
    return value


class LowRank(Product):
    """A weight W (m, n) as the product ``U @ V``.

    Parameters
    ----------
    U : (m, r)
    V : (r, n)
        Parameters are used as they are, so that two weights can share one; tensors become
        parameters.

    Raises
    ------
    RankError
        The inner sides differ.

    Examples
    --------
    >>> W = LowRank(torch.ones(4, 1), torch.ones(1, 3))
    >>> tuple(W.dense().shape), tuple(W(torch.ones(2, 3)).shape)
    ((4, 3), (2, 4))
    """

    def __init__(self, U: Tensor, V: Tensor) -> None:
        super().__init__()
        if U.ndim != 2 or V.ndim != 2 or U.shape[1] != V.shape[0]:
            raise RankError(f"{tuple(U.shape)} and {tuple(V.shape)} are no pair U (m, r), V (r, n)")
        self.U, self.V = as_parameter(U), as_parameter(V)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the dense weight, (m, n)."""
        return self.U.shape[0], self.V.shape[1]

    @property
    def rank(self) -> int:
        """Inner side of the pair."""
        return self.V.shape[0]

    @property
    def T(self) -> Tensor:
        """W transposed, (n, m), multiplied back; differentiable."""
        return self.dense().T

    def t(self) -> Tensor:
        """Return W transposed, (n, m), multiplied back; differentiable."""
        return self.dense().T

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return ``x @ W.T + bias`` for x (..., n), without making W."""
        return nn.functional.linear(nn.functional.linear(x, self.V), self.U, bias)

    def dense(self) -> Tensor:
        """Return W (m, n); differentiable."""
        return self.U @ self.V

    def rows(self, tokens: Tensor, padding_idx: int | None = None) -> Tensor:
        """Return the rows of W (..., n) at integer tokens (...), without making W.

        Places that hold `padding_idx` give no gradient, to V neither: their rows are outputs of
        `nn.Embedding` that it doesn't learn from.
        """
        rows = nn.functional.embedding(tokens, self.U) @ self.V
        if padding_idx is None or not rows.requires_grad:
            return rows
        padding = (tokens == padding_idx % self.U.shape[0]).unsqueeze(-1)
        return torch.where(padding, rows.detach(), rows)

    def extra_repr(self) -> str:
        """Return shape and rank."""
        m, n = self.shape
        return f"{m}x{n}, rank={self.rank}"


class PerGate(Product):
    """A weight of stacked gates, each a pair of its own: submodules named after the gates.

    Parameters
    ----------
    pairs : mapping of str to LowRank
        By gate letter, in the order in which the gates are stacked.
    """

    def __init__(self, pairs: dict[str, LowRank]) -> None:
        super().__init__()
        self.gates = "".join(pairs)
        for gate, pair in pairs.items():
            self.add_module(gate, pair)

    def pairs(self) -> Iterator[LowRank]:
        """Yield the pairs in order."""
        for gate in self.gates:
            yield self.get_submodule(gate)  # type: ignore[misc]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the dense weight, (m, n)."""
        shapes = [pair.shape for pair in self.pairs()]
        return sum(m for m, _ in shapes), shapes[0][1]

    @property
    def rank(self) -> int:
        """Sum of the gates' ranks."""
        return sum(pair.rank for pair in self.pairs())

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return ``x @ W.T + bias`` for x (..., n), without making W."""
        y = torch.cat([pair(x) for pair in self.pairs()], dim=-1)
        return y if bias is None else y + bias

    def dense(self) -> Tensor:
        """Return W (m, n); differentiable."""
        return torch.cat([pair.dense() for pair in self.pairs()])


def as_parameter(tensor: Tensor) -> nn.Parameter:
    """Return a tensor as a parameter; one that is a parameter as it is, since it may be shared."""
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor)


def factorized(W: Tensor, r: int) -> LowRank:
    """Return the best pair of a rank, by truncated SVD.

    Raises
    ------
    RankError
        The rank is not within 1 .. min(m, n).
    """
    factors = svd(W.detach(), r, Options())
    return LowRank(factors.U, factors.V)


Weight: TypeAlias = Tensor | LowRank | PerGate


def held(weight: Weight) -> Weight:
    """Return a weight as a module holds it: a tensor as a parameter, a pair as it is."""
    return as_parameter(weight) if isinstance(weight, Tensor) else weight


def dense(weight: Weight) -> Tensor:
    """Return a weight as a tensor (m, n)."""
    return weight if isinstance(weight, Tensor) else weight.dense()


def apply(weight: Weight, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x @ W.T + bias`` for x (..., n); differentiable."""
    if isinstance(weight, Tensor):
        return nn.functional.linear(x, weight, bias)
    y: Tensor = weight(x, bias)
    return y


def shape_of(weight: Weight) -> tuple[int, int]:
    """Return (m, n)."""
    m, n = weight.shape
    return m, n


def rank_of(weight: Weight) -> int | None:
    """Return the rank of a factored weight, None of a dense one."""
    return None if isinstance(weight, Tensor) else weight.rank


def tensors_of(weight: Weight | None) -> tuple[Tensor, ...]:
    """Return what a weight is stored as."""
    if weight is None:
        return ()
    if isinstance(weight, Tensor):
        return (weight,)
    if isinstance(weight, LowRank):  # `parameters` takes 6 µs, and this is asked at every call
        return weight.U, weight.V
    return tuple(t for pair in weight.pairs() for t in (pair.U, pair.V))


def pair_of(weight: LowRank | PerGate) -> tuple[Tensor, Tensor]:
    """Return U (m, r) and V (r, n) of a pair; of pairs a gate, U block by block. No gradients."""
    if isinstance(weight, LowRank):
        return weight.U.detach(), weight.V.detach()
    pairs = list(weight.pairs())
    U: Tensor = torch.block_diag(*(p.U.detach() for p in pairs))  # type: ignore[no-untyped-call]
    return U, torch.cat([pair.V.detach() for pair in pairs])


def reordered(weight: Weight, gates: str, wanted: str) -> Weight:
    """Return a weight of stacked gates, or a bias (4H,), with its gates in another order.

    Parameters
    ----------
    weight : Weight
        Rows are gates of equal size in the order `gates`.
    gates, wanted : str
        One letter a gate; TensorFlow's ``j`` is the same gate as ``g``.

    Raises
    ------
    LayoutError
        They aren't the same gates, or the rows can't be divided by them.
    """
    if gates == wanted:
        return weight
    given = gates.replace("j", "g")
    if sorted(given) != sorted(wanted) or weight.shape[0] % len(wanted):
        raise LayoutError(
            f"{weight.shape[0]} rows of gates {gates!r} can't be put in the order {wanted!r}"
        )
    order = [given.index(gate) for gate in wanted]
    if isinstance(weight, PerGate):
        pairs = list(weight.pairs())
        return PerGate({gate: pairs[i] for gate, i in zip(wanted, order, strict=True)})
    if isinstance(weight, LowRank):
        rows = _blocks_in_order(weight.U, order)
        return LowRank(nn.Parameter(rows, weight.U.requires_grad), weight.V)
    return _blocks_in_order(weight, order)


def _blocks_in_order(rows: Tensor, order: list[int]) -> Tensor:
    blocks = rows.detach().chunk(len(order))
    return torch.cat([blocks[i] for i in order])
