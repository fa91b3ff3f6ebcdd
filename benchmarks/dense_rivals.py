"""What the runtime is measured against: dense LSTMs as torch runs them, and as others write them.

All but AllenNLP's cell have the inputs and outputs of a one-layer `nn.LSTM`.
"""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

State = tuple[Tensor, Tensor]
Module = Callable[..., Any]


class AddmmLoop(nn.Module):
    """A dense LSTM as a careful user of torch writes it.

    The input part is one product for all steps; a step is one product and a few operations in
    place.
    """

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.wi, self.wh = lstm.weight_ih_l0.detach(), lstm.weight_hh_l0.detach()
        self.bias = (lstm.bias_ih_l0 + lstm.bias_hh_l0).detach()

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return outputs (T, B, H) and last states for x (T, B, I)."""
        T, B, _ = x.shape
        H = self.wh.shape[1]
        h, c = (t[0] for t in state) if state is not None else (x.new_zeros(B, H),) * 2
        c = c.clone()
        ready = torch.addmm(self.bias, x.reshape(T * B, -1), self.wi.t()).view(T, B, 4 * H)
        out = x.new_empty(T, B, H)
        recurrent = self.wh.t()
        for gates, y in zip(ready.unbind(), out.unbind(), strict=True):
            gates.addmm_(h, recurrent)
            i, f, g, o = gates.chunk(4, 1)
            gates[:, : 2 * H].sigmoid_()
            c.mul_(f).addcmul_(i, g.tanh_())
            torch.tanh(c, out=y)
            h = y.mul_(o.sigmoid_())
        return out, (h[None], c[None])


def without_onednn(run: Module) -> Module:
    """Return a module's twin that runs while oneDNN is switched off."""

    def call(*args: Any) -> Any:
        with torch.backends.mkldnn.flags(enabled=False):
            return run(*args)

    return call


def in_bfloat16(module: nn.Module) -> Module:
    """Return a module's twin in bfloat16; floating inputs are cast before, outside of the clock."""
    return copy.deepcopy(module).bfloat16()


def in_int8(module: nn.Module) -> Module | None:
    """Return a module's twin with dynamic int8 weights, or None where this torch has none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated
        try:
            twin: Module = torch.ao.quantization.quantize_dynamic(
                copy.deepcopy(module), {nn.LSTM, nn.Linear}, dtype=torch.qint8
            )
        except (AttributeError, RuntimeError):
            return None
    return twin


class AllenNLPCell(nn.Module):
    """One direction of one layer of an ELMo, in the steps that AllenNLP's code takes.

    Sequences come padded, the longest first. Each step takes the rows that are not at their end
    yet, copies their state, makes the input's part and the state's part with a linear layer each,
    adds them gate by gate, projects with a third, and writes the rows back into fresh copies of the
    whole batch's states.
    """

    def __init__(
        self, wi: Tensor, wh: Tensor, bias: Tensor, proj: Tensor, clip: float, *, reverse: bool
    ) -> None:
        super().__init__()
        self.of_input = _linear(wi, None)
        self.of_state = _linear(wh, bias)
        self.projection = _linear(proj, None)
        self.hidden = wh.shape[0] // 4
        self.clip = clip
        self.reverse = reverse

    def forward(self, x: Tensor, lengths: list[int]) -> Tensor:
        """Return outputs (B, T, P) for x (B, T, I)."""
        B, T, _ = x.shape
        H = self.hidden
        out = x.new_zeros(B, T, self.projection.out_features)
        all_c = x.new_zeros(B, H)
        all_h = x.new_zeros(B, self.projection.out_features)
        for step in range(T):
            t = T - 1 - step if self.reverse else step
            n = sum(length > t for length in lengths)
            c, h = all_c[:n].clone(), all_h[:n].clone()
            given, kept = self.of_input(x[:n, t]), self.of_state(h)
            i, f, g, o = (
                given[:, k * H : (k + 1) * H] + kept[:, k * H : (k + 1) * H] for k in range(4)
            )
            c = torch.sigmoid(i) * torch.tanh(g) + torch.sigmoid(f) * c
            c = torch.clamp(c, -self.clip, self.clip)
            h = self.projection(torch.sigmoid(o) * torch.tanh(c))
            h = torch.clamp(h, -self.clip, self.clip)
            all_c, all_h = all_c.clone(), all_h.clone()
            all_c[:n], all_h[:n], out[:n, t] = c, h, h
        return out


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer
