"""The one non-negative vector that a Semi-NMF turns on, and the search for it.

A rank-r subspace of the row space has a basis without negative entries just if it holds a positive
vector x: the rows ``s + t x`` for t large enough. So a Semi-NMF of rank r is the best r-dimensional
subspace that holds some x >= 0, and x is all there is to search for. With T the leading r right
singular vectors, ``x = T' a + x_out``, and rho the Rayleigh quotient of x_out, the best such
subspace of span(T, x_out) leaves out one direction d, which is orthogonal to x. It costs
``mu - rho`` of the energy that T captures, where mu is the root in (rho, squares[r-1]) of
``sum(a_i**2 / (squares_i - mu)) = norm(x_out)**2 / (mu - rho)``.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ckptshrink.linalg.rowspace import RowSpace

_PROJECTIONS: Final = 15
"""Alternating projections: where they succeed, 3 to 15 were seen to do."""

_STEPS: Final = 30
"""Gradient steps at most. Twice as many lowered the excess by less than a hundredth of it."""

_GAIN: Final = 1e-6
"""Gain of a step, as a share of the squared error, below which no further one is made."""

_TELLABLE: Final = 1e-12
"""Share by which a root must be off the poles beside it for float64 to tell it from them."""

_BISECTIONS: Final = 50
"""Float64 has 53 bits: with more, what comes out can be one of the ends."""

_HALVINGS: Final = 10
"""Tries of a step before the search ends."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Energy lost by holding x, and where to go from it.

    Attributes
    ----------
    value : float
        Not negative.
    gradient : (n,) or None
        Of the loss by x; None where there is nothing left to gain.
    """

    value: float
    gradient: Tensor | None


def positive_vector(space: RowSpace, r: int, floor: float) -> Tensor:
    """Return a positive vector that a good r-dimensional subspace of the row space can hold.

    It lies in the leading r directions where alternating projections find one there, and the
    Semi-NMF then equals the SVD; otherwise the energy it costs is searched down from there.

    Parameters
    ----------
    space : RowSpace
        Of at least r rows.
    r : int
    floor : float, 0 <= floor <= 1
        What no entry falls below, as a share of the mean one before entries were raised to it. It
        bounds how ill-conditioned the factors get. At 1 the vector is uniform.

    Returns
    -------
    (n,)
        Of unit norm.

    Source
    ------
    Gillis and Kumar (2015), SIAM J. Matrix Anal. Appl. 36(4), 1404-1424, for the bounds; the
    search for x is ours.
    """
    if floor == 1.0:
        return normalize(torch.ones_like(space.rows[0]), dim=0)
    start, inside = _alternating_projections(space.rows[:r], floor)
    if inside:
        return start
    x = _floored(start, floor)
    loss = loss_of(x, space, r)
    step = 1.0 / float(space.squares[r - 1])
    enough = _GAIN * float(space.squares[r:].sum())
    for _ in range(_STEPS):
        if loss.gradient is None:
            break
        for _ in range(_HALVINGS):
            tried = _floored(x - step * loss.gradient, floor)
            found = loss_of(tried, space, r)
            if found.value < loss.value:
                break
            step /= 4
        else:
            break
        gain = loss.value - found.value
        step = _barzilai_borwein(x, loss, tried, found, 2 * step)
        x, loss = tried, found
        if gain < enough:
            break
    return x


def loss_of(x: Tensor, space: RowSpace, r: int) -> Loss:
    """Return the energy that the leading r directions lose by holding a unit vector."""
    c = space.rows @ x  # (q,)
    coords = c.double().cpu()
    inner, outer = coords[:r], coords[r:]
    sq_norm = float(x.double().square().sum())
    sq_inner = float(inner.square().sum())
    sq_out = sq_norm - sq_inner
    if sq_out < 1e-12 * sq_norm:
        return Loss(0.0, None)
    # what is outside of all rows counts in sq_out, with a square of 0
    squares = space.squares[r : len(coords)]
    rho = float((squares * outer.square()).sum()) / sq_out
    last = float(space.squares[r - 1])
    if last - rho <= 1e-12 * last:
        return Loss(0.0, None)
    span = last - rho
    gaps = (space.squares[:r] - rho) / span
    t = _root(inner.square(), gaps, sq_out)
    d = inner / (gaps - t)
    d_out = -math.sqrt(sq_out) / t
    sq_d = float(d.square().sum()) + d_out**2
    # Gradient by the coordinates. That of rho moves x_out, which the subspace holds but for d.
    along_rho = 2 * (1 - d_out**2 / sq_d) / sq_out
    along_out = 2 * span * d_out / sq_d / math.sqrt(sq_out)
    by_outer = (along_rho * (squares - rho) + along_out) * outer
    beyond = -along_rho * rho + along_out
    by_row = torch.cat([2 * span * d / sq_d, by_outer]) - beyond * coords
    gradient = space.rows.T @ by_row.to(c) + beyond * x
    return Loss(t * span, -gradient)


def least_direction(coords: Tensor, squares: Tensor) -> Tensor:
    """Return the direction orthogonal to a vector that captures least energy.

    Parameters
    ----------
    coords : (q,) float64, of unit norm
        Of the vector, in orthonormal directions among which W'W is diagonal.
    squares : (q,) float64
        What each of those captures; q >= 2.

    Returns
    -------
    (q,) float64
        Of unit norm.
    """
    touched = coords.square() > _TELLABLE
    candidates = []
    if int(touched.sum()) > 1:
        candidates.append(_least_touched(coords.where(touched, 0.0), squares))
    if not bool(touched.all()):  # a direction that the vector has nothing of, as it is
        d = torch.zeros_like(coords)
        d[squares.where(~touched, math.inf).argmin()] = 1.0
        candidates.append(d)
    d = min(candidates, key=lambda d: float(squares @ d.square()))
    return normalize(d - coords * (coords @ d), dim=0)


def _least_touched(coords: Tensor, squares: Tensor) -> Tensor:
    first, second = squares.where(coords != 0, math.inf).argsort()[:2].tolist()
    low, high = float(squares[first]), float(squares[second])
    d = torch.zeros_like(coords)
    if (high - low) * float(coords[first].square()) <= _TELLABLE * high:
        d[first], d[second] = coords[second], -coords[first]  # the two capture the same
        return normalize(d, dim=0)
    others = coords != 0
    others[first] = False
    gaps = (squares - low) / (high - low)
    t = _root(coords[others].square(), gaps[others], float(coords[first].square()))
    d = (coords / (gaps - t)).where(coords != 0, 0.0)  # others may equal t
    return normalize(d, dim=0)


def _root(sq_inner: Tensor, gaps: Tensor, sq_out: float) -> float:
    """Return where mu, see the module, lies between rho (0) and the nearest pole (1).

    By bisection, since the function has a pole at each end; and not mu itself, since beside squares
    that are nearly the same that would round to one of them, and what is divided by to nothing.

    Parameters
    ----------
    sq_inner, gaps : (r,) float64
        The least of `gaps` is 1.
    sq_out : float

    Returns
    -------
    float
        In (0, 1), and off both ends; near 1 where nothing in there is a root.
    """
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        t = (low + high) / 2
        if float((sq_inner / (gaps - t)).sum()) > sq_out / t:
            high = t
        else:
            low = t
    return (low + high) / 2


def _barzilai_borwein(x: Tensor, loss: Loss, tried: Tensor, found: Loss, other: float) -> float:
    """Return the next step length: the secant one where curvature is positive, else `other`."""
    if loss.gradient is None or found.gradient is None:
        return other
    moved = (tried - x).double()
    turned = (found.gradient - loss.gradient).double()
    curvature = float(moved @ turned)
    return float(moved @ moved) / curvature if curvature > 0 else other


def _alternating_projections(T: Tensor, floor: float) -> tuple[Tensor, bool]:
    """Return a unit vector near both span(T) and the positive orthant, and if it lies in both."""
    aim = max(floor, 0.1)  # projections end at the border of what they aim at, so aim inside
    x = torch.ones(T.shape[1], dtype=T.dtype, device=T.device)
    for _ in range(_PROJECTIONS):
        inside = T.T @ (T @ x)
        mean = inside.mean()
        if float(mean) <= 0.0:  # the span is orthogonal to all-positive vectors near x
            return normalize(x, dim=0), False
        inside = inside / mean
        if bool((inside >= floor).all()) and bool((inside > 0).all()):
            return normalize(inside, dim=0), True
        x = inside.clamp(min=aim)
    return normalize(x, dim=0), False


def _floored(x: Tensor, floor: float) -> Tensor:
    positive = x.clamp(min=0.0)
    positive = positive.clamp(min=floor * float(positive.mean()))
    return normalize(positive, dim=0)
