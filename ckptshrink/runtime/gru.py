"""A drop-in for `nn.GRU` whose weights may be low-rank pairs."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ckptshrink.errors import LayoutError, RankError
from ckptshrink.linalg.factors import Options
from ckptshrink.linalg.svd import svd
from ckptshrink.runtime.gru_steps import GRURecurrence, GRUWeights
from ckptshrink.runtime.weights import LowRank, Weight, dense, rank_of, shape_of

_SUFFIXES: Final = ("", "_reverse")
_OWN_LOOP: Final = frozenset({torch.float32, torch.float64})
"""Dtypes that the loop of this package runs; half precision is left to torch's kernel."""

_FEW_PRODUCTS: Final = 50_000
"""Products of a dense step below which torch's kernel is taken: the loop's calls then cost more
than its products save. At H = 128 and one sequence (49 152) both took 0.8 ms for 70 steps."""


class FactoredGRU(nn.Module):
    """A GRU with the arguments, inputs and outputs of `nn.GRU`, and weights that may be pairs.

    Every weight of `nn.GRU` is here under its own name: as a dense parameter ``weight_hh_l0``, or
    as a pair with the parameters ``weight_hh_l0.U`` (3H, r) and ``weight_hh_l0.V`` (r, H), which
    are the names in an artefact.

    In inference (no gradients wanted) on a CPU the factors are run as they are, unless the layer is
    so small that this doesn't pay. Otherwise the weights are multiplied back, inside the graph, and
    torch's own kernel runs them, so that dropout, packing and every gradient are `nn.GRU`'s.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional
        As of `nn.GRU`.
    ranks : mapping of str to int, optional
        By weight name: ``weight_ih_l0``, ``weight_hh_l1_reverse``.
    rank_ih, rank_hh : int, optional
        For all weights of that kind that `ranks` doesn't name.

    Raises
    ------
    RankError
        A rank is below 1 or above the smaller side, or names no weight.

    Notes
    -----
    What the loop prepares from the weights is kept. It notices every change of a parameter but one
    made through its ``.data``; `train` and `eval` make it forget, and so does `to`.

    Examples
    --------
    >>> gru = FactoredGRU(8, 16, rank_hh=2)
    >>> out, h = gru(torch.zeros(5, 3, 8))
    >>> tuple(out.shape), tuple(gru.weight_hh_l0.U.shape)
    ((5, 3, 16), (48, 2))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        ranks: Mapping[str, int] | None = None,
        rank_ih: int | None = None,
        rank_hh: int | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        model = nn.GRU(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            device="meta",
        )  # fmt: skip
        self._configure(model)
        wanted = _ranks(model, ranks, rank_ih, rank_hh)
        bound = 1 / math.sqrt(hidden_size)

        def drawn(shape: tuple[int, ...], side: float) -> Tensor:
            return torch.empty(shape, device=device, dtype=dtype).uniform_(-side, side)

        for name, parameter in model.named_parameters():
            shape = tuple(parameter.shape)
            if name not in wanted:
                self._hold(name, drawn(shape, bound))
                continue
            m, n = shape
            r = wanted[name]
            # the product then has the variance that nn.GRU starts its weights with
            side = math.sqrt(3) * (bound**2 / 3 / r) ** 0.25
            self._hold(name, LowRank(drawn((m, r), side), drawn((r, n), side)))

    @classmethod
    def from_gru(
        cls,
        gru: nn.GRU,
        *,
        ranks: Mapping[str, int] | None = None,
        rank_ih: int | None = None,
        rank_hh: int | None = None,
    ) -> "FactoredGRU":
        """Factorize an `nn.GRU` by truncated SVD; what stays dense is copied.

        Parameters
        ----------
        ranks, rank_ih, rank_hh
            As of the class.

        Raises
        ------
        RankError
            A rank is out of range, or names no weight.
        """
        wanted = _ranks(gru, ranks, rank_ih, rank_hh)
        weights: dict[str, Weight] = {}
        for name, parameter in gru.named_parameters():
            weights[name] = parameter.detach().clone()
            if name in wanted:
                factors = svd(parameter.detach(), wanted[name], Options())
                weights[name] = LowRank(factors.U, factors.V)
        module = cls.from_weights(weights, batch_first=gru.batch_first, dropout=gru.dropout)
        module.train(gru.training)
        return module

    @classmethod
    def from_weights(
        cls, weights: Mapping[str, Weight], *, batch_first: bool = False, dropout: float = 0.0
    ) -> "FactoredGRU":
        """Make a module of given weights and biases; sizes follow from their shapes.

        Parameters
        ----------
        weights : mapping of str to Weight
            By torch's names. Tensors become parameters, parameters and pairs are used as they are.

        Raises
        ------
        LayoutError
            The names or shapes aren't those of a GRU.
        """
        model = _configuration(weights, batch_first, dropout)
        module = cls.__new__(cls)
        nn.Module.__init__(module)
        module._configure(model)
        for name, _ in model.named_parameters():
            module._hold(name, weights[name])
        return module

    def dense(self) -> nn.GRU:
        """Return the `nn.GRU` with every weight multiplied back."""
        first = next(self.parameters())
        gru = nn.GRU(
            self.input_size, self.hidden_size, self.num_layers, self.bias, self.batch_first,
            self.dropout, self.bidirectional, device=first.device, dtype=first.dtype,
        )  # fmt: skip
        with torch.no_grad():
            for parameter, value in zip(gru.parameters(), self._flat(), strict=True):
                parameter.copy_(value)
        gru.train(self.training)
        return gru

    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Return outputs and last states, as `nn.GRU` does.

        Parameters
        ----------
        input : (T, B, I), (B, T, I) with `batch_first`, (T, I), or a packed sequence
        hx : (layers * directions, B, H), optional
            Without B for an input without it.

        Raises
        ------
        RuntimeError, ValueError
            Shapes disagree; the messages are those of `nn.GRU`.
        """
        if isinstance(input, PackedSequence):
            return self._packed(input, hx)
        if input.dim() not in (2, 3):
            raise ValueError(f"GRU: Expected input to be 2D or 3D, got {input.dim()}D instead")
        batched = input.dim() == 3
        if hx is not None and hx.dim() != input.dim():
            what = "batched 3-D" if batched else "unbatched 2-D"
            raise RuntimeError(
                f"For {what} input, hx should also be {input.dim()}-D but got {hx.dim()}-D tensor"
            )
        time_first = self.batch_first and batched
        x = input if batched else input.unsqueeze(1)
        x = x.transpose(0, 1) if time_first else x
        hx = hx.unsqueeze(1) if hx is not None and not batched else hx
        out, h = self._run(x, self._state(x, x.shape[1], hx), None)
        if not batched:
            return out.squeeze(1), h.squeeze(1)
        return out.transpose(0, 1) if time_first else out, h

    def routes(self, batch: int, steps: int) -> list[str]:
        """Return the route of each layer and direction in inference: ``loop`` or ``dense``.

        ``loop`` runs the factors, ``dense`` is torch's kernel with the weights multiplied back.
        """
        with torch.no_grad():
            like = next(self.parameters())
            x = like.new_empty(1, 1, self.input_size).expand(steps, batch, -1)
            h = like.new_empty(1, 1, self.hidden_size).expand(len(self._runners), batch, -1)
            route = "loop" if self._by_factors(x, h) else "dense"
        return [route] * len(self._runners)

    def flatten_parameters(self) -> None:
        """Do nothing: here for code that calls it on an `nn.GRU`."""

    def train(self, mode: bool = True) -> "FactoredGRU":
        """Set the mode, and forget what was prepared from the weights."""
        self._forget()
        return super().train(mode)

    def extra_repr(self) -> str:
        """Return what `nn.GRU` shows, and each weight's rank."""
        said = [f"{self.input_size}, {self.hidden_size}"]
        for name, default in (
            ("num_layers", 1), ("bias", True), ("batch_first", False), ("dropout", 0.0),
            ("bidirectional", False),
        ):  # fmt: skip
            if getattr(self, name) != default:
                said.append(f"{name}={getattr(self, name)}")
        ranks = [
            f"{name}={'dense' if rank_of(weight) is None else rank_of(weight)}"
            for name, weight in self._weights()
        ]
        return ", ".join(said) + f", ranks({', '.join(ranks)})"

    # -- how the parameters are held ---------------------------------------------------------

    def _configure(self, model: nn.GRU) -> None:
        self.input_size: int = model.input_size
        self.hidden_size: int = model.hidden_size
        self.num_layers: int = model.num_layers
        self.bias: bool = model.bias
        self.batch_first: bool = model.batch_first
        self.dropout: float = model.dropout
        self.bidirectional: bool = model.bidirectional
        self._directions = 2 if model.bidirectional else 1
        self._runners = [GRURecurrence() for _ in range(model.num_layers * self._directions)]

    def _hold(self, name: str, weight: Weight) -> None:
        if isinstance(weight, Tensor) and not isinstance(weight, nn.Parameter):
            weight = nn.Parameter(weight)
        setattr(self, name, weight)

    def _ends(self) -> Iterator[str]:
        """Yield how the names of each layer and direction end, in torch's order."""
        for layer in range(self.num_layers):
            for suffix in _SUFFIXES[: self._directions]:
                yield f"_l{layer}{suffix}"

    def _weights(self) -> Iterator[tuple[str, Weight]]:
        for end in self._ends():
            for kind in ("weight_ih", "weight_hh"):
                yield kind + end, getattr(self, kind + end)

    def _flat(self) -> list[Tensor]:
        """Return what `nn.GRU` calls its flat weights, multiplied back; differentiable."""
        kinds = ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if self.bias else ()))
        return [dense(getattr(self, kind + end)) for end in self._ends() for kind in kinds]

    def _forget(self) -> None:
        for runner in self._runners:
            runner.forget()

    def _apply(self, fn: Any, recurse: bool = True) -> "FactoredGRU":
        # to(), half() and the like: what was prepared would keep the old weights in memory
        self._forget()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    # -- how it runs -------------------------------------------------------------------------

    def _packed(self, packed: PackedSequence, hx: Tensor | None) -> tuple[PackedSequence, Tensor]:
        x, batch_sizes, order, unsorted = packed
        h = self._state(x, int(batch_sizes[0]), hx)
        if hx is not None and order is not None:
            h = h.index_select(1, order)
        out, h = self._run(x, h, batch_sizes)
        if unsorted is not None:
            h = h.index_select(1, unsorted)
        return PackedSequence(out, batch_sizes, order, unsorted), h

    def _state(self, x: Tensor, batch: int, hx: Tensor | None) -> Tensor:
        if x.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, "
                f"got {x.shape[-1]}"
            )
        want = (self.num_layers * self._directions, batch, self.hidden_size)
        if hx is None:
            return x.new_zeros(want)
        if tuple(hx.shape) != want:
            raise RuntimeError(f"Expected hidden size {want}, got {list(hx.shape)}")
        return hx

    def _run(self, x: Tensor, h: Tensor, batch_sizes: Tensor | None) -> tuple[Tensor, Tensor]:
        if self._by_factors(x, h):
            return self._by_layers(x, h, batch_sizes)
        common = (self.bias, self.num_layers, self.dropout, self.training, self.bidirectional)
        run: Any = torch._VF.gru  # what nn.GRU itself calls
        if batch_sizes is None:
            out, h = run(x, h, self._flat(), *common, False)
        else:
            out, h = run(x, batch_sizes, h, self._flat(), *common)
        return out, h

    def _by_factors(self, x: Tensor, h: Tensor) -> bool:
        """Whether this call is run by the factors, and not by torch's kernel."""
        if all(isinstance(weight, Tensor) for _, weight in self._weights()):
            return False
        if torch.is_grad_enabled() and any(t.requires_grad for t in (x, h, *self.parameters())):
            return False
        if self.training and self.dropout > 0 and self.num_layers > 1:
            return False
        batch = h.shape[1]
        if 3 * self.hidden_size**2 * batch < _FEW_PRODUCTS:
            return False
        # on an accelerator, a call a step and operation loses to the one kernel; what autocast or
        # a compiler does to a call, it does not do to one that writes to a given tensor
        plain = x.device.type == "cpu" and x.dtype in _OWN_LOOP and x.numel() > 0
        return plain and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()

    def _by_layers(self, x: Tensor, h: Tensor, batch_sizes: Tensor | None) -> tuple[Tensor, Tensor]:
        sizes = batch_sizes.tolist() if batch_sizes is not None else [x.shape[1]] * len(x)
        rows = x.reshape(-1, x.shape[-1])
        last: list[Tensor] = []
        outputs: list[Tensor] = []
        for k, end in enumerate(self._ends()):
            weights = GRUWeights(
                getattr(self, f"weight_ih{end}"),
                getattr(self, f"weight_hh{end}"),
                getattr(self, f"bias_ih{end}", None),
                getattr(self, f"bias_hh{end}", None),
            )
            out, h_k = self._runners[k](weights, rows, h[k], sizes, reverse=end.endswith("reverse"))
            outputs.append(out)
            last.append(h_k)
            if len(outputs) == self._directions:
                rows = torch.cat(outputs, dim=1) if len(outputs) > 1 else out
                outputs = []
        return rows if batch_sizes is not None else rows.view(*x.shape[:2], -1), torch.stack(last)


