"""Semi-NMF in closed form but for one vector: the pair that `nonnegative` finds a vector for."""

from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from ckptshrink.linalg.factors import Factors
from ckptshrink.linalg.nonnegative import positive_vector
from ckptshrink.linalg.products import Weight, matmul, sq_norm, times
from ckptshrink.linalg.rowspace import RowSpace, row_space
from ckptshrink.linalg.svd import finished

_FLOORS: Final = (0.02, 0.2, 1.0)
"""Least entry of x as a share of the mean one, tried in turn while rounding costs anything.

The smaller it is the closer x can come, and the larger are the entries that cancel in a product:
at 0.02 the excess over the SVD is least in float32, and 0.28 in bfloat16; at 0.2 it is 12 % larger,
and the same in all dtypes. At 1, x is uniform, and the bound by the SVD at r - 1 still holds.
"""

_HALF_FLOORS: Final = (0.2, 0.5, 1.0)

_AS_PREDICTED: Final = 1e-4
"""Share of the squared error by which a stored pair may miss its prediction and still be taken.

A prediction from float32 eigenvalues was seen to be off by 2e-5.
"""

_INSIDE: Final = 1e-5
"""Distance of a unit vector from a subspace below which it counts as lying in it."""


def closed(weight: Weight, r: int, dtype: torch.dtype) -> Factors:
    """Return a pair whose V has no negative entry, with the least error as stored that was found.

    Parameters
    ----------
    weight : Weight
        Not zero.
    r : int
    dtype : torch.dtype
        Of the stored factors.
    """
    space = row_space(weight, r)
    floors: tuple[float, ...] = _FLOORS if dtype.itemsize >= 4 else _HALF_FLOORS
    if r == 1:
        floors = (0.0,)  # there is no other row to be lifted by the only one
    best, settled = _attempt(weight, space, r, dtype, floors[0])
    for floor in floors[1:]:
        if settled:
            break
        found, settled = _attempt(weight, space, r, dtype, floor)
        best = min(best, found, key=lambda factors: factors.sq_error)
    return best


def _attempt(
    weight: Weight, space: RowSpace, r: int, dtype: torch.dtype, floor: float
) -> tuple[Factors, bool]:
    """Return the stored pair for one floor, and whether rounding cost it nothing."""
    x = _vector(space, r, floor)
    coords, squares, rows = _coordinates(x, weight, space, r)
    # In these coordinates W'W is diagonal within span(rows), so that the best company for x are
    # the leading eigenvectors of what is orthogonal to it there.
    complement = torch.linalg.qr(coords[:, None], mode="complete").Q[:, 1:]
    energies, vectors = torch.linalg.eigh(complement.T @ (squares[:, None] * complement))
    company = (complement @ vectors.flip(1)[:, : r - 1]).to(rows)
    basis = torch.cat([x[None], matmul(company.T, rows)])  # (at most r, n), orthonormal
    kept = (squares * coords.square()).sum() + energies.flip(0)[: r - 1].sum()
    predicted = weight.unscaled(float(space.squares.sum() - kept))
    U, V = _lifted(times(weight, basis.T), basis, r)
    spectrum = space.squares.sqrt() / weight.scale
    factors = finished(weight, U.to(dtype), V.to(dtype), spectrum)
    return factors, factors.sq_error <= predicted * (1 + _AS_PREDICTED)


def _vector(space: RowSpace, r: int, floor: float) -> Tensor:
    """Return the positive unit vector; any will do where W has fewer than r directions."""
    if len(space.rows) < r:
        return normalize(torch.ones_like(space.rows[0]), dim=0)
    return positive_vector(space, r, floor)


def _coordinates(
    x: Tensor, weight: Weight, space: RowSpace, r: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return orthonormal rows whose span holds x and the leading r directions.

    Returns
    -------
    coords : (q,) float64
        Of x in those rows.
    squares : (q,) float64
        What each row captures of ``norm(W) ** 2``.
    rows : (q, n)
    """
    T, squares = space.rows[:r], space.squares[:r]
    coords = T @ x
    outer = x - T.T @ coords
    outer -= T.T @ (T @ outer)  # the first pass leaves rounding, which counts where outer is small
    distance = torch.linalg.vector_norm(outer)
    if float(distance) <= _INSIDE:
        return normalize(coords.double().cpu(), dim=0), squares, T
    direction = outer / distance
    square = sq_norm(times(weight, direction[:, None]))
    coords = torch.cat([coords, distance[None]]).double().cpu()
    rows = torch.cat([T, direction[None]])
    return normalize(coords, dim=0), torch.cat([squares, squares.new_tensor([square])]), rows


def _lifted(images: Tensor, basis: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Return U (m, r) and V (r, n) >= 0 with ``U V = images basis``; writes to both arguments.

    Every row s but the first, x, becomes ``s + t x`` with the least t that leaves no negative
    entry, for s or -s, whichever needs less.
    """
    x, others = basis[0], basis[1:]
    slopes = others / x
    up, down = (-slopes).amax(1).clamp(min=0), slopes.amax(1).clamp(min=0)
    sign = torch.where(down < up, -1.0, 1.0).to(x)
    t = torch.minimum(up, down)
    others *= sign[:, None]
    others += t[:, None] * x
    images[:, 1:] *= sign
    images[:, 0] -= images[:, 1:] @ t
    basis.clamp_(min=0)  # rounding alone made what is below
    lengths = torch.linalg.vector_norm(images, dim=0), torch.linalg.vector_norm(basis, dim=1)
    ratio = (lengths[0] / lengths[1]).sqrt()
    ratio = torch.where(ratio > 0, ratio, torch.ones_like(ratio))
    images /= ratio
    basis *= ratio[:, None]
    if len(basis) == r:
        return images, basis
    missing = r - len(basis)
    return pad(images, (0, missing)), pad(basis, (0, 0, 0, missing))
