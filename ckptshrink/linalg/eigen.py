"""Leading singular vectors of a weight from its Gram matrix, with the gates that guard them.

A Gram matrix squares the singular values: what is below eps of the largest eigenvalue is noise. How
much that costs follows from ``rho``, the energy that the rank leaves out over that eigenvalue.
From a float32 Gram matrix the excess over the optimum was 1e-8 or less down to rho = 5e-3, 3e-7 at
2e-3 and 1e-5 at 4e-4; from a float64 one 2e-8 at 3e-6. LAPACK's float32 vectors lose more than
that by themselves, see `separate`.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # documented, not in its stub

from ckptshrink.linalg.krylov import leading_eigenpairs
from ckptshrink.linalg.products import Weight, gram, mirrored
from ckptshrink.linalg.separate import separated

_GATES: Final = ((torch.float32, 2e-2), (torch.float64, 1e-6))
"""Dtypes of the Gram matrix, cheapest first, and the least rho at which each is good enough."""

_SINGLE_SIDE: Final = 256
"""Short side from which float32 is tried: below it, float64 takes 5 ms."""

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
        Columns in the dtype of the Gram matrix, near to orthonormal: see `separate`.
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
        single = dtype == torch.float32
        if single and (weight.dtype == torch.float64 or weight.short < _SINGLE_SIDE):
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
        whole = r == weight.short and not single  # nothing is left out, rho is 0
        if not whole and float(values[r:].sum()) < least * float(values[0]):
            continue
        if single:
            mended = separated(mirrored(G), values, vectors, r)
            if mended is None:
                continue
            vectors = mended
        return Eigenpairs(values, vectors if every else vectors[:, :r])
    return None


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
