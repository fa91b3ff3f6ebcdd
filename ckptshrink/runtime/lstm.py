"""A drop-in for `nn.LSTM` whose weights may be low-rank pairs."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ckptshrink.errors import LayoutError, RankError
from ckptshrink.linalg.factors import Options
from ckptshrink.linalg.svd import svd
from ckptshrink.runtime.layer import LSTMWeights, lstm_loop
from ckptshrink.runtime.recurrence import ROUTES, Recurrence
from ckptshrink.runtime.weights import LowRank, Weight, dense, rank_of, shape_of

_SUFFIXES: Final = ("", "_reverse")


class FactoredLSTM(nn.Module):
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
        self._configure(model, route)
        wanted = _ranks(model, ranks, rank_ih, rank_hh)
        bound = 1 / math.sqrt(hidden_size)
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        for name, (m, n) in _joined(shapes, wanted).items():
            if name not in wanted:
                values = torch.empty(m, n, device=device, dtype=dtype).uniform_(-bound, bound)
                self._hold(name, values)
                continue
            r = _checked_rank(name, wanted[name], m, n)
            # the product then has the variance that nn.LSTM starts its weights with
            side = math.sqrt(3) * (bound**2 / 3 / r) ** 0.25
            U = torch.empty(m, r, device=device, dtype=dtype).uniform_(-side, side)
            V = torch.empty(r, n, device=device, dtype=dtype).uniform_(-side, side)
            self._hold(name, LowRank(U, V))
        for name, shape in shapes.items():
            if name.startswith("bias"):
                values = torch.empty(shape, device=device, dtype=dtype).uniform_(-bound, bound)
                self._hold(name, values)

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
            weights[name] = W.clone()
            if name in wanted:
                weights[name] = _factorized(W, _checked_rank(name, wanted[name], *W.shape))
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
        module._configure(model, route)
        for name, weight in weights.items():
            module._hold(name, weight)
        return module

    def dense(self) -> nn.LSTM:
        """Return the `nn.LSTM` with every weight multiplied back."""
        first = next(self.parameters())
        lstm = nn.LSTM(
            self.input_size, self.hidden_size, self.num_layers, self.bias, self.batch_first,
            self.dropout, self.bidirectional, self.proj_size,
            device=first.device, dtype=first.dtype,
        )  # fmt: skip
        with torch.no_grad():
            for parameter, value in zip(lstm.parameters(), self._flat(), strict=True):
                parameter.copy_(value)
        lstm.train(self.training)
        return lstm

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
            wi, wh = getattr(self, f"weight_ih_l{k}", None), self._layer(k, 0).wh
            following = getattr(self, f"weight_ih_l{k + 1}", None)
            if isinstance(wi, LowRank) and wi.V is shared:
                values[0] = wi.U
            r, shared = 0, None
            if isinstance(wh, LowRank) and isinstance(following, LowRank) and wh.V is following.V:
                values[1] = wh.U
                values.append(wh.V)
                r, shared = wh.rank, wh.V
            layer = nn.LSTM(
                width, self.hidden_size, 1, self.bias, self.batch_first, proj_size=r,
                device=values[0].device, dtype=values[0].dtype,
            )  # fmt: skip
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
        names = []
        for layer in range(self.num_layers):
            for direction in range(self._directions):
                weights = self._layer(layer, direction)
                names.append(self._runners[layer][direction].route_for(weights, batch, steps))
        return names

    def train(self, mode: bool = True) -> "FactoredLSTM":
        """Set the mode, and let go of what inference prepared from the weights."""
        self._forget()
        super().train(mode)
        return self

    def flatten_parameters(self) -> None:
        """Do nothing: here for code that calls it on an `nn.LSTM`."""

    def extra_repr(self) -> str:
        """Return what `nn.LSTM` shows, and each weight's rank."""
        said = [f"{self.input_size}, {self.hidden_size}"]
        said += [f"num_layers={self.num_layers}"] if self.num_layers != 1 else []
        for name, default in (("bias", True), ("batch_first", False), ("dropout", 0.0)):
            if getattr(self, name) != default:
                said.append(f"{name}={getattr(self, name)}")
        said += ["bidirectional=True"] if self.bidirectional else []
        said += [f"proj_size={self.proj_size}"] if self.proj_size else []
        ranks = [
            f"{name}={'dense' if rank_of(weight) is None else rank_of(weight)}"
            for name, weight in self._weights()
        ]
        taken = sorted({r for runners in self._runners for one in runners for r in one.taken})
        shown = f", routes={'+'.join(taken)}" if taken else ""
        return ", ".join(said) + f", ranks({', '.join(ranks)}), route={self.route}{shown}"

    # -- how the parameters are held ---------------------------------------------------------

    def _configure(self, model: nn.LSTM, route: str) -> None:
        if route not in ROUTES:
            raise ValueError(f"no route {route!r}; there are {', '.join(ROUTES)}")
        self.input_size: int = model.input_size
        self.hidden_size: int = model.hidden_size
        self.num_layers: int = model.num_layers
        self.bias: bool = model.bias
        self.batch_first: bool = model.batch_first
        self.dropout: float = model.dropout
        self.bidirectional: bool = model.bidirectional
        self.proj_size: int = model.proj_size
        self.route = route
        self._directions = 2 if model.bidirectional else 1
        self._runners = [
            [Recurrence(route) for _ in range(self._directions)] for _ in range(model.num_layers)
        ]

    def _forget(self) -> None:
        for runners in self._runners:
            for runner in runners:
                runner.forget()

    def _apply(self, fn: Any, recurse: bool = True) -> "FactoredLSTM":
        # to(), half() and the like: what was prepared would keep the old weights in memory
        self._forget()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _hold(self, name: str, weight: Weight) -> None:
        if isinstance(weight, Tensor) and not isinstance(weight, nn.Parameter):
            weight = nn.Parameter(weight)
        setattr(self, name, weight)

    def _weights(self) -> Iterator[tuple[str, Weight]]:
        for layer in range(self.num_layers):
            for suffix in _SUFFIXES[: self._directions]:
                for kind in ("_ih", "_hh", "", "_hr"):
                    name = f"weight{kind}_l{layer}{suffix}"
                    if hasattr(self, name):
                        yield name, getattr(self, name)

    def _layer(self, layer: int, direction: int) -> LSTMWeights:
        end = f"_l{layer}{_SUFFIXES[direction]}"
        return LSTMWeights(
            wi=getattr(self, f"weight_ih{end}", None),
            wh=getattr(self, f"weight_hh{end}", None),
            bias=getattr(self, f"bias_ih{end}", None),
            bias_hh=getattr(self, f"bias_hh{end}", None),
            joint=getattr(self, f"weight{end}", None),
            proj=getattr(self, f"weight_hr{end}", None),
        )

    def _flat(self) -> list[Tensor]:
        """Return what `nn.LSTM` calls its flat weights, multiplied back; differentiable."""
        flat = []
        for layer in range(self.num_layers):
            for direction in range(self._directions):
                end = f"_l{layer}{_SUFFIXES[direction]}"
                weights = self._layer(layer, direction)
                if weights.joint is not None:
                    both = weights.joint.dense()
                    width = both.shape[1] - weights.state
                    flat += [both[:, :width].contiguous(), both[:, width:].contiguous()]
                else:
                    flat += [dense(weight) for weight in weights.separate()]
                if self.bias:
                    flat += [getattr(self, f"bias_ih{end}"), getattr(self, f"bias_hh{end}")]
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
        if x.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, "
                f"got {x.shape[-1]}"
            )
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
        between = self.training and self.dropout > 0 and self.num_layers > 1
        wanted = torch.is_grad_enabled() and any(
            t.requires_grad for t in (x, h, c, *self.parameters())
        )
        if (wanted or between) and self.route != "loop":
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
        last_h, last_c = [], []
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(self._directions):
                weights = self._layer(layer, direction)
                run = lstm_loop if loop else self._runners[layer][direction]
                k = layer * self._directions + direction
                out, h_k, c_k = run(
                    weights, x, h[k], c[k], batch_sizes=sizes, reverse=direction == 1
                )
                outputs.append(out)
                last_h.append(h_k)
                last_c.append(c_k)
            x = torch.cat(outputs, dim=-1) if len(outputs) > 1 else outputs[0]
            if layer < self.num_layers - 1 and self.dropout > 0:
                x = nn.functional.dropout(x, self.dropout, self.training)
        return x, torch.stack(last_h), torch.stack(last_c)


