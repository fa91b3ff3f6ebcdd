"""Semi-NMF by the multiplicative updates of its paper, without the matrix inside the loop."""

from typing import Final

import torch
from torch import Tensor

from ckptshrink.linalg.products import Weight, gram, left_times, matmul, mirrored, times

_EPS: Final = 1e-9
"""Keeps the quotient finite; as in the authors' own package."""


def ding(weight: Weight, r: int, iterations: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the pair after a stated number of multiplicative updates from a random start.

    ``U = W V' (V V')^+`` and ``V = V sqrt((A+ + B- V) / (A- + B+ V + 1e-9))`` with ``A = U' W``
    and ``B = U' U``, split into positive and negative parts. Where V is on the short side, A and B
    come from the Gram matrix of W, which makes the same iterates without touching W.

    Parameters
    ----------
    weight : Weight
    r, iterations : int
    seed : int
        V starts uniform in [0, 1), plus 1e-4.

    Returns
    -------
    U (m, r), V (r, n)
        At the weight's scale; V has no negative entry. U is the least-squares one for this V,
        where the authors' package leaves that of the update before.

    Source
    ------
    Ding, Li and Jordan (2010), IEEE Trans. Pattern Anal. Mach. Intell. 32(1), 45-55.
    """
    n = weight.W.shape[1]
    generator = torch.Generator().manual_seed(seed)
    V = (torch.rand(r, n, generator=generator) + 1e-4).to(weight.W.device, weight.dtype)
    G = mirrored(gram(weight, weight.dtype)) if weight.tall else None
    for _ in range(iterations):
        inverse = _inverse_gram(V)  # (r, r)
        if G is not None:
            product = matmul(V, G)  # (r, n)
            cross = matmul(inverse, product)
            inner = matmul(matmul(inverse, matmul(product, V.T)), inverse)
        else:
            U = matmul(times(weight, V.T), inverse)  # (m, r)
            cross = left_times(weight, U)  # (r, n)
            inner = matmul(U.T, U)
        up = cross.clamp(min=0) + matmul((-inner).clamp(min=0), V)
        down = (-cross).clamp(min=0) + matmul(inner.clamp(min=0), V) + _EPS
        V = V * torch.sqrt(up / down)
    return matmul(times(weight, V.T), _inverse_gram(V)), V


def _inverse_gram(V: Tensor) -> Tensor:
    # pseudo-inverse, since rows of V can coincide; in float64, since V V' squares their condition
    inverse: Tensor = torch.linalg.pinv(matmul(V, V.T).double(), hermitian=True)
    return inverse.to(V.dtype)
