"""The recurrence of an LSTM layer in inference: all that doesn't need the state done in advance.

Where torch's ordinary operations are used as they are, three facts set the form. A call costs a
microsecond, so there are few a step, and in place. ``tanh`` costs nine times what ``sigmoid``
does, so ``tanh(x) = 2 sigmoid(2 x) - 1``, with the scale of g folded into weights and that of c
into the state. And ``-h = o - 2 o sigmoid(2 c)`` is one call, so that -h is what goes round.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ckptshrink.errors import LayoutError
from ckptshrink.runtime.layer import LSTMWeights
from ckptshrink.runtime.products import Constant, Product
from ckptshrink.runtime.weights import Weight, pair_of

_CHUNK_BYTES: Final = 6 << 20
"""Pre-activations made at a time. More than 32 MiB goes back to the system each time, and writing
to new pages cost as much as the product."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Weights of a layer and direction in the form in which the steps use them.

    Rows of the gate g are scaled by 2. What takes the state takes -h where there is no projection,
    and has its sign turned.

    Attributes
    ----------
    inputs : tuple of Constant
        Applied in turn to the input, for all steps at once.
    double_g : bool
        Whether rows of g are not scaled in the last of them, because it is no copy.
    down : Constant or None
        V of a recurrent pair; None if Wh is dense.
    up : Constant
        U of a recurrent pair, or the dense Wh. Where `fused`, U of ``gates = b + U inner``.
    fused : bool
        Whether both weights are pairs: pre-activations of the gates are then made a step at a
        time, from ``inner = [Vi x, V h]``, or ``Vi x + V h`` where they share their U.
    width : int
        Columns of `inner` that come from the input.
    proj : tuple of Constant
        Applied in turn to -o tanh(c).
    """

    hidden: int
    state: int
    inputs: tuple[Constant, ...]
    double_g: bool
    down: Constant | None
    up: Constant
    fused: bool
    width: int
    proj: tuple[Constant, ...]
    cell_clip: float | None
    proj_clip: float | None

    @classmethod
    def of(cls, weights: LSTMWeights, *, fused: bool) -> "Prepared":
        """Prepare a layer's weights; a dense Wi is not copied.

        Parameters
        ----------
        fused : bool
            Whether gates of two pairs are made a step at a time. Those of a joint pair always are.
        """
        sign = -1.0 if weights.proj is None else 1.0
        plain = weights.total_bias
        bias = None if plain is None else _scaled(plain)
        joint = weights.joint
        inputs: tuple[Constant, ...]
        double_g, width = False, 0
        down: Constant | None
        if joint is not None:
            V, n = joint.V.detach(), joint.shape[1] - weights.state
            inputs = (Constant.own(V[:, :n]),)
            down = Constant.own(sign * V[:, n:])
            up = Constant.own(_scaled(joint.U), bias)
        elif fused:
            first, (U, V) = (pair_of(weight) for weight in weights.pairs())
            inputs, width = (Constant(first[1]),), len(first[1])
            down = Constant.own(sign * V)
            up = Constant.own(_scaled(torch.cat([first[0], U], dim=1)), bias)
        else:
            wi, wh = weights.separate()
            if isinstance(wi, Tensor):
                # the weight stays the caller's own, and its rows of g are doubled in what it makes
                inputs, double_g = (Constant(wi, plain),), True
            else:
                U, V = pair_of(wi)
                inputs = (Constant(V), Constant.own(_scaled(U), bias))
            if isinstance(wh, Tensor):
                down, up = None, Constant.own(sign * _scaled(wh))
            else:
                U, V = pair_of(wh)
                down, up = Constant.own(sign * V), Constant.own(_scaled(U))
        return cls(
            weights.hidden, weights.state, inputs, double_g, down, up, fused or joint is not None,
            width,
            _projections(weights.proj), weights.cell_clip, weights.proj_clip,
        )  # fmt: skip


def _scaled(rows: Tensor) -> Tensor:
    """Return rows (4H, ...) with those of g doubled."""
    scaled = rows.detach().clone()
    H = len(rows) // 4
    scaled[2 * H : 3 * H] *= 2
    return scaled


def _projections(proj: Weight | None) -> tuple[Constant, ...]:
    if proj is None:
        return ()
    if isinstance(proj, Tensor):
        return (Constant.own(-proj.detach()),)
    U, V = pair_of(proj)
    return (Constant.own(-V), Constant(U))


@dataclass(frozen=True, slots=True)
class Span:
    """Some steps of the input: their rows in the flat input, and the batch of each."""

    start: int
    stop: int
    sizes: tuple[int, ...]


def spans(sizes: Sequence[int], width: int, *, reverse: bool) -> Iterator[Span]:
    """Yield steps by chunks of at most 6 MiB of `width` bytes a row, in the order of the run."""
    limit = max(1, _CHUNK_BYTES // width)
    found: list[Span] = []
    start = stop = 0
    taken: list[int] = []
    for size in sizes:
        if taken and stop - start + size > limit:
            found.append(Span(start, stop, tuple(taken)))
            start, taken = stop, []
        taken.append(size)
        stop += size
    found.append(Span(start, stop, tuple(taken)))
    return iter(found[::-1] if reverse else found)


def run(
    prepared: Prepared,
    x: Tensor,
    h: Tensor,
    c: Tensor,
    sizes: Sequence[int],
    *,
    reverse: bool,
    compiled: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the steps; no gradients.

    Parameters
    ----------
    x : (rows, I)
        Steps one after the other, as in a packed sequence.
    h, c : (B, P), (B, H)
    sizes : sequence of int
        Rows of each step, descending.
    compiled : bool
        Whether numba runs them: one size for all steps, a recurrent pair that isn't fused, no
        projection, no clip, float32 on the CPU.

    Returns
    -------
    out (rows, P), h (B, P), c (B, H)
    """
    p = prepared
    out = x.new_empty(len(x), p.state)
    state = _State(p, h, c)
    early = _early(p, x)
    for span in spans(sizes, 4 * p.hidden * x.element_size(), reverse=reverse):
        here = slice(span.start, span.stop)
        ready = early[here]
        if not p.fused:
            ready = p.inputs[-1](ready)
        if compiled:
            _compiled_chunk(p, state, ready, out[here], span.sizes, reverse=reverse)
            continue
        if p.double_g:
            ready[:, 2 * p.hidden : 3 * p.hidden] *= 2
        _chunk(p, state, ready, out[here], span.sizes, reverse=reverse)
        if not p.proj:
            state.keep()
            out[here].neg_()
    return out, *state.last()


