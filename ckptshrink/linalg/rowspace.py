"""Right singular vectors of a weight, for algorithms that work in its row space."""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ckptshrink.linalg.eigen import eigenpairs
from ckptshrink.linalg.products import Weight, left_times, matmul

_BEYOND: Final = 64
"""Vectors of the long side that are made after the first r.

The search for what replaces one of those r gained the same to 4 % with 64 as with all, which cost
a product of k by k by n.
"""

_ORTHONORMAL: Final = 2e-6
"""What products of rows may differ from the identity by; float32 eigenvectors differ by 1e-6."""


@dataclass(frozen=True, slots=True)
class RowSpace:
    """Leading right singular vectors of a weight.

    Attributes
    ----------
    squares : (p,) float64, on the CPU
        Squared singular values at the weight's scale, as many as could be told from noise.
    rows : (q, n), q <= p
        Unit vectors by descending singular value, in the dtype of the arithmetic. The first r
        are orthonormal to it; those after them only to 1e-2.
    """

    squares: Tensor
    rows: Tensor


def row_space(weight: Weight, r: int) -> RowSpace:
    """Return the leading r right singular vectors of a weight that is not zero, and more.

    There are fewer than r only if W has no more.
    """
    found = eigenpairs(weight, r, every=True)
    if found is None:
        return _direct(weight)
    # An eigenvalue is known to eps of the first, and its vector on the long side to the root of
    # what that is of it: a tenth at 100 eps.
    noise = 100 * torch.finfo(found.vectors.dtype).eps * float(found.values[0])
    p = int((found.values > noise).sum())
    if p < r:
        return _direct(weight)
    squares, vectors = found.values[:p], found.vectors[:, :p]
    if weight.tall:
        rows = vectors.T.to(weight.dtype, copy=True, memory_format=torch.contiguous_format)
    else:
        leading = vectors[:, : r + _BEYOND] / squares[: r + _BEYOND].sqrt().to(vectors)
        rows = left_times(weight, leading, weight.dtype)  # (q, n)
        rows /= torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    rows[:r] = _orthonormalized(rows[:r])
    return RowSpace(squares.cpu(), rows)


def _orthonormalized(rows: Tensor) -> Tensor:
    """Cholesky QR, where rows from a Gram matrix need it: those can be off by 1e-2."""
    products = matmul(rows, rows.T).double()
    identity = torch.eye(len(rows), dtype=products.dtype, device=products.device)
    if float((products - identity).abs().max()) <= _ORTHONORMAL:
        return rows
    lower = torch.linalg.cholesky(products)
    inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
    return matmul(inverse.to(rows.dtype), rows)


def _direct(weight: Weight) -> RowSpace:
    W = weight.W if weight.tall else weight.W.T
    left, S, right = torch.linalg.svd(W.double() * weight.scale, full_matrices=False)
    rows = right if weight.tall else left.T
    noise = float(S[0]) * torch.finfo(torch.float64).eps * max(W.shape)
    p = int((noise < S).sum())
    return RowSpace(S[:p].square().cpu(), rows[:p].contiguous().to(weight.dtype))
