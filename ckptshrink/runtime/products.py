"""Products with a constant matrix, by whichever of torch's libraries is quickest at it."""

import functools
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

from ckptshrink.runtime.watch import Watch

Product: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""``f(x, out)``, which writes to `out` or adds to it, and returns it."""

_PACKED_ROWS: Final = 4
"""Rows from which oneDNN is tried: with fewer a product is a pass over the matrix."""

_PACKED_SIDE: Final = 64
"""Shorter side of the matrix from which it is: at 10 its overhead of 15 µs was all there was."""


_REMEMBERED_BYTES: Final = 64 << 20
"""Largest weight of a model's own that is kept in a second order."""


class Constant:
    """A constant matrix W (n, k), for products ``x @ W.T + bias``.

    oneDNN wants a matrix in an order of its own. `torch.nn.functional.linear` either reorders it at
    every call or goes to MKL, which on processors that aren't Intel's keeps to AVX2: 70 rows by
    (4600, 400) took 3.2 ms by MKL, 2.2 reordered each time and 1.3 by a matrix that was ordered
    once. The ordered copy is made when it is first of use.

    Parameters
    ----------
    W : (n, k)
        Not copied, not changed.
    bias : (n,), optional
    """

    def __init__(self, W: Tensor, bias: Tensor | None = None) -> None:
        self.W = W.detach()
        self.bias = None if bias is None else bias.detach()
        self._transposed = self.W.t()
        self._ordered: Tensor | None = None
        fits = self.W.dtype == torch.float32 and self.W.device.type == "cpu"
        self._orderable = fits and min(self.W.shape) >= _PACKED_SIDE

    @classmethod
    def own(cls, W: Tensor, bias: Tensor | None = None) -> "Constant":
        """Make one of a matrix that nobody else holds, in the memory order that suits one row.

        One row by (4600, 20) took 5 µs with the long side contiguous, and 10 with the short one.
        """
        n, k = W.shape
        return cls(W.t().contiguous().t() if n > k else W.contiguous(), bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``x @ W.T + bias``, new, for x (rows, k)."""
        if self._by_onednn(x.shape[0]):
            return _linear(x, self._in_order(), self.bias)
        if self.bias is None:
            return torch.mm(x, self._transposed)
        return torch.addmm(self.bias, x, self._transposed)

    def writer(self, rows: int) -> Product:
        """Return ``f(x, out)``, which writes ``x @ W.T + bias`` to `out` (rows, n) and returns it.

        What can be decided before the steps is: a question costs as much as a small product.
        """
        W, bias = self._transposed, self.bias
        if self._by_onednn(rows):
            ordered = self._in_order()
            return lambda x, out: out.copy_(_linear(x, ordered, bias))
        if bias is None:
            return lambda x, out: torch.mm(x, W, out=out)
        return lambda x, out: torch.addmm(bias, x, W, out=out)

    def adder(self, rows: int) -> Product:
        """Return ``f(x, total)``, which adds ``x @ W.T`` to `total` (rows, n) and returns it."""
        W = self._transposed
        if self._by_onednn(rows):
            ordered = self._in_order()
            return lambda x, total: total.add_(_linear(x, ordered, None))
        return lambda x, total: total.addmm_(x, W)

    def _by_onednn(self, rows: int) -> bool:
        return self._orderable and rows >= _PACKED_ROWS and onednn_packs()

    def _in_order(self) -> Tensor:
        if self._ordered is None:
            # rows unknown: one copy serves every batch size
            self._ordered = _ops()._reorder_linear_weight(self.W.contiguous(), None)
        return self._ordered


class Remembered:
    """A product with a weight that may change, ordered for oneDNN while it doesn't.

    The ordered copy takes as much memory again, so that large weights go without.
    """

    def __init__(self) -> None:
        self._watch = Watch()
        self._constant: Constant | None = None

    def __call__(self, x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
        """Return ``x @ W.T + bias`` for x (rows, k); differentiable."""
        watched = (W,) if bias is None else (W, bias)
        wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *watched))
        if (
            wanted
            or W.numel() * W.element_size() > _REMEMBERED_BYTES
            or torch.compiler.is_compiling()
        ):
            return torch.nn.functional.linear(x, W, bias)
        if self._watch.changed(watched) or self._constant is None:
            self._constant = Constant(W, bias)
        return self._constant(x)

    def __reduce__(self) -> tuple[type["Remembered"], tuple[()]]:
        """Copy and pickle as a new one."""
        return Remembered, ()


def _ops() -> Any:
    return torch.ops.mkldnn


def _linear(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = _ops()._linear_pointwise(x, packed, bias, "none", [], "")
    return y


@functools.cache
def onednn_packs() -> bool:
    """Whether this torch has oneDNN's linear layer with a weight ordered in advance.

    These operations are torch's own means for its compiler and are not documented, so that they
    are tried on a small matrix before anything relies on them.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    x, W = torch.arange(32.0).view(2, 16), torch.arange(64.0).view(4, 16)
    try:
        packed = _ops()._reorder_linear_weight(W, None)
        return bool(torch.allclose(_linear(x, packed, torch.ones(4)), x @ W.T + 1))
    except (RuntimeError, AttributeError, TypeError, NotImplementedError):
        return False