def _ranks(
    gru: nn.GRU, ranks: Mapping[str, int] | None, rank_ih: int | None, rank_hh: int | None
) -> dict[str, int]:
    """Return the wanted rank of each weight that is to be a pair, by name."""
    shapes = {n: tuple(p.shape) for n, p in gru.named_parameters() if n.startswith("weight")}
    wanted = dict(ranks or {})
    if unknown := [name for name in wanted if name not in shapes]:
        raise RankError(f"has no weight {unknown[0]!r}; there are {', '.join(shapes)}")
    for name in shapes:
        rank = rank_ih if name.startswith("weight_ih") else rank_hh
        if rank is not None:
            wanted.setdefault(name, rank)
    for name, r in wanted.items():
        m, n = shapes[name]
        if not 1 <= r <= min(m, n):
            raise RankError(
                f"{name}: rank {r} is not within 1 .. {min(m, n)} of a {m} x {n} weight"
            )
    return wanted


def _configuration(weights: Mapping[str, Weight], batch_first: bool, dropout: float) -> nn.GRU:
    """Return a GRU without values of the sizes that the weights have, or say what doesn't fit."""
    layers = 0
    while f"weight_hh_l{layers}" in weights:
        layers += 1
    missing = [n for n in ("weight_ih_l0", "weight_hh_l0") if n not in weights]
    if missing:
        raise LayoutError(f"has no {missing[0]}, so it is no GRU")
    try:
        model = nn.GRU(
            shape_of(weights["weight_ih_l0"])[1], shape_of(weights["weight_hh_l0"])[1], layers,
            "bias_ih_l0" in weights, batch_first, dropout,
            "weight_hh_l0_reverse" in weights, device="meta",
        )  # fmt: skip
    except ValueError as error:
        raise LayoutError(f"is no GRU: {error}") from error
    want = {name: tuple(p.shape) for name, p in model.named_parameters()}
    got = {name: tuple(weight.shape) for name, weight in weights.items()}
    for name in {**want, **got}:
        if want.get(name) != got.get(name):
            raise LayoutError(
                f"is {got.get(name, 'missing')}, and the GRU of these sizes has "
                f"{want.get(name, 'no such weight')}",
                tensor=name,
            )
    return model
