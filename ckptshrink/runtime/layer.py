"""One direction of one LSTM layer: its weights, and the differentiable reference of its equations.

``[i, f, g, o] = Wi x_t + Wh h_{t-1} + b``, ``c_t = s(f) c_{t-1} + s(i) tanh(g)``,
``h_t = P (s(o) tanh(c_t))``, with P the identity where there is no projection, and c_t and h_t
clipped where ELMo clips them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ckptshrink.errors import LayoutError
from ckptshrink.runtime.weights import LowRank, PerGate, Weight, apply, shape_of, tensors_of

GATES = "ifgo"
"""Order of the gates everywhere in the runtime: torch's."""


@dataclass(frozen=True, slots=True)
class LSTMWeights:
    """Weights of one direction of one layer, gates in the order i, f, g, o.

    Attributes
    ----------
    wi : Weight or None
        (4H, I); None where `joint` is given.
    wh : Weight or None
        (4H, P), P being the size of the state h: that of the projection, or H.
    joint : LowRank or None
        (4H, I + P), of ``[Wi, Wh]`` in one.
    bias : (4H,) or None
        A forget bias is in it.
    bias_hh : (4H,) or None
        A second one to be added, where the model holds two.
    proj : Weight or None
        (P, H).
    cell_clip, proj_clip : float or None
        Bounds on the magnitude of c and of the projected h.
    """

    wi: Weight | None
    wh: Weight | None
    bias: Tensor | None
    joint: LowRank | None = None
    proj: Weight | None = None
    cell_clip: float | None = None
    proj_clip: float | None = None
    bias_hh: Tensor | None = None

    def separate(self) -> tuple[Weight, Weight]:
        """Return Wi and Wh.

        Raises
        ------
        LayoutError
            There are none: both are in one pair, or nothing was given.
        """
        if self.wi is None or self.wh is None:
            raise LayoutError("has no input or no recurrent weight of its own")
        return self.wi, self.wh

    def pairs(self) -> tuple[LowRank | PerGate, LowRank | PerGate]:
        """Return Wi and Wh where both are pairs.

        Raises
        ------
        LayoutError
            One is dense, or there is none.
        """
        wi, wh = self.separate()
        if isinstance(wi, Tensor) or isinstance(wh, Tensor):
            raise LayoutError("has a dense weight where two pairs are wanted")
        return wi, wh

    @property
    def total_bias(self) -> Tensor | None:
        """Sum of the biases."""
        if self.bias is None or self.bias_hh is None:
            return self.bias if self.bias_hh is None else self.bias_hh
        return self.bias + self.bias_hh

    @property
    def hidden(self) -> int:
        """Number H of cells."""
        weight = self.joint if self.joint is not None else self.separate()[1]
        return shape_of(weight)[0] // 4

    @property
    def state(self) -> int:
        """Size P of the state h."""
        return self.hidden if self.proj is None else shape_of(self.proj)[0]

    def tensors(self) -> tuple[Tensor, ...]:
        """Return every tensor that the outputs depend on."""
        weights = (self.wi, self.wh, self.joint, self.proj, self.bias, self.bias_hh)
        return tuple(t for w in weights for t in tensors_of(w))


def lstm_loop(
    weights: LSTMWeights,
    x: Tensor,
    h: Tensor,
    c: Tensor,
    *,
    batch_sizes: Sequence[int] | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the recurrence by ordinary operations: for training, and to check the fast routes by.

    Parameters
    ----------
    x : (T, B, I), or (sum(batch_sizes), I) of a packed sequence
    h : (B, P)
    c : (B, H)
    batch_sizes : sequence of int, optional
        Of a packed sequence, by step, descending.
    reverse : bool
        Whether time runs backwards; outputs stay at their own steps.

    Returns
    -------
    out : (T, B, P), or (sum(batch_sizes), P)
    h : (B, P)
    c : (B, H)
        States after each sequence's own last step.
    """
    width, bias = x.shape[-1], weights.total_bias
    if weights.joint is not None:
        joint = weights.joint
        inputs = torch.nn.functional.linear(x, joint.V[:, :width])
        recurrent = joint.V[:, width:]
    else:
        wi, wh = weights.separate()
        inputs = apply(wi, x, bias)
    steps = (
        inputs.split_with_sizes(list(batch_sizes)) if batch_sizes is not None else inputs.unbind(0)
    )
    outputs: list[Tensor] = [x] * len(steps)
    order = range(len(steps) - 1, -1, -1) if reverse else range(len(steps))
    for t in order:
        step = steps[t]
        n = len(step)
        past, rest_h, cell, rest_c = h[:n], h[n:], c[:n], c[n:]
        if weights.joint is not None:
            inner = step + torch.nn.functional.linear(past, recurrent)
            gates = torch.nn.functional.linear(inner, weights.joint.U, bias)
        else:
            gates = step + apply(wh, past)
        i, f, g, o = gates.chunk(4, 1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        if weights.cell_clip is not None:
            cell = cell.clamp(-weights.cell_clip, weights.cell_clip)
        past = o.sigmoid() * cell.tanh()
        if weights.proj is not None:
            past = apply(weights.proj, past)
            if weights.proj_clip is not None:
                past = past.clamp(-weights.proj_clip, weights.proj_clip)
        outputs[t] = past
        h = torch.cat([past, rest_h]) if len(rest_h) else past
        c = torch.cat([cell, rest_c]) if len(rest_c) else cell
    out = torch.cat(outputs) if batch_sizes is not None else torch.stack(outputs)
    return out, h, c
