"""Semi-NMF in closed form but for one vector: the pair that `nonnegative` finds a vector for."""

from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from ckptshrink.linalg.factors import Factors
from ckptshrink.linalg.nonnegative import least_direction, positive_vector
from ckptshrink.linalg.products import BLOCK, Weight, sq_norm, times
from ckptshrink.linalg.rowspace import RowSpace, row_space
from ckptshrink.linalg.svd import MANY, PYTHAGORAS, finished

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

_SAMPLE: Final = slice(None, None, 32)
"""Rows or columns on which rounding is measured."""

_ROUNDING: Final = 1e-4
"""Share of the squared error that rounding may have for a sample to tell it well enough."""

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
    kept = squares.sum()
    basis = _reflected(rows, coords)  # x, and what is orthogonal to it
    if len(basis) > r:
        left_out = least_direction(coords, squares)
        kept -= (squares * left_out.square()).sum()
        others = _reflected(basis[1:], _reflected(left_out[:, None], coords)[1:, 0])
        basis = torch.cat([basis[:1], others[1:]])
    basis[0] = x  # without the rounding: no entry is below its floor
    predicted = weight.unscaled(float(space.squares.sum() - kept))
    images = times(weight, basis.T)
    sample = (_SAMPLE, slice(None)) if weight.tall else (slice(None), _SAMPLE)
    projected = _sampled(images, basis, sample)
    rest = weight.scaled_sq_norm - _captured(images, basis)
    U, V = (factor.to(dtype) for factor in _lifted(images, basis, r))
    # What is stored differs from the projection by rounding alone, of which a sample tells the
    # share; factors that cancel would otherwise have to be multiplied in float64.
    rounding = float((_sampled(U, V, sample) - projected).square().sum()) * _SAMPLE.step
    told = (
        weight.W.numel() >= MANY
        and rest >= PYTHAGORAS * weight.scaled_sq_norm
        and rounding <= _ROUNDING * rest
    )
    spectrum = space.squares.sqrt() / weight.scale
    sq_error = weight.unscaled(rest + rounding) if told else None
    factors = finished(weight, U, V, spectrum, sq_error)
    return factors, factors.sq_error <= predicted * (1 + _AS_PREDICTED)


def _sampled(left: Tensor, right: Tensor, sample: tuple[slice, slice]) -> Tensor:
    """Return some rows or columns of a product, in float64."""
    rows, columns = sample
    return left[rows].double() @ right[:, columns].double()


def _captured(images: Tensor, basis: Tensor) -> float:
    """Energy ``norm(W) ** 2 - norm(W - images basis) ** 2`` for ``images = W basis'``.

    Rows of the basis are orthogonal, and of unit length up to rounding, which is accounted for.
    """
    factor = (2 - torch.linalg.vector_norm(basis, dim=1).double().square()).sqrt().to(images)
    step = max(1, BLOCK // images.shape[1])
    return sum(sq_norm(images[i : i + step] * factor) for i in range(0, len(images), step))


def _reflected(rows: Tensor, coords: Tensor) -> Tensor:
    """Return rows that span the same, of which the first is ``coords @ rows``.

    Parameters
    ----------
    rows : (q, n)
    coords : (q,) float64, of unit norm
    """
    v = coords.clone()
    sign = 1.0 if float(v[0]) >= 0 else -1.0
    v[0] += sign  # the Householder vector that cancels nothing
    v = v.to(rows)
    reflected = torch.addmm(rows, v[:, None], (v @ rows)[None], alpha=-2 / float(v @ v))
    reflected[0] *= -sign
    return reflected


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
