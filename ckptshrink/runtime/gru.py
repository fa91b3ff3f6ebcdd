"""A drop-in for `nn.GRU` whose weights may be low-rank pairs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ckptshrink.errors import LayoutError
from ckptshrink.runtime.gru_steps import GRURecurrence, GRUWeights
from ckptshrink.runtime.recurrent import (
    FactoredRNN,
    check_shapes,
    drawn,
    drawn_pair,
    factorized,
    wanted_ranks,
    weight_names,
)
from ckptshrink.runtime.weights import Weight, dense, shape_of

_OWN_LOOP: Final = frozenset({torch.float32, torch.float64})
"""Dtypes that the loop of this package runs; half precision is left to torch's kernel."""

_FEW_PRODUCTS: Final = 50_000
"""Products of a dense step below which torch's kernel is taken: the loop's calls then cost more
than its products save. At H = 128 and one sequence (49 152) both took 0.8 ms for 70 steps."""


class FactoredGRU(FactoredRNN):
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

    _runners: Sequence[GRURecurrence]

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
        self._configure(model, _runners(model))
        wanted = wanted_ranks(weight_names(model), ranks, rank_ih, rank_hh)
        bound = 1 / math.sqrt(hidden_size)
        for name, parameter in model.named_parameters():
            if name in wanted:
                m, n = parameter.shape
                pair = drawn_pair(name, (m, n), wanted[name], bound, device, dtype)
                self._hold(name, pair)
            else:
                self._hold(name, drawn(parameter.shape, bound, device, dtype))

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
        wanted = wanted_ranks(weight_names(gru), ranks, rank_ih, rank_hh)
        weights: dict[str, Weight] = {}
        for name, parameter in gru.named_parameters():
            if name in wanted:
                weights[name] = factorized(name, parameter, wanted[name])
            else:
                weights[name] = parameter.detach().clone()
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
        module._configure(model, _runners(model))
        for name, _ in model.named_parameters():
            module._hold(name, weights[name])
        return module

    def dense(self) -> nn.GRU:
        """Return the `nn.GRU` with every weight multiplied back."""
        first = next(self.parameters())
        return self._given_to(
            nn.GRU(
                self.input_size,
                self.hidden_size,
                self.num_layers,
                self.bias,
                self.batch_first,
                self.dropout,
                self.bidirectional,
                device=first.device,
                dtype=first.dtype,
            )
        )

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

    def _flat(self) -> list[Tensor]:
        """Return what `nn.GRU` calls its flat weights, multiplied back; differentiable."""
        kinds = ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if self.bias else ()))
        return [dense(getattr(self, kind + end)) for end in self._ends() for kind in kinds]

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
        self._check_input(x)
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
        if self._wants_gradients(x, h) or self._drops():
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


def _runners(model: nn.GRU) -> list[GRURecurrence]:
    count = model.num_layers * (2 if model.bidirectional else 1)
    return [GRURecurrence() for _ in range(count)]


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
    check_shapes("GRU", want, weights)
    return model
