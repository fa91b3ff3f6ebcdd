"""A drop-in for `nn.LSTM` whose weights may be low-rank pairs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ckptshrink.errors import LayoutError, RankError
from ckptshrink.runtime.layer import LSTMWeights, lstm_loop
from ckptshrink.runtime.recurrence import ROUTES, Recurrence
from ckptshrink.runtime.recurrent import (
    FactoredRNN,
    check_shapes,
    drawn,
    drawn_pair,
    factorized,
    wanted_ranks,
    weight_names,
)
from ckptshrink.runtime.weights import LowRank, Weight, dense, rank_of, shape_of


class FactoredLSTM(FactoredRNN):
    """An LSTM with the arguments, inputs and outputs of `nn.LSTM`, and weights that may be pairs.

    Every weight of `nn.LSTM` is here under its own name: as a dense parameter ``weight_hh_l0``, or
    as a pair with the parameters ``weight_hh_l0.U`` (4H, r) and ``weight_hh_l0.V`` (r, P), which
    are the names in an artefact. ``weight_l0`` is both weights of a layer in one pair, of
    ``[Wi, Wh]``. One layer's ``weight_hh`` and the next one's ``weight_ih`` may have the very same
    parameter as their V.

    In inference (no gradients wanted) the factors are run as they are. With gradients the weights
    are multiplied back inside the graph and torch's own kernel runs them, so that dropout, packing
    and every gradient are `nn.LSTM`'s. What inference prepares from the weights is made anew
    when they change; a change through ``.data`` is seen after `train`, `eval` or `to` only.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size
        As of `nn.LSTM`.
    ranks : mapping of str to int, optional
        By weight name: ``weight_ih_l0``, ``weight_hh_l1_reverse``, ``weight_hr_l0``, or
        ``weight_l0`` for both in one.
    rank_ih, rank_hh : int, optional
        For all weights of that kind that `ranks` doesn't name.
    route : str
        ``"auto"``, or one of ``"loop"``, ``"compiled"``, ``"dense"`` for all layers.

    Raises
    ------
    RankError
        A rank is below 1 or above the smaller side, or names no weight.

    Examples
    --------
    >>> lstm = FactoredLSTM(8, 16, rank_hh=2)
    >>> out, (h, c) = lstm(torch.zeros(5, 3, 8))
    >>> tuple(out.shape), tuple(lstm.weight_hh_l0.U.shape)
    ((5, 3, 16), (64, 2))
    """

    _runners: Sequence[Recurrence]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        ranks: Mapping[str, int] | None = None,
        rank_ih: int | None = None,
        rank_hh: int | None = None,
        route: str = "auto",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        model = nn.LSTM(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            proj_size, device="meta",
        )  # fmt: skip
        self._set_route(route)
        self._configure(model, _runners(model, route))
        wanted = _ranks(model, ranks, rank_ih, rank_hh)
        bound = 1 / math.sqrt(hidden_size)
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        for name, shape in _joined(shapes, wanted).items():
            if name in wanted:
                pair = drawn_pair(name, shape, wanted[name], bound, device, dtype)
                self._hold(name, pair)
            else:
                self._hold(name, drawn(shape, bound, device, dtype))
        for name in shapes:
            if name.startswith("bias"):
                self._hold(name, drawn(shapes[name], bound, device, dtype))

    @classmethod
    def from_lstm(
        cls,
        lstm: nn.LSTM,
        *,
        ranks: Mapping[str, int] | None = None,
        rank_ih: int | None = None,
        rank_hh: int | None = None,
        share: bool = False,
        route: str = "auto",
    ) -> "FactoredLSTM":
        """Factorize an `nn.LSTM` by truncated SVD.

        Parameters
        ----------
        ranks, rank_ih, rank_hh, route
            As of the class.
        share : bool
            Whether each ``weight_hh`` shares its V with the next layer's ``weight_ih``, at the
            rank of the former. For one direction.

        Raises
        ------
        RankError
            A rank is out of range, or names no weight.
        """
        wanted = _ranks(lstm, ranks, rank_ih, rank_hh)
        values = {name: p.detach() for name, p in lstm.named_parameters()}
        weights: dict[str, Weight] = {}
        shapes = {name: tensor.shape for name, tensor in values.items()}
        for name in _joined(shapes, wanted):
            if name in values:
                W = values[name]
            else:
                ih, hh = (name.replace("weight_l", f"weight_{kind}_l") for kind in ("ih", "hh"))
                W = torch.cat([values[ih], values[hh]], dim=1)
            weights[name] = factorized(name, W, wanted[name]) if name in wanted else W.clone()
        if share:
            weights |= _shared(lstm, values, weights)
        weights |= {name: v.clone() for name, v in values.items() if name.startswith("bias")}
        module = cls.from_weights(
            weights, batch_first=lstm.batch_first, dropout=lstm.dropout, route=route
        )
        module.train(lstm.training)
        return module

    @classmethod
    def from_weights(
        cls,
        weights: Mapping[str, Weight],
        *,
        batch_first: bool = False,
        dropout: float = 0.0,
        route: str = "auto",
    ) -> "FactoredLSTM":
        """Make a module of given weights and biases; sizes follow from their shapes.

        Parameters
        ----------
        weights : mapping of str to Weight
            By torch's names. Tensors become parameters, parameters and pairs are used as they are.

        Raises
        ------
        LayoutError
            The names or shapes aren't those of an LSTM.
        """
        model = _configuration(weights, batch_first, dropout)
        module = cls.__new__(cls)
        nn.Module.__init__(module)
        module._set_route(route)
        module._configure(model, _runners(model, route))
        for name, weight in weights.items():
            module._hold(name, weight)
        return module

    def dense(self) -> nn.LSTM:
        """Return the `nn.LSTM` with every weight multiplied back."""
        first = next(self.parameters())
        return self._given_to(
            nn.LSTM(
                self.input_size,
                self.hidden_size,
                self.num_layers,
                self.bias,
                self.batch_first,
                self.dropout,
                self.bidirectional,
                self.proj_size,
                device=first.device,
                dtype=first.dtype,
            )
        )

    def projected(self) -> list[nn.LSTM]:
        """Return one stock `nn.LSTM` a layer; those whose V the next layer shares are projected.

        Such a layer needs nothing of h but ``V h``, which is what ``nn.LSTM(proj_size=r)`` puts
        out. Layers after it take r inputs. Run one after the other they compute what this module
        does, without any code of this package. What is not shared is multiplied back.

        Raises
        ------
        RankError
            There are two directions or a projection already.
        """
        if self.bidirectional or self.proj_size:
            raise RankError("layers are projected only in one direction and without a projection")
        flat = self._flat()
        count = len(flat) // self.num_layers
        layers, width, shared = [], self.input_size, None
        for k in range(self.num_layers):
            values = flat[k * count : (k + 1) * count]
            wi, wh = getattr(self, f"weight_ih_l{k}", None), getattr(self, f"weight_hh_l{k}", None)
            following = getattr(self, f"weight_ih_l{k + 1}", None)
            if isinstance(wi, LowRank) and wi.V is shared:
                values[0] = wi.U
            r, shared = 0, None
            if isinstance(wh, LowRank) and isinstance(following, LowRank) and wh.V is following.V:
                values[1] = wh.U
                values.append(wh.V)
                r, shared = wh.rank, wh.V
            layer = nn.LSTM(
                width,
                self.hidden_size,
                1,
                self.bias,
                self.batch_first,
                proj_size=r,
                device=values[0].device,
                dtype=values[0].dtype,
            )
            with torch.no_grad():
                for parameter, value in zip(layer.parameters(), values, strict=True):
                    parameter.copy_(value)
            layers.append(layer.train(self.training))
            width = r or self.hidden_size
        return layers

    def forward(
        self, input: Tensor | PackedSequence, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, Tensor]]:
        """Return outputs and last states, as `nn.LSTM` does.

        Parameters
        ----------
        input : (T, B, I), (B, T, I) with `batch_first`, (T, I), or a packed sequence
        hx : (h, c), optional
            (layers * directions, B, P) and (layers * directions, B, H), or without B.

        Raises
        ------
        RuntimeError, ValueError
            Shapes disagree; the messages are `nn.LSTM`'s own where torch has one.
        """
        if isinstance(input, PackedSequence):
            return self._packed(input, hx)
        if input.dim() not in (2, 3):
            raise ValueError(f"LSTM: Expected input to be 2D or 3D, got {input.dim()}D instead")
        batched = input.dim() == 3
        time_first = self.batch_first and batched
        x = input if batched else input.unsqueeze(1)
        x = x.transpose(0, 1) if time_first else x
        if hx is not None and not batched:
            if hx[0].dim() != 2 or hx[1].dim() != 2:
                raise RuntimeError("For unbatched 2-D input, hx and cx should also be 2-D")
            hx = (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
        h, c = self._states(x, x.shape[1], hx)
        out, h, c = self._run(x, h, c, None)
        if not batched:
            return out.squeeze(1), (h.squeeze(1), c.squeeze(1))
        return out.transpose(0, 1) if time_first else out, (h, c)

    def routes(self, batch: int, steps: int) -> list[str]:
        """Return the route that each layer and direction takes for such an input.

        A route that depends on the machine is found by a short run on zeros.
        """
        return [
            runner.route_for(self._layer(end), batch, steps)
            for runner, end in zip(self._runners, self._ends(), strict=True)
        ]

    def extra_repr(self) -> str:
        """Return what `nn.LSTM` shows, each weight's rank, and the routes that were taken."""
        taken = sorted({route for runner in self._runners for route in runner.taken})
        shown = f", routes={'+'.join(taken)}" if taken else ""
        return f"{super().extra_repr()}, route={self.route}{shown}"

    # -- how the parameters are held ---------------------------------------------------------

    def _set_route(self, route: str) -> None:
        if route not in ROUTES:
            raise ValueError(f"no route {route!r}; there are {', '.join(ROUTES)}")
        self.route = route

    def _layer(self, end: str) -> LSTMWeights:
        """Return the weights of the layer and direction whose names end so."""
        return LSTMWeights(
            wi=getattr(self, f"weight_ih{end}", None),
            wh=getattr(self, f"weight_hh{end}", None),
            bias=getattr(self, f"bias_ih{end}", None),
            bias_hh=getattr(self, f"bias_hh{end}", None),
            joint=getattr(self, f"weight{end}", None),
            proj=getattr(self, f"weight_hr{end}", None),
        )

    def _flat(self) -> list[Tensor]:
        flat: list[Tensor] = []
        for end in self._ends():
            weights = self._layer(end)
            if weights.joint is not None:
                both = weights.joint.dense()
                width = both.shape[1] - weights.state
                flat += [both[:, :width].contiguous(), both[:, width:].contiguous()]
            else:
                flat += [dense(weight) for weight in weights.separate()]
            flat += [bias for bias in (weights.bias, weights.bias_hh) if bias is not None]
            if weights.proj is not None:
                flat.append(dense(weights.proj))
        return flat

    # -- how it runs -------------------------------------------------------------------------

    def _packed(
        self, packed: PackedSequence, hx: tuple[Tensor, Tensor] | None
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor]]:
        x, batch_sizes, order, unsorted = packed
        h, c = self._states(x, int(batch_sizes[0]), hx)
        if hx is not None and order is not None:
            h, c = h.index_select(1, order), c.index_select(1, order)
        out, h, c = self._run(x, h, c, batch_sizes)
        if unsorted is not None:
            h, c = h.index_select(1, unsorted), c.index_select(1, unsorted)
        return PackedSequence(out, batch_sizes, order, unsorted), (h, c)

    def _states(
        self, x: Tensor, batch: int, hx: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        self._check_input(x)
        count = self.num_layers * self._directions
        want_h = (count, batch, self.proj_size or self.hidden_size)
        want_c = (count, batch, self.hidden_size)
        if hx is None:
            return x.new_zeros(want_h), x.new_zeros(want_c)
        for name, state, want in (("hidden[0]", hx[0], want_h), ("hidden[1]", hx[1], want_c)):
            if tuple(state.shape) != want:
                raise RuntimeError(f"Expected {name} size {want}, got {list(state.shape)}")
        return hx

    def _run(
        self, x: Tensor, h: Tensor, c: Tensor, batch_sizes: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        wanted = self._wants_gradients(x, h, c)
        if (wanted or self._drops()) and self.route != "loop":
            return self._by_torch(x, h, c, batch_sizes)
        return self._by_layers(x, h, c, batch_sizes, loop=wanted)

    def _by_torch(
        self, x: Tensor, h: Tensor, c: Tensor, batch_sizes: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        common = (self.bias, self.num_layers, self.dropout, self.training, self.bidirectional)
        run: Any = torch._VF.lstm  # what nn.LSTM itself calls
        if batch_sizes is None:
            out, h, c = run(x, (h, c), self._flat(), *common, False)
        else:
            out, h, c = run(x, batch_sizes, (h, c), self._flat(), *common)
        return out, h, c

    def _by_layers(
        self, x: Tensor, h: Tensor, c: Tensor, batch_sizes: Tensor | None, *, loop: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        sizes = batch_sizes.tolist() if batch_sizes is not None else None
        outputs: list[Tensor] = []
        last_h, last_c = [], []
        for k, (runner, end) in enumerate(zip(self._runners, self._ends(), strict=True)):
            run = lstm_loop if loop else runner
            reverse = end.endswith("_reverse")
            out, h_k, c_k = run(self._layer(end), x, h[k], c[k], batch_sizes=sizes, reverse=reverse)
            outputs.append(out)
            last_h.append(h_k)
            last_c.append(c_k)
            if len(outputs) < self._directions:
                continue
            x = torch.cat(outputs, dim=-1) if len(outputs) > 1 else out
            outputs = []
            if self._drops() and k + 1 < len(self._runners):
                x = nn.functional.dropout(x, self.dropout)
        return x, torch.stack(last_h), torch.stack(last_c)


def _runners(model: nn.LSTM, route: str) -> list[Recurrence]:
    count = model.num_layers * (2 if model.bidirectional else 1)
    return [Recurrence(route) for _ in range(count)]


def _ranks(
    lstm: nn.LSTM, ranks: Mapping[str, int] | None, rank_ih: int | None, rank_hh: int | None
) -> dict[str, int]:
    """Return the wanted rank of each weight that is to be a pair, by name."""
    names = weight_names(lstm)
    joint = [name.replace("weight_ih_l", "weight_l") for name in names]
    return wanted_ranks(names, ranks, rank_ih, rank_hh, others=joint)


def _joined(shapes: Mapping[str, Any], wanted: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Return the shapes of the weights to hold, those wanted in one pair put together."""
    held: dict[str, tuple[int, int]] = {}
    for name, shape in shapes.items():
        if not name.startswith("weight"):
            continue
        both = name.replace("weight_ih_l", "weight_l").replace("weight_hh_l", "weight_l")
        if both != name and both in wanted:
            if name in wanted:
                raise RankError(f"{name!r} and {both!r} can't both be given")
            m, n = held.get(both, (shape[0], 0))
            held[both] = (m, n + shape[1])
        else:
            held[name] = (shape[0], shape[1])
    return held


def _shared(
    lstm: nn.LSTM, values: Mapping[str, Tensor], weights: Mapping[str, Weight]
) -> dict[str, Weight]:
    """Return pairs of neighbouring layers that have one V."""
    if lstm.bidirectional or lstm.proj_size:
        raise RankError("weights share a V only in one direction and without a projection")
    found: dict[str, Weight] = {}
    for layer in range(lstm.num_layers - 1):
        hh, ih = f"weight_hh_l{layer}", f"weight_ih_l{layer + 1}"
        rank = rank_of(weights[hh]) if hh in weights else None
        if rank is None:
            raise RankError(f"{hh!r} is dense, and has no V to share", hint="give rank_hh")
        m = values[hh].shape[0]
        both = factorized(hh, torch.cat([values[hh], values[ih]]), rank)
        V = nn.Parameter(both.V.detach())
        found[hh] = LowRank(both.U.detach()[:m].clone(), V)
        found[ih] = LowRank(both.U.detach()[m:].clone(), V)
    return found


def _configuration(weights: Mapping[str, Weight], batch_first: bool, dropout: float) -> nn.LSTM:
    """Return an LSTM without values of the sizes that the weights have, or say what doesn't fit."""
    layers = 0
    while f"weight_hh_l{layers}" in weights or f"weight_l{layers}" in weights:
        layers += 1
    if layers == 0:
        raise LayoutError("has no weight_hh_l0, so it is no LSTM")
    bidirectional = "weight_hh_l0_reverse" in weights or "weight_l0_reverse" in weights
    proj = shape_of(weights["weight_hr_l0"])[0] if "weight_hr_l0" in weights else 0
    if "weight_l0" in weights:
        rows, both = shape_of(weights["weight_l0"])
        width = both - (proj or rows // 4)
    else:
        rows = shape_of(weights["weight_hh_l0"])[0]
        if "weight_ih_l0" not in weights:
            raise LayoutError("has no weight_ih_l0, so it is no LSTM")
        width = shape_of(weights["weight_ih_l0"])[1]
    try:
        model = nn.LSTM(
            width, rows // 4, layers, "bias_ih_l0" in weights, batch_first, dropout, bidirectional,
            proj, device="meta",
        )  # fmt: skip
    except ValueError as error:
        raise LayoutError(f"is no LSTM: {error}") from error
    shapes = {name: p.shape for name, p in model.named_parameters()}
    joint = {name: 0 for name in weights if name.startswith("weight_l")}
    want: dict[str, tuple[int, ...]] = {n: tuple(s) for n, s in shapes.items() if n[0] == "b"}
    want |= _joined(shapes, joint)
    check_shapes("LSTM", want, weights)
    return model