def _ranks(
    lstm: nn.LSTM, ranks: Mapping[str, int] | None, rank_ih: int | None, rank_hh: int | None
) -> dict[str, int]:
    """Return the wanted rank of each weight that is to be a pair, by name."""
    names = [name for name, _ in lstm.named_parameters() if name.startswith("weight")]
    joint = {name.replace("weight_ih_l", "weight_l") for name in names}
    wanted = dict(ranks or {})
    if unknown := [name for name in wanted if name not in names and name not in joint]:
        raise RankError(f"has no weight {unknown[0]!r}; there are {', '.join(names)}")
    for name in names:
        for kind, rank in (("weight_ih_", rank_ih), ("weight_hh_", rank_hh)):
            if name.startswith(kind) and rank is not None:
                wanted.setdefault(name, rank)
    return wanted


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


def _checked_rank(name: str, r: int, m: int, n: int) -> int:
    if not 1 <= r <= min(m, n):
        raise RankError(f"{name}: rank {r} is not within 1 .. {min(m, n)} of a {m} x {n} weight")
    return r


def _factorized(W: Tensor, r: int) -> LowRank:
    factors = svd(W, r, Options())
    return LowRank(factors.U, factors.V)


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
        both = _factorized(torch.cat([values[hh], values[ih]]), rank)
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
    got = {name: tuple(weight.shape) for name, weight in weights.items()}
    wrong = [n for n in {**want, **got} if want.get(n) != got.get(n)]
    if wrong:
        name = wrong[0]
        raise LayoutError(
            f"is {got.get(name, 'missing')}, and the LSTM of these sizes has "
            f"{want.get(name, 'no such weight')}",
            tensor=name,
        )
    return model
