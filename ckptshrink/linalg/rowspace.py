"""Right singular vectors of a weight, for algorithms that work in its row space."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ckptshrink.linalg.eigen import eigenpairs
from ckptshrink.linalg.products import Weight, left_times, matmul


@dataclass(frozen=True, slots=True)
class RowSpace:
    """Right singular vectors of a weight, as many as could be told from noise.

    Attributes
    ----------
    rows : (p, n)
        Unit vectors by descending singular value, p <= k, in the dtype of the arithmetic.
        The first r are orthonormal to it; those after them only to 1e-3 where W is wide.
    squares : (p,) float64, on the CPU
        Squared singular values, at the weight's scale.
    """

    rows: Tensor
    squares: Tensor


def row_space(weight: Weight, r: int) -> RowSpace:
    """Return the right singular vectors of a weight that is not zero."""
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
        return RowSpace(vectors.T.contiguous().to(weight.dtype), squares.cpu())
    rows = left_times(weight, vectors / squares.sqrt().to(vectors), weight.dtype)  # (p, n)
    rows /= torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    rows[:r] = _orthonormalized(rows[:r])
    return RowSpace(rows, squares.cpu())


def _orthonormalized(rows: Tensor) -> Tensor:
    """Cholesky QR, which mends the 1e-2 that rows from a Gram matrix can be off by."""
    lower = torch.linalg.cholesky(matmul(rows, rows.T).double())
    identity = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
    inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
    return matmul(inverse.to(rows.dtype), rows)


def _direct(weight: Weight) -> RowSpace:
    W = weight.W if weight.tall else weight.W.T
    left, S, right = torch.linalg.svd(W.double() * weight.scale, full_matrices=False)
    rows = right if weight.tall else left.T
    noise = float(S[0]) * torch.finfo(torch.float64).eps * max(W.shape)
    p = int((noise < S).sum())
    return RowSpace(rows[:p].contiguous().to(weight.dtype), S[:p].square().cpu())
