"""Leading singular vectors of a weight from its Gram matrix, with the gate that guards them.

A Gram matrix squares the singular values: an eigenvalue below eps times the largest is noise. What
that costs follows from the eigenvalues found, by ``rho``: what the rank leaves out, over the
largest one. Measured excess over the optimum from a float32 Gram matrix: 2e-8 or less down to
rho = 5e-3, 7e-6 at 5e-4, and 15 % at 3e-6; from a float64 one 2e-8 at 3e-6.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # documented, not in its stub

from ckptshrink.linalg.krylov import leading_eigenpairs
from ckptshrink.linalg.products import Weight, gram, matmul, mirrored

_GATES: Final = ((torch.float32, 2e-2), (torch.float64, 1e-6))
"""Dtypes of the Gram matrix, cheapest first, and the least rho at which each is good enough."""

_WINDOW: Final = 64
"""Eigenvectors on each side of the cut that are made anew: 32 left twice the excess of 64."""

_KRYLOV_SIDE: Final = 512
"""Short side from which a Krylov space beats a full decomposition: 6 ms against 14, at r = 10."""

_KRYLOV_SHARE: Final = 32
"""... at ranks up to this part of it: at k = 1150, 11 ms against 105 at r = 10, 35 at r = 30."""


@dataclass(frozen=True, slots=True)
class Eigenpairs:
    """Eigenpairs of the short side's Gram matrix, at the weight's scale.

    Attributes
    ----------
    values : (p,) float64
        Not negative, descending; r <= p <= k.
    vectors : (k, p)
        Orthonormal columns, in the dtype of the Gram matrix.
    """

    values: Tensor
    vectors: Tensor


def eigenpairs(weight: Weight, r: int, *, every: bool = False) -> Eigenpairs | None:
    """Return leading eigenpairs accurate enough for a rank-r projection to be optimal to 1e-6.

    Parameters
    ----------
    weight : Weight
        Not zero.
    r : int
    every : bool
        Whether all k pairs are wanted, and not only the first r.

    Returns
    -------
    Eigenpairs or None
        None where only a direct SVD can tell: rank-deficient weights, and tails below 1e-6 of
        the largest eigenvalue.
    """
    for dtype, least in _GATES:
        if dtype != torch.float64 and weight.dtype == torch.float64:
            continue
        G = gram(weight, dtype)
        small = not every and weight.short >= _KRYLOV_SIDE and r * _KRYLOV_SHARE <= weight.short
        found = _by_krylov(G, r) if small else None
        if found is not None:
            return found
        try:
            values, vectors = torch.linalg.eigh(G)
        except LinAlgError:
            # LAPACK's divide and conquer can give up; the next route doesn't depend on it
            continue
        values = values.flip(0).double().clamp(min=0.0)
        vectors = vectors.flip(1)
        whole = r == weight.short and dtype == torch.float64  # nothing is left out, rho is 0
        if not whole and float(values[r:].sum()) < least * float(values[0]):
            continue
        if dtype != torch.float64:
            if not _stands_out(values, r):
                continue
            vectors = _separated(G, values, vectors, r)
        return Eigenpairs(values, vectors if every else vectors[:, :r])
    return None


def _stands_out(values: Tensor, r: int) -> bool:
    """Whether eigenvalues outside of the window are so far from the cut that float32 can tell.

    A cluster of 600 with a relative spread of 1e-5, cut inside, came out 2e-5 above the optimum.
    """
    first, last = max(0, r - _WINDOW), min(len(values), r + _WINDOW)
    clear = 100 * torch.finfo(torch.float32).eps * float(values[0])
    above = first == 0 or float(values[first] - values[r]) >= clear
    below = last == len(values) or float(values[r - 1] - values[last - 1]) >= clear
    return above and below


def _separated(G: Tensor, values: Tensor, vectors: Tensor, r: int) -> Tensor:
    """Return float32 eigenvectors with the leading r turned out of the span of the others.

    LAPACK's float32 vectors mix neighbours on both sides of the cut, which by itself cost 1e-5 at
    rho = 0.02. Far from the cut, what couples a pair is turned away by the angle that would be
    right if it were the only one. Near to it the eigenvalues aren't known well enough for that,
    and the vectors there are made anew, from their own small matrix.
    """
    G, k = mirrored(G), len(G)
    first, last = max(0, r - _WINDOW), min(k, r + _WINDOW)
    leading, others = vectors[:, :r], vectors[:, r:]
    coupling = matmul(others.T, matmul(G, leading)).double()  # (k - r, r)
    gaps = values[:r] - values[r:, None]
    turn = torch.tan(torch.atan2(2 * coupling, gaps) / 2)
    turn[: last - r, first:] = 0.0
    turn = turn.to(vectors)
    leading, others = leading + matmul(others, turn), others - matmul(leading, turn.T)
    near = torch.cat([leading[:, first:], others[:, : last - r]], dim=1)
    inside = matmul(near.T, matmul(G, near)).double()
    near = matmul(near, torch.linalg.eigh(inside).eigenvectors.flip(1).to(near))
    vectors = torch.cat([leading[:, :first], near, others[:, last - r :]], dim=1)
    # one Newton-Schulz step, since all of this is orthonormal to 1e-6 only
    leading = vectors[:, :r]
    leading = 1.5 * leading - 0.5 * matmul(leading, matmul(leading.T, leading))
    return torch.cat([leading, vectors[:, r:]], dim=1)


def _by_krylov(G: Tensor, r: int) -> Eigenpairs | None:
    found = leading_eigenpairs(mirrored(G), r)
    if found is None:
        return None
    values, vectors = found
    rest = float(G.diagonal().double().sum() - values.sum())
    # The search can't see a growth below eps of what it has, so that the tail must be larger
    # than eps by what 1e-6 asks of it.
    least = 1.0 if G.dtype == torch.float32 else 1e-6
    return Eigenpairs(values, vectors) if rest >= least * float(values[0]) else None
