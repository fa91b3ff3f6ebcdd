"""Leading eigenvectors of a positive semidefinite matrix by a block Krylov space."""

from typing import Final

import torch
from torch import Tensor

from ckptshrink.linalg.products import matmul

_EXTRA: Final = 8
"""Columns of a block above the rank: the last Ritz values converge by their help."""

_TOLERANCE: Final = 1e-7
"""Growth of the captured energy, as a share of what isn't captured, that counts as none.

Growth falls by a factor a step, so that what two such steps leave out is of their own size: the
excess error measured was 1e-9 to 1e-8 on white noise, the slowest, and 1e-12 on decaying spectra.
"""


def leading_eigenpairs(G: Tensor, r: int) -> tuple[Tensor, Tensor] | None:
    """Return the r largest eigenvalues of a matrix and their eigenvectors, if cheaply found.

    Starts from a block of more than r columns, so that an eigenvalue repeated up to r times is
    seen as often, and deepens the space until the sum of the r largest Ritz values, which can
    only grow, has stood still twice.

    Parameters
    ----------
    G : (k, k), symmetric, positive semidefinite
    r : int

    Returns
    -------
    (values (r,), vectors (k, r)) or None
        Descending. None if a third of all directions didn't suffice: a full decomposition is due.

    Notes
    -----
    Deterministic: the start is drawn with a fixed seed. The space is orthogonalized against
    itself twice per step, and given up if it still isn't orthonormal.

    Source
    ------
    Musco and Musco (2015), Randomized block Krylov methods, NIPS 28, 1396-1404.
    """
    k, eps = len(G), torch.finfo(G.dtype).eps
    width = r + _EXTRA
    total = float(G.diagonal().double().sum())
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(k, width, generator=generator, dtype=torch.float64).to(G)
    basis = torch.linalg.qr(start).Q  # (k, width)
    image = matmul(G, basis)  # (k, width) = G @ basis
    energy, still = 0.0, 0
    while basis.shape[1] <= k // 3:
        ritz = (basis.T @ image).double()
        found = float(torch.linalg.eigvalsh(ritz)[-r:].sum())
        # A sum is known to eps; what is less than that of it can't be told from standing still.
        slack = max(_TOLERANCE * (total - found), 4 * eps * abs(found))
        still = still + 1 if found - energy <= slack else 0
        energy = found
        newest = image[:, -width:]
        residual = _orthogonal(newest, basis)
        # G can map the space into itself: that of an orthogonal weight does at once
        invariant = float(residual.norm()) <= 20 * eps * float(newest.norm())
        if still == 2 or invariant:
            values, rotation = torch.linalg.eigh(ritz)
            vectors = matmul(basis, rotation[:, -r:].flip(1).to(G))  # (k, r)
            return (values[-r:].flip(0), vectors) if _is_orthonormal(vectors) else None
        # once leaves 1e-3 of the space in a block that nearly lies in it; twice leaves eps
        block = torch.linalg.qr(residual).Q
        block = torch.linalg.qr(_orthogonal(block, basis)).Q  # (k, width)
        basis = torch.cat([basis, block], dim=1)
        image = torch.cat([image, matmul(G, block)], dim=1)
    return None


def _orthogonal(block: Tensor, basis: Tensor) -> Tensor:
    return block - basis @ (basis.T @ block)


def _is_orthonormal(vectors: Tensor) -> bool:
    identity = torch.eye(vectors.shape[1], dtype=vectors.dtype, device=vectors.device)
    return float((vectors.T @ vectors - identity).abs().max()) < 1e-5
