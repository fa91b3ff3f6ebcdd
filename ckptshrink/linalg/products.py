"""Matrix products along the long side of a weight, block by block, and norms summed in float64.

Everything a factorizer needs of a large weight W goes through `Weight`: it is read in blocks of
its long side, cast and scaled block by block, so that no second copy of W is ever made.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ckptshrink.errors import CorruptCheckpointError, NonFiniteError

_BLOCK_ELEMENTS: Final = 1 << 20
"""Elements of a block: 4 MiB of float32, which stays in a core's share of the cache."""

_SMALL: Final = 1 << 18
"""Multiply-adds below which a convolution's set-up is not worth it (0.1 ms measured)."""

_SAFE_SQUARES: Final = (1e-20, 1e30)
"""Range of ‖W‖² in which float32 squares neither overflow nor lose what counts to underflow."""

_ROW: Final = 512
"""Length of the runs whose norms are taken in float32; longer ones lost 5e-8 at 16384."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A matrix to be factorized: checked, and seen at a scale where squares are safe.

    Attributes
    ----------
    W : (m, n), floating
        Never written to.
    scale : float
        An even power of two. Blocks are those of ``scale * W``, exactly.
    sq_norm : float
        ``norm(scale * W) ** 2``, summed in float64.
    """

    W: Tensor
    scale: float
    sq_norm: float

    @property
    def tall(self) -> bool:
        """Whether rows are the long side."""
        return self.W.shape[0] >= self.W.shape[1]

    @property
    def short(self) -> int:
        """min(m, n)."""
        return min(self.W.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype that W is computed in: float64 for float64, float32 for everything else."""
        return torch.float64 if self.W.dtype == torch.float64 else torch.float32

    def slices(self) -> Iterator[slice]:
        """Yield the blocks of the long side, as slices of it."""
        step = max(1, _BLOCK_ELEMENTS // self.short)
        return (slice(i, i + step) for i in range(0, max(self.W.shape), step))

    def block(self, part: slice, dtype: torch.dtype) -> Tensor:
        """Return ``scale * W`` for a slice of the long side; a view of W where it can be."""
        block = (self.W[part] if self.tall else self.W[:, part]).to(dtype)
        return block if self.scale == 1.0 else block * self.scale


def weigh(W: Tensor) -> Weight:
    """Check a matrix and take its norm.

    Raises
    ------
    NonFiniteError
        W has a NaN or an infinity; the message gives the count.
    CorruptCheckpointError
        W is not a floating matrix with at least one entry.
    """
    if W.ndim != 2 or not W.is_floating_point() or W.numel() == 0:
        raise CorruptCheckpointError(
            f"a floating matrix is needed; got {str(W.dtype).removeprefix('torch.')} "
            f"of shape {tuple(W.shape)}"
        )
    W = W.detach()
    weight = Weight(W, 1.0, 0.0)
    sq_norm = _sq_norm(weight)
    low, high = _SAFE_SQUARES
    if not low <= sq_norm <= high:  # also true of NaN
        largest = _largest(weight)
        if largest > 0:
            # Squares of 1e20 overflow float32 and those of 1e-20 vanish. An even power, so that
            # its root, by which each factor is scaled back, is a power of two as well.
            scale = 4.0 ** -round(math.log2(largest) / 2)
            weight = Weight(W, scale, 0.0)
        sq_norm = _sq_norm(weight)
    return Weight(W, weight.scale, sq_norm)


def _sq_norm(weight: Weight) -> float:
    total = 0.0
    for part in weight.slices():
        block = weight.block(part, weight.dtype)
        total += sq_norm(block)
    return total


def sq_norm(block: Tensor) -> float:
    """Return the squared Frobenius norm of a matrix, summed in float64 over short runs."""
    flat = block.reshape(-1)
    whole = flat.numel() // _ROW * _ROW
    runs = torch.linalg.vector_norm(flat[:whole].view(-1, _ROW), dim=1)
    rest = torch.linalg.vector_norm(flat[whole:])
    return float(runs.double().square().sum() + rest.double().square())


def _largest(weight: Weight) -> float:
    """Largest magnitude, 0 for a zero matrix."""
    low, high = math.inf, -math.inf
    for part in weight.slices():
        least, most = torch.aminmax(weight.block(part, weight.dtype))
        # aminmax propagates NaN; min and max of Python don't
        if not math.isfinite(float(least) - float(most) * 0.0):
            break
        low, high = min(low, float(least)), max(high, float(most))
    else:
        return max(-low, high)
    bad = sum(int((~weight.block(p, weight.W.dtype).isfinite()).sum()) for p in weight.slices())
    raise NonFiniteError(
        f"{bad} of {weight.W.numel()} values are NaN or infinite",
        hint="--nonfinite copy leaves such a tensor as it is",
    )
