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

_GATES: Final = ((torch.float32, 1e-2), (torch.float64, 1e-6))
"""Dtypes of the Gram matrix, cheapest first, and the least rho at which each is good enough."""

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
        if whole or float(values[r:].sum()) >= least * float(values[0]):
            if dtype != torch.float64:
                vectors = _separated(G, values, vectors, r)
            return Eigenpairs(values, vectors if every else vectors[:, :r])
    return None


def _separated(G: Tensor, values: Tensor, vectors: Tensor, r: int) -> Tensor:
    """Return float32 eigenvectors with the leading r turned out of the span of the others.

    LAPACK's float32 vectors mix neighbours on both sides of the cut: by themselves they came out
    up to 1e-6 above the optimum at rho = 0.08, and 3e-10 after this step. What couples each pair
    is turned away by the angle that would be right if it were the only one.
    """
    leading, others = vectors[:, :r], vectors[:, r:]
    coupling = matmul(others.T, matmul(mirrored(G), leading)).double()  # (k - r, r)
    gaps = values[:r] - values[r:, None]
    turn = torch.tan(torch.atan2(2 * coupling, gaps) / 2).to(vectors)
    leading, others = leading + matmul(others, turn), others - matmul(leading, turn.T)
    # one Newton-Schulz step: eigenvectors and turns are orthonormal to 1e-6 only
    leading = 1.5 * leading - 0.5 * matmul(leading, matmul(leading.T, leading))
    return torch.cat([leading, others], dim=1)


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