def _early(p: Prepared, x: Tensor) -> Tensor:
    """Return what is made of the input for all steps at once: it is a rank wide, or the input."""
    if not p.fused:
        return p.inputs[0](x) if len(p.inputs) > 1 else x
    if not p.width or p.down is None:
        return p.inputs[0](x)
    inner = x.new_empty(len(x), p.width + len(p.down.W))
    p.inputs[0].writer(len(x))(x, inner[:, : p.width])
    return inner


class _State:
    """h and c of every sequence between steps: -h where there is no projection, and 2 c."""

    def __init__(self, prepared: Prepared, h: Tensor, c: Tensor) -> None:
        self._sign = 1 if prepared.proj else -1
        self._first = h if prepared.proj else -h
        self._done = self._first.clone()
        self.c = c * 2
        self.h = self._first

    def resize(self, size: int) -> None:
        """Set the batch of the next step: sequences that end are put by, others come in."""
        have = len(self.h)
        if size == have:
            return
        if size < have:
            self._done[size:have] = self.h[size:]
            self.h = self.h[:size]
        else:
            self.h = torch.cat([self.h, self._first[have:size]])

    def keep(self) -> None:
        """Take h out of the outputs, which are about to change."""
        self.h = self.h.clone()

    def last(self) -> tuple[Tensor, Tensor]:
        self._done[: len(self.h)] = self.h
        return self._done * self._sign, self.c / 2


def _chunk(
    p: Prepared, state: _State, ready: Tensor, out: Tensor, sizes: Sequence[int], *, reverse: bool
) -> None:
    """Run the steps of a span; `ready` is what their gates are made from, or gates themselves."""
    largest = max(sizes)
    squashed, hidden = out.new_empty(2, largest, p.hidden)
    low = out.new_empty(largest, len(p.down.W) if p.down is not None else 0)
    gate_buffer = out.new_empty(largest if p.fused else 0, 4 * p.hidden)
    starts = ready.split_with_sizes(sizes)
    recurrent = ready[:, p.width :].split_with_sizes(sizes) if p.fused else starts
    gates_of = (
        []
        if p.fused
        else list(zip(*(x.split_with_sizes(sizes) for x in _gates(ready)), strict=True))
    )
    outputs = out.split_with_sizes(sizes)
    bound = None if p.cell_clip is None else 2 * p.cell_clip
    size = -1
    for t in range(len(sizes) - 1, -1, -1) if reverse else range(len(sizes)):
        y = outputs[t]
        if sizes[t] != size:
            size = sizes[t]
            state.resize(size)
            cell, tanh, inner, m = state.c[:size], squashed[:size], low[:size], hidden[:size]
            down, up = _recurrent(p, size)
            project = p.proj[-1].writer(size) if p.proj else None
            if p.fused:
                gates = gate_buffer[:size]
                i, f, g, o = _gates(gates)
        if p.fused:
            down(state.h, recurrent[t])
            up(starts[t], gates)
        else:
            gates = starts[t]
            i, f, g, o = gates_of[t]
            up(state.h if p.down is None else down(state.h, inner), gates)
        gates.sigmoid_()
        cell.mul_(f).addcmul_(i, g, value=4).sub_(i, alpha=2)
        if bound is not None:
            cell.clamp_(-bound, bound)
        torch.sigmoid(cell, out=tanh)
        if project is None:
            torch.addcmul(o, o, tanh, value=-2, out=y)
        else:
            torch.addcmul(o, o, tanh, value=-2, out=m)
            rest = m
            for product in p.proj[:-1]:
                rest = product(rest)
            project(rest, y)
            if p.proj_clip is not None:
                y.clamp_(-p.proj_clip, p.proj_clip)
        state.h = y


def _recurrent(p: Prepared, size: int) -> tuple[Product, Product]:
    """Return what a step of so many rows does with the state, and with what came of it."""
    up = p.up.writer(size) if p.fused else p.up.adder(size)
    if p.down is None:
        return up, up
    # a joint pair's product with the state is added to that with the input
    return (p.down.adder(size) if p.fused and not p.width else p.down.writer(size)), up


def _compiled_chunk(
    p: Prepared, state: _State, ready: Tensor, out: Tensor, sizes: Sequence[int], *, reverse: bool
) -> None:
    from ckptshrink.runtime import compiled  # imports numba

    if p.down is None:
        raise LayoutError("is dense, and has no compiled loop")
    steps = len(sizes), sizes[0]
    state.h = state.h.contiguous()
    compiled.run(
        ready.view(*steps, -1).numpy(),
        p.down.W.contiguous().numpy(),
        p.up.W.t().contiguous().numpy(),
        state.h.numpy(),
        state.c.numpy(),
        out.view(*steps, -1).numpy(),
        double_g=p.double_g,
        reverse=reverse,
    )


def _gates(rows: Tensor) -> tuple[Tensor, ...]:
    """Return views of i, f, g and o."""
    return rows.chunk(4, dim=1)
