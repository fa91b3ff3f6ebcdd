"""How much float32 eigenvectors miss by mixing across a cut, and the turn that mends it."""

from typing import Final

import torch
from torch import Tensor

from ckptshrink.linalg.products import matmul

_FINE: Final = 2e-7
"""Share of the energy left out that may be missed: the error is then 1e-7 above its optimum."""

_MENDABLE: Final = 2e-5
"""Share up to which one turn mends all but a few 1e-8; from 2e-4 on, 1e-5 was seen to stay."""

_BLURRED: Final = 5e-7
"""Share that may be lost to energies which G itself confuses.

2e-5 were in a cluster of a relative spread of 1e-5 that was cut inside.
"""

_SMALL_TURN: Final = 0.1
"""Norm up to which turns of pairs add up to one of all."""

_WINDOW: Final = 64
"""Vectors on each side of the cut that are made anew: 32 left twice as much as 64."""


def separated(G: Tensor, values: Tensor, vectors: Tensor, r: int) -> Tensor | None:
    """Return eigenvectors of which the first r capture as much as any r directions, to 1e-7.

    LAPACK's float32 vectors are mixed with others whose eigenvalues are near, and those at the cut
    with ones from beyond it: by that alone the error came out up to 1e-5 above its optimum. What
    is missed can be told: for a pair of energies a > b coupled by h, one on either side, it is
    ``(hypot(a - b, 2 h) - (a - b)) / 2``. Over all pairs, this agreed with the truth to a tenth.

    Parameters
    ----------
    G : (k, k)
        Symmetric, positive semidefinite.
    values : (k,) float64
        Eigenvalues, descending, good to float32.
    vectors : (k, k)
        Their eigenvectors.
    r : int

    Returns
    -------
    (k, k) or None
        Near to orthonormal: to 1e-5 among the first r, and to 1e-2 with the others. None if too
        much is missed, or G can't tell.
    """
    rest = float(values[r:].sum())
    images, energies = _energies(G, values, vectors, r)
    count = images.shape[1]
    order = energies[:count].argsort(descending=True)
    if bool((order[:r] >= r).any()):  # eigenvalues this near come in any order
        vectors = torch.cat([vectors[:, order], vectors[:, count:]], dim=1)
        images, energies = images[:, order], torch.cat([energies[order], energies[count:]])
    leading, others = vectors[:, :r], vectors[:, r:]
    gaps = energies[:r] - energies[r:, None]  # (k - r, r)
    # Vectors are orthogonal to 1e-6 only; without the subtraction G would map that into couplings.
    residuals = images[:, :r] - leading * energies[:r].to(leading)
    coupling = matmul(others.T, residuals).double()
    reach = torch.hypot(gaps, 2 * coupling)
    missed = float((reach - gaps).sum()) / 2
    if missed > _MENDABLE * rest or _blurred(energies, r) > _BLURRED * rest:
        return None
    if missed <= _FINE * rest:
        return vectors
    # tangent of the angle that would be right for each pair if it were the only one
    turn = 2 * coupling / (gaps + reach).clamp(min=torch.finfo(torch.float64).tiny)
    # near to the cut turns are large, and a window's own eigenvectors are taken
    turn[:_WINDOW, max(0, r - _WINDOW) :] = 0.0
    if float(turn.norm()) > _SMALL_TURN or not _stands_out(energies, r):
        return None
    return _turned(G, vectors, turn, r)


def _energies(G: Tensor, values: Tensor, vectors: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Return ``G @ vectors`` and what each captures, of those that matter, else the eigenvalue.

    Beyond a window that stands out, the eigenvalue is good enough, and a third of the time saved.
    """
    count = min(len(G), r + _WINDOW)
    if not _stands_out(values, r):
        count = len(G)
    images = matmul(G, vectors[:, :count])
    energies = (vectors[:, :count] * images).sum(0, dtype=torch.float64)
    return images, torch.cat([energies, values[count:]])


def _blurred(energies: Tensor, r: int) -> float:
    """Return what is lost at most if energies at the cut are equal but for the rounding of G."""
    count = min(r, len(energies) - r)
    above = energies[:r].sort().values[:count]
    below = energies[r:].sort(descending=True).values[:count]
    gaps = above - below
    blur = torch.finfo(torch.float32).eps * float(energies.max())
    return float(gaps[gaps < blur].sum())


def _stands_out(energies: Tensor, r: int) -> bool:
    """Whether what is outside of the window is farther from the cut than a turn can be wrong."""
    first, last = r - _WINDOW, r + _WINDOW
    clear = 50 * torch.finfo(torch.float32).eps * float(energies.max())
    above = first <= 0 or float(energies[first] - energies[r]) >= clear
    below = last >= len(energies) or float(energies[r - 1] - energies[last - 1]) >= clear
    return above and below


def _turned(G: Tensor, vectors: Tensor, turn: Tensor, r: int) -> Tensor:
    """Turn the first r vectors, then take the window's own eigenvectors for those in it."""
    first, last = max(0, r - _WINDOW), min(len(G), r + _WINDOW)
    leading, others = vectors[:, :r], vectors[:, r:]
    turn = turn.to(vectors)
    window = others[:, : last - r] - matmul(leading, turn[: last - r].T)
    leading = leading + matmul(others, turn)
    near = torch.cat([leading[:, first:], window], dim=1)
    inside = matmul(near.T, matmul(G, near)).double()
    near = matmul(near, torch.linalg.eigh(inside).eigenvectors.flip(1).to(near))
    leading = torch.cat([leading[:, :first], near[:, : r - first]], dim=1)
    # one Newton-Schulz step: turns leave lengths and angles off by their squares
    leading = 1.5 * leading - 0.5 * matmul(leading, matmul(leading.T, leading))
    return torch.cat([leading, near[:, r - first :], others[:, last - r :]], dim=1)
