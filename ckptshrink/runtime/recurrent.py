"""What stand-ins for torch's recurrent layers have in common: how weights are named and held."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ckptshrink.errors import LayoutError, RankError
from ckptshrink.runtime import weights
from ckptshrink.runtime.weights import LowRank, Weight, held, rank_of

_KINDS: Final = ("weight_ih", "weight_hh", "weight", "weight_hr")
_SHOWN: Final[Mapping[str, Any]] = {
    "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False,
    "proj_size": 0,
}  # fmt: skip

Rnn = TypeVar("Rnn", bound="FactoredRNN")
Dense = TypeVar("Dense", bound=nn.RNNBase)


class Runner(Protocol):
    """What runs one direction of one layer."""

    def forget(self) -> None:
        """Let go of what was prepared from the weights."""
        ...


class FactoredRNN(nn.Module):
    """Base of `FactoredLSTM` and `FactoredGRU`.

    Weights have torch's names. Each is a parameter, or a pair whose parameters are ``NAME.U`` and
    ``NAME.V``.
    """

    _runners: Sequence[Runner]

    def _configure(self, model: nn.RNNBase, runners: Sequence[Runner]) -> None:
        """Take sizes and settings from a model, whose weights don't matter."""
        self.input_size: int = model.input_size
        self.hidden_size: int = model.hidden_size
        self.num_layers: int = model.num_layers
        self.bias: bool = model.bias
        self.batch_first: bool = model.batch_first
        self.dropout: float = model.dropout
        self.bidirectional: bool = model.bidirectional
        self.proj_size: int = model.proj_size
        self._directions = 2 if model.bidirectional else 1
        self._runners = runners

    def _hold(self, name: str, weight: Weight) -> None:
        setattr(self, name, held(weight))

    def _ends(self) -> Iterator[str]:
        """Yield how the names of each layer and direction end, in torch's order."""
        for layer in range(self.num_layers):
            for suffix in ("", "_reverse")[: self._directions]:
                yield f"_l{layer}{suffix}"

    def _weights(self) -> Iterator[tuple[str, Weight]]:
        for end in self._ends():
            for kind in _KINDS:
                if hasattr(self, kind + end):
                    yield kind + end, getattr(self, kind + end)

    def _flat(self) -> list[Tensor]:
        """Return what torch calls the flat weights, multiplied back; differentiable."""
        raise NotImplementedError

    def _given_to(self, model: Dense) -> Dense:
        """Copy the weights, multiplied back, to a dense module, and return it."""
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), self._flat(), strict=True):
                parameter.copy_(value)
        model.train(self.training)
        return model

    def _check_input(self, x: Tensor) -> None:
        """Check what torch's layer checks, and say it as torch does."""
        dtype = next(self.parameters()).dtype
        if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(
                f"RNN input dtype ({x.dtype}) does not match weight dtype ({dtype}). "
                f"Convert input: input.to({dtype}), or convert model: model.to({x.dtype})"
            )
        if x.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, "
                f"got {x.shape[-1]}"
            )
        if x.shape[0] == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")

    def _wants_gradients(self, *tensors: Tensor) -> bool:
        given = (*tensors, *self.parameters())
        return torch.is_grad_enabled() and any(t.requires_grad for t in given)

    def _drops(self) -> bool:
        """Whether dropout comes between layers."""
        return self.training and self.dropout > 0 and self.num_layers > 1

    def _forget(self) -> None:
        for runner in self._runners:
            runner.forget()

    def _apply(self: Rnn, fn: Any, recurse: bool = True) -> Rnn:
        # to(), half() and the like: what was prepared would keep the old weights in memory
        self._forget()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def train(self: Rnn, mode: bool = True) -> Rnn:
        """Set the mode, and let go of what inference prepared from the weights."""
        self._forget()
        super().train(mode)
        return self

    def flatten_parameters(self) -> None:
        """Do nothing: here for code that calls it on torch's own layers."""

    def extra_repr(self) -> str:
        """Return what torch's own layer shows, and each weight's rank."""
        said = [f"{self.input_size}, {self.hidden_size}"]
        for name, default in _SHOWN.items():
            if getattr(self, name) != default:
                said.append(f"{name}={getattr(self, name)}")
        ranks = [f"{name}={rank_of(weight) or 'dense'}" for name, weight in self._weights()]
        return ", ".join(said) + f", ranks({', '.join(ranks)})"


def wanted_ranks(
    names: Sequence[str],
    ranks: Mapping[str, int] | None,
    rank_ih: int | None,
    rank_hh: int | None,
    *,
    others: Sequence[str] = (),
) -> dict[str, int]:
    """Return the wanted rank of each weight that is to be a pair, by name.

    Parameters
    ----------
    names : sequence of str
        Of the weights of torch's layer.
    others : sequence of str
        Names that `ranks` may have beside these.

    Raises
    ------
    RankError
        A name is none of them.
    """
    wanted = dict(ranks or {})
    if unknown := [name for name in wanted if name not in names and name not in others]:
        raise RankError(f"has no weight {unknown[0]!r}; there are {', '.join(names)}")
    for name in names:
        for kind, rank in (("weight_ih_", rank_ih), ("weight_hh_", rank_hh)):
            if name.startswith(kind) and rank is not None:
                wanted.setdefault(name, rank)
    return wanted


def weight_names(model: nn.RNNBase) -> list[str]:
    """Return the names of a torch layer's weights, without its biases."""
    return [name for name, _ in model.named_parameters() if name.startswith("weight")]


def factorized(name: str, W: Tensor, r: int) -> LowRank:
    """Return the best pair of a rank; a rank out of range is an error that names the weight."""
    _check_rank(name, r, *W.shape)
    return weights.factorized(W, r)


def drawn(shape: Sequence[int], bound: float, device: Any, dtype: Any) -> Tensor:
    """Return values uniform within a bound on either side of 0."""
    return torch.empty(tuple(shape), device=device, dtype=dtype).uniform_(-bound, bound)


def drawn_pair(
    name: str, shape: tuple[int, int], r: int, bound: float, device: Any, dtype: Any
) -> LowRank:
    """Return a random pair whose product has the variance of values drawn within a bound.

    Raises
    ------
    RankError
        The rank is out of range; names the weight.
    """
    m, n = shape
    _check_rank(name, r, m, n)
    side = math.sqrt(3) * (bound**2 / 3 / r) ** 0.25
    return LowRank(drawn((m, r), side, device, dtype), drawn((r, n), side, device, dtype))


def check_shapes(
    kind: str, want: Mapping[str, tuple[int, ...]], given: Mapping[str, Weight]
) -> None:
    """Check that weights are those that a layer of their sizes has.

    Raises
    ------
    LayoutError
        One is missing, or is too many, or has another shape.
    """
    got = {name: tuple(weight.shape) for name, weight in given.items()}
    for name in {**want, **got}:
        if want.get(name) != got.get(name):
            raise LayoutError(
                f"is {got.get(name, 'missing')}, and the {kind} of these sizes has "
                f"{want.get(name, 'no such weight')}",
                tensor=name,
            )


def _check_rank(name: str, r: int, m: int, n: int) -> None:
    if not 1 <= r <= min(m, n):
        raise RankError(f"{name}: rank {r} is not within 1 .. {min(m, n)} of a {m} x {n} weight")
