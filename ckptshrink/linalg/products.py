"""Products and norms of a large weight, block by block along its long side.

Everything a factorizer needs of a weight goes through `Weight`: blocks are cast and scaled as they
are read, so that no second copy of the weight is made.
"""

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from ckptshrink.errors import CorruptCheckpointError, NonFiniteError

BLOCK: Final = 1 << 20
"""Elements of a block: 4 MiB of float32, which stays in cache between its uses."""

_SMALL: Final = 1 << 20
"""Multiply-adds below which the set-up of a convolution (50 µs) isn't worth it."""

_PANELS: Final = 4
"""Column panels of a Gram matrix: 4 leave out 3/8 of the work, and more were no faster."""

_SAFE_SQUARES: Final = (1e-20, 1e30)
"""Range of ‖W‖² in which squares in float32 neither overflow nor vanish where it matters."""

_RUN: Final = 512
"""Length of the runs whose norms are taken in one go; at 16384, float32 lost 5e-8 of them."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A matrix to be factorized: checked, and seen at a scale at which squares are safe.

    Attributes
    ----------
    W : (m, n), floating
        Never written to.
    scale : float
        A power of four: blocks are those of ``scale * W``, exactly.
    scaled_sq_norm : float
        ``norm(scale * W) ** 2``, summed in float64.
    """

    W: Tensor
    scale: float
    scaled_sq_norm: float

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        m, n = self.W.shape
        return m, n

    @property
    def tall(self) -> bool:
        """Whether the rows are the long side."""
        return self.shape[0] >= self.shape[1]

    @property
    def short(self) -> int:
        """min(m, n)."""
        return min(self.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the arithmetic: float64 for float64, float32 for everything else."""
        return torch.float64 if self.W.dtype == torch.float64 else torch.float32

    @property
    def sq_norm(self) -> float:
        """``norm(W) ** 2``."""
        return self.unscaled(self.scaled_sq_norm)

    def unscaled(self, square: float) -> float:
        """Return a square of scaled values as one of W's."""
        return square / self.scale / self.scale

    def slices(self) -> Iterator[slice]:
        """Yield slices that cover the long side."""
        step = max(1, BLOCK // self.short)
        return (slice(i, i + step) for i in range(0, max(self.shape), step))

    def block(self, part: slice, dtype: torch.dtype) -> Tensor:
        """Return ``scale * W`` for a slice of the long side; a view of W where it can be."""
        block = (self.W[part] if self.tall else self.W[:, part]).to(dtype)
        return block if self.scale == 1.0 else block * self.scale


def weigh(W: Tensor) -> Weight:
    """Check a matrix, choose its scale and take its norm.

    Raises
    ------
    NonFiniteError
        W has a NaN or an infinity; the message gives the count.
    CorruptCheckpointError
        W is not a floating matrix with at least one entry.
    """
    if W.ndim != 2 or not W.is_floating_point() or W.numel() == 0:
        kind = str(W.dtype).removeprefix("torch.")
        raise CorruptCheckpointError(
            f"needs a floating matrix with entries; got {kind} of shape {tuple(W.shape)}"
        )
    weight = Weight(W.detach(), 1.0, 0.0)
    total = _total(weight)
    low, high = _SAFE_SQUARES
    if low <= total <= high:
        return Weight(weight.W, 1.0, total)
    largest = _largest(weight)
    if largest == 0.0:
        return weight
    # Squares of 1e20 overflow float32 and those of 1e-20 vanish. A power of four, so that the
    # root of it, by which each factor is scaled back, loses nothing either.
    # Of denormal numbers it would itself be beyond float32: 2**126 brings their squares far enough.
    most = 511 if weight.dtype == torch.float64 else 63
    scale = 4.0 ** min(most, -round(math.log2(largest) / 2))
    scaled = Weight(weight.W, scale, _total(Weight(weight.W, scale, 0.0)))
    if not 0.0 < scaled.sq_norm < math.inf:
        raise NonFiniteError(f"the square of its largest value, {largest:g}, is beyond float64")
    return scaled


def gram(weight: Weight, dtype: torch.dtype) -> Tensor:
    """Return the Gram matrix of the short side: ``W' W`` of a tall weight, ``W W'`` of a wide one.

    Returns
    -------
    (k, k), dtype
        The lower triangle, of ``scale * W``, and zeros above it.
    """
    k = weight.short
    G = torch.zeros(k, k, dtype=dtype, device=weight.W.device)
    edges = [k * i // _PANELS for i in range(_PANELS + 1)]
    for part in weight.slices():
        block = weight.block(part, dtype)
        X = (block.T if weight.tall else block).contiguous()  # (k, b)
        for start, stop in itertools.pairwise(edges):
            if start < stop:
                G[start:, start:stop] += matmul(X[start:], X[start:stop].T)
    return G.tril_()


def mirrored(G: Tensor) -> Tensor:
    """Return a whole symmetric matrix from its lower triangle, above which G is 0."""
    whole = G + G.T
    whole.diagonal().mul_(0.5)
    return whole


def times(weight: Weight, X: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return ``W @ X`` at the weight's scale.

    Parameters
    ----------
    X : (n, r)
        In the dtype of the arithmetic.
    dtype : torch.dtype, optional
        Of the result; by default that of `X`.

    Returns
    -------
    (m, r), dtype
        Contiguous.
    """
    shape = (weight.shape[0], X.shape[1])
    if weight.tall:
        out = torch.empty(shape, dtype=dtype or X.dtype, device=X.device)
        for part in weight.slices():
            out[part] = matmul(weight.block(part, X.dtype), X)
        return out
    total = torch.zeros(shape, dtype=X.dtype, device=X.device)
    for part in weight.slices():
        total += matmul(weight.block(part, X.dtype), X[part])
    return total.to(dtype or X.dtype)


def left_times(weight: Weight, X: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return ``X' @ W`` at the weight's scale.

    Parameters
    ----------
    X : (m, r)
        In the dtype of the arithmetic.
    dtype : torch.dtype, optional
        Of the result; by default that of `X`.

    Returns
    -------
    (r, n), dtype
        Contiguous.
    """
    shape = (X.shape[1], weight.shape[1])
    if not weight.tall:
        out = torch.empty(shape, dtype=dtype or X.dtype, device=X.device)
        for part in weight.slices():
            out[:, part] = matmul(X.T, weight.block(part, X.dtype))
        return out
    total = torch.zeros(shape, dtype=X.dtype, device=X.device)
    for part in weight.slices():
        total += matmul(X[part].T, weight.block(part, X.dtype))
    return total.to(dtype or X.dtype)


def project(weight: Weight, X: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return ``W @ X`` of a tall weight and ``X' @ W`` of a wide one, for X (k, r)."""
    return times(weight, X, dtype) if weight.tall else left_times(weight, X, dtype)


def sq_residual(weight: Weight, U: Tensor, V: Tensor) -> float:
    """Return ``norm(W - U @ V) ** 2`` of a pair as stored.

    It is computed in float32 while that can tell, which is down to 1e-3 of the norm, and in
    float64 below; and where the pair's product cancels: a Semi-NMF with ``norm(U) norm(V)`` of 340
    times ``norm(W)`` came out 2e-4 off. What is compared with 1e-5 bounds the share that rounding
    can have in the square; at gate shapes, where it comes up to that, 2e-7 was seen.
    """
    found = _sq_residual(weight, U, V, weight.dtype)
    if weight.dtype != torch.float64:
        size = sq_norm(U.float()) * sq_norm(V.float()) * weight.scale**2
        rounding = torch.finfo(torch.float32).eps ** 2 * size
        if found < 1e-6 * weight.scaled_sq_norm or rounding > 1e-5 * found:
            found = _sq_residual(weight, U, V, torch.float64)
    return weight.unscaled(found)


def _sq_residual(weight: Weight, U: Tensor, V: Tensor, dtype: torch.dtype) -> float:
    if weight.W.stride(0) < weight.W.stride(1):  # blocks as they lie in memory
        weight = replace(weight, W=weight.W.T)
        U, V = V.T, U.T
    root = math.sqrt(weight.scale)
    kept = (V if weight.tall else U).to(dtype) * root
    total = 0.0
    for part in weight.slices():
        moving = (U[part] if weight.tall else V[:, part]).to(dtype) * root
        approximation = matmul(moving, kept) if weight.tall else matmul(kept, moving)
        total += sq_norm(weight.block(part, dtype) - approximation)
    return total


def sq_norm(block: Tensor) -> float:
    """Return the squared Frobenius norm of a tensor, summed in float64 over short runs."""
    flat = block.reshape(-1)
    whole = flat.numel() // _RUN * _RUN
    runs = torch.linalg.vector_norm(flat[:whole].view(-1, _RUN), dim=1)
    rest = torch.linalg.vector_norm(flat[whole:])
    return float(runs.double().square().sum() + rest.double().square())


def matmul(left: Tensor, right: Tensor) -> Tensor:
    """Return ``left @ right``; in float32 on an x86 CPU by oneDNN, as a 1x1 convolution.

    ``torch.mm`` goes to MKL there, which keeps to AVX2 on processors that aren't Intel's:
    97 GFLOP/s against 220 by oneDNN on a Zen 5 core. Both are float32 throughout, and their
    results agree to 4e-7 of the norm.
    """
    (a, k), b = left.shape, right.shape[1]
    fits = left.dtype == torch.float32 and left.device.type == "cpu" and a * b * k >= _SMALL
    if not fits or not _onednn():
        return torch.mm(left, right)
    large = left if a > b else right
    if a != b and not large.is_contiguous() and large.T.is_contiguous():
        return matmul(right.T, left.T).T  # taken as it lies in memory, and not copied
    if a >= b:
        # the rows of `left` as pixels, channels last
        image = left.contiguous().view(1, a, 1, k).permute(0, 3, 1, 2)
        return _convolve(image, right.T.contiguous()).permute(0, 2, 3, 1).reshape(a, b)
    image = right.contiguous().view(1, k, b, 1)
    return _convolve(image, left.contiguous()).reshape(a, b)


def _convolve(image: Tensor, kernel: Tensor) -> Tensor:
    # under its own name, since conv2d leaves oneDNN aside for small batches on one thread
    kernel = kernel.view(*kernel.shape, 1, 1)
    return torch.mkldnn_convolution(image, kernel, None, (0, 0), (1, 1), (1, 1), 1)


@functools.cache
def _onednn() -> bool:
    """Whether the operation is there and right: torch doesn't document it, so it is tried once."""
    capability: str = torch.backends.cpu.get_cpu_capability()
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not available or not capability.startswith("AVX"):
        return False
    kernel = torch.arange(6.0).view(2, 3)
    try:
        made = _convolve(torch.arange(12.0).view(1, 3, 4, 1), kernel).reshape(2, 4)
        return bool(torch.allclose(made, kernel @ torch.arange(12.0).view(3, 4)))
    except (RuntimeError, AttributeError, TypeError, NotImplementedError):
        return False


def _total(weight: Weight) -> float:
    return sum(sq_norm(weight.block(part, weight.dtype)) for part in weight.slices())


def _largest(weight: Weight) -> float:
    """Largest magnitude of a weight; raises if there is none because of a NaN or an infinity."""
    largest = 0.0
    for part in weight.slices():
        here = float(weight.block(part, weight.dtype).abs().amax())
        if not math.isfinite(here):
            bad = _nonfinite(weight)
            raise NonFiniteError(f"{bad} of {weight.W.numel()} values are NaN or infinite")
        largest = max(largest, here)
    return largest


def _nonfinite(weight: Weight) -> int:
    blocks = (weight.block(part, weight.dtype) for part in weight.slices())
    return sum(int((~block.isfinite()).sum()) for block in blocks)
