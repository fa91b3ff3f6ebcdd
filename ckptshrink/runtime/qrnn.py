"""The quasi-recurrent layer of AWD-QRNN language models, with a weight that may be a pair."""

from typing import Final, TypeAlias

import torch
from torch import Tensor, nn

from ckptshrink.errors import LayoutError
from ckptshrink.runtime.linear import FactoredLinear
from ckptshrink.runtime.steps import spans

GATES: Final = "zfo"
"""Order of the gates: candidate, forget and output."""

WINDOWS: Final = (1, 2)
"""How many inputs a step can look at."""

_IN_PLACE: Final = frozenset({torch.float32, torch.float64})

QRNNState: TypeAlias = tuple[Tensor, Tensor | None]
"""``c`` (1, B, H), and with window 2 the previous input (1, B, I)."""


class QRNNLayer(nn.Module):
    """One layer of a quasi-recurrent network: a layer of torchqrnn, or of fastai, in evaluation.

    With ``y_t = [x_t, x_{t-1}]`` for window 2 and ``y_t = x_t`` for window 1::

        z, f, o = tanh(Wz y + bz), s(Wf y + bf), s(Wo y + bo)
        c_t = f_t z_t + (1 - f_t) c_{t-1}
        h_t = o_t c_t

    There is no zoneout. What torchqrnn keeps within the layer between calls, the last input, is
    part of the state here, so that a text in two parts gives what it gives in one.

    Parameters
    ----------
    linear : nn.Linear or FactoredLinear
        Its weight is (3H, window * I), gates in the order z, f, o, columns ``[x_t, x_{t-1}]``.
    window : int
        1 or 2.

    Raises
    ------
    LayoutError
        The shapes are not of such a layer.

    Examples
    --------
    >>> layer = QRNNLayer(nn.Linear(6, 12), window=2)
    >>> out, (c, last) = layer(torch.ones(5, 2, 3))
    >>> tuple(out.shape), tuple(c.shape), tuple(last.shape)
    ((5, 2, 4), (1, 2, 4), (1, 2, 3))
    """

    def __init__(self, linear: nn.Linear | FactoredLinear, *, window: int = 1) -> None:
        super().__init__()
        m, n = linear.out_features, linear.in_features
        if window not in WINDOWS:
            raise LayoutError(f"has no window of {window}: a QRNN layer looks at 1 or 2 inputs")
        if m % len(GATES) or n % window or not m or not n:
            raise LayoutError(
                f"is no QRNN layer: {m} rows for 3 gates, {n} columns for {window} inputs"
            )
        self.input_size = n // window
        self.hidden_size = m // len(GATES)
        self.window = window
        self.linear = linear

    @classmethod
    def from_linear(cls, linear: nn.Linear, rank: int, *, window: int = 1) -> "QRNNLayer":
        """Factorize the linear layer of a QRNN by truncated SVD; its bias parameter is shared.

        Raises
        ------
        RankError
            The rank is not within 1 .. min(3H, window * I).
        LayoutError
            The shapes are not of such a layer.
        """
        return cls(FactoredLinear.from_linear(linear, rank), window=window)

    @property
    def rank(self) -> int | None:
        """Rank of the weight, None if it is dense."""
        return self.linear.rank if isinstance(self.linear, FactoredLinear) else None

    def initial_state(self, batch: int) -> QRNNState:
        """Return the state before any input: zeros."""
        like = next(self.parameters())
        c = like.new_zeros(1, batch, self.hidden_size)
        return c, like.new_zeros(1, batch, self.input_size) if self.window > 1 else None

    def forward(self, x: Tensor, state: QRNNState | None = None) -> tuple[Tensor, QRNNState]:
        """Return outputs and the last state.

        Parameters
        ----------
        x : (T, B, I)
        state : QRNNState, optional
            As an earlier call returned it; zeros if not given. Detach it between the parts of a
            text in training, as any other.

        Returns
        -------
        out : (T, B, H)
        state : QRNNState

        Raises
        ------
        ValueError
            Shapes disagree.
        """
        if x.dim() != 3 or x.shape[-1] != self.input_size:
            raise ValueError(f"expected (T, B, {self.input_size}), got {tuple(x.shape)}")
        c, previous = self.initial_state(x.shape[1]) if state is None else state
        if c.shape != (1, x.shape[1], self.hidden_size):
            want = (1, x.shape[1], self.hidden_size)
            raise ValueError(f"expected a state of {want}, got {tuple(c.shape)}")
        if self.window > 1:
            if previous is None or previous.shape != (1, *x.shape[1:]):
                raise ValueError("expected a state with the previous input in it, for window 2")
            past = torch.cat([previous, x])
            source, previous = torch.cat([x, past[:-1]], dim=-1), past[-1:]
        else:
            source, previous = x, None
        run = self._in_place if self._is_plain(source, c) else self._differentiable
        out, c = run(source, c[0])
        return out, (c.unsqueeze(0), previous)

    def extra_repr(self) -> str:
        """Return sides and window."""
        return f"{self.input_size}, {self.hidden_size}, window={self.window}"

    def _is_plain(self, source: Tensor, c: Tensor) -> bool:
        """Whether nothing but the values is wanted of a call."""
        tensors = (source, c, *self.parameters())
        wanted = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        special = torch.is_autocast_enabled(source.device.type) or torch.compiler.is_compiling()
        return not wanted and not special and source.dtype in _IN_PLACE and source.numel() > 0

    def _differentiable(self, source: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        z, f, o = self.linear(source).chunk(3, dim=-1)
        z, f = z.tanh(), f.sigmoid()
        cells = []
        for z_t, f_t in zip(z.unbind(), f.unbind(), strict=True):
            c = torch.lerp(c, z_t, f_t)
            cells.append(c)
        return o.sigmoid() * torch.stack(cells) if cells else o, c

    def _in_place(self, source: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Run on c / 2, since ``tanh(z) / 2 = sigmoid(2 z) - 1/2`` costs a ninth of the tanh."""
        T, B, _ = source.shape
        H = self.hidden_size
        out = source.new_empty(T * B, H)
        rows = source.reshape(T * B, -1)
        half = c / 2
        for span in spans([B] * T, 3 * H * source.element_size(), reverse=False):
            here = slice(span.start, span.stop)
            gates = self.linear(rows[here]).detach()
            z, f, o = gates.chunk(3, dim=1)
            z *= 2
            gates.sigmoid_()
            z -= 0.5
            for y, z_t, f_t in zip(*(x.split(B) for x in (out[here], z, f)), strict=True):
                half = torch.lerp(half, z_t, f_t, out=y)
            half = half.clone()
            out[here].mul_(o).mul_(2)
        return out.view(T, B, H), half * 2
