"""The recurrence of a GRU layer in inference: what doesn't need the state is done in advance.

``r, z = s(Wi x + bi + Wh h + bh)``, ``n = tanh(Wi_n x + bi_n + r (Wh_n h + bh_n))``,
``h = (1 - z) n + z h``. As in `steps`, tanh is ``2 sigmoid(2 x) - 1``, with the 2 in the weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ckptshrink.runtime.products import Constant
from ckptshrink.runtime.steps import spans
from ckptshrink.runtime.watch import Watch
from ckptshrink.runtime.weights import Weight, pair_of, shape_of, tensors_of


@dataclass(frozen=True, slots=True)
class GRUWeights:
    """Weights of one direction of one layer, gates in the order r, z, n.

    Attributes
    ----------
    wi, wh : Weight
        (3H, I) and (3H, H).
    bias_ih, bias_hh : (3H,) or None
        Both, since r multiplies the second one's part of n.
    """

    wi: Weight
    wh: Weight
    bias_ih: Tensor | None
    bias_hh: Tensor | None

    @property
    def hidden(self) -> int:
        """Size H of the state."""
        return shape_of(self.wh)[1]

    def tensors(self) -> tuple[Tensor, ...]:
        """Return every tensor that the outputs depend on."""
        biases = tuple(b for b in (self.bias_ih, self.bias_hh) if b is not None)
        return (*tensors_of(self.wi), *tensors_of(self.wh), *biases)


class GRURecurrence:
    """The runner of one direction of one layer; it remembers what it prepared.

    A change of a weight in place is noticed, unless it is made through ``.data``: `forget` is for
    that.
    """

    def __init__(self) -> None:
        self._watch = Watch()
        self._prepared: _Prepared | None = None

    def __call__(
        self,
        weights: GRUWeights,
        x: Tensor,
        h: Tensor,
        sizes: Sequence[int],
        *,
        reverse: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Run all steps, without gradients.

        Parameters
        ----------
        x : (rows, I)
            Steps one after the other, as in a packed sequence.
        h : (B, H)
        sizes : sequence of int
            Rows of each step, descending.
        reverse : bool
            Whether time runs backwards; outputs stay at their own steps.

        Returns
        -------
        out : (rows, H)
        h : (B, H)
            State after each sequence's own last step.
        """
        with torch.no_grad():
            return _run(self._ready(weights), x, h, sizes, reverse=reverse)

    def forget(self) -> None:
        """Let go of what was prepared."""
        self._watch.forget()

    def __reduce__(self) -> tuple[type["GRURecurrence"], tuple[()]]:
        """Copy and pickle as a new one: matrices in oneDNN's own order can be neither."""
        return GRURecurrence, ()

    def _ready(self, weights: GRUWeights) -> "_Prepared":
        changed = self._watch.changed(weights.tensors())
        if self._prepared is None or changed:
            self._prepared = _Prepared.of(weights)
        return self._prepared


@dataclass(frozen=True, slots=True)
class _Prepared:
    """Weights as the steps use them: the rows of n are doubled, in `up` and in what `inputs` make.

    `inputs` are applied in turn to the input; `double_n` says that the last of them is the caller's
    own dense weight, not scaled. `down` is V of a recurrent pair, `up` its U or the dense Wh.
    """

    hidden: int
    inputs: tuple[Constant, ...]
    double_n: bool
    down: Constant | None
    up: Constant

    @classmethod
    def of(cls, weights: GRUWeights) -> "_Prepared":
        H = weights.hidden
        early, late = _biases(weights, H)
        double_n = isinstance(weights.wi, Tensor)
        inputs: tuple[Constant, ...]
        if isinstance(weights.wi, Tensor):
            inputs = (Constant(weights.wi, early),)
        else:
            U, V = pair_of(weights.wi)
            bias = None if early is None else _doubled(early)
            inputs = (Constant.own(V), Constant.own(_doubled(U), bias))
        late = None if late is None else _doubled(late)
        if isinstance(weights.wh, Tensor):
            return cls(H, inputs, double_n, None, Constant.own(_doubled(weights.wh), late))
        U, V = pair_of(weights.wh)
        return cls(H, inputs, double_n, Constant.own(V), Constant.own(_doubled(U), late))


def _biases(weights: GRUWeights, H: int) -> tuple[Tensor | None, Tensor | None]:
    """Return the biases that are added to the input's part, and to the state's part of n."""
    b_ih, b_hh = weights.bias_ih, weights.bias_hh
    early = None if b_ih is None else b_ih.detach().clone()
    if b_hh is None:
        return early, None
    late = b_hh.detach().clone()
    late[: 2 * H] = 0
    early = b_hh - late if early is None else early + b_hh.detach() - late
    return early, late


def _doubled(rows: Tensor) -> Tensor:
    """Return rows (3H, ...) with those of n doubled."""
    doubled = rows.detach().clone()
    doubled[len(rows) // 3 * 2 :] *= 2
    return doubled


def _run(
    p: _Prepared, x: Tensor, first: Tensor, sizes: Sequence[int], *, reverse: bool
) -> tuple[Tensor, Tensor]:
    H = p.hidden
    out = x.new_empty(len(x), H)
    last = first.clone()
    h = first[: sizes[-1 if reverse else 0]]
    for factor in p.inputs[:-1]:
        x = factor(x)
    gate_buffer = x.new_empty(len(first), 3 * H)
    low_buffer = x.new_empty(len(first), len(p.down.W) if p.down is not None else 0)
    minus_one = x.new_full((), -1)
    for span in spans(sizes, 3 * H * x.element_size(), reverse=reverse):
        here = slice(span.start, span.stop)
        ready = p.inputs[-1](x[here])
        if p.double_n:
            ready[:, 2 * H :] *= 2
        early_rz = torch.split_with_sizes(ready[:, : 2 * H], span.sizes)
        early_n = torch.split_with_sizes(ready[:, 2 * H :], span.sizes)
        outputs = torch.split_with_sizes(out[here], span.sizes)
        size = -1
        for t in range(len(span.sizes) - 1, -1, -1) if reverse else range(len(span.sizes)):
            y = outputs[t]
            if len(y) != size:
                size = len(y)
                h = _resized(h, size, first, last)
                low, gates = low_buffer[:size], gate_buffer[:size]
                rz, n = gates[:, : 2 * H], gates[:, 2 * H :]
                r, z = rz.chunk(2, dim=1)
                up, down = p.up.writer(size), p.down.writer(size) if p.down is not None else None
            up(h if down is None else down(h, low), gates)
            rz.add_(early_rz[t]).sigmoid_()
            torch.addcmul(early_n[t], r, n, out=n).sigmoid_()
            torch.add(minus_one, n, alpha=2, out=n)
            torch.lerp(n, h, z, out=y)
            h = y
    last[: len(h)] = h
    return out, last


def _resized(h: Tensor, size: int, first: Tensor, last: Tensor) -> Tensor:
    """Return the state for the batch of the next step: sequences that end are put into `last`."""
    have = len(h)
    if size < have:
        last[size:have] = h[size:]
        return h[:size]
    return torch.cat([h, first[have:size]]) if size > have else h
