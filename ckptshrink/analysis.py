"""Norms of weight matrices: what the papers hold against how well a matrix can be compressed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from ckptshrink.runtime.opened import Opened
from ckptshrink.runtime.weights import dense

ENERGY: Final = 0.99
"""Share of the squared singular values that `Norms.rank_of_energy` keeps."""


@dataclass(frozen=True, slots=True)
class Norms:
    """Norms of a matrix W (m, n).

    Attributes
    ----------
    l1 : float
        Largest absolute column sum, ``max_j sum_i |w_ij|``; columns are inputs.
    l1_mean, l1_std : float
        Mean and spread of the absolute column sums, both with 1/n.
    nuclear : float
        Sum of the singular values.
    frobenius : float
    spectral : float
        Largest singular value.
    rank_of_energy : int
        Least rank that keeps `ENERGY` of the squared singular values.
    """

    l1: float
    l1_mean: float
    l1_std: float
    nuclear: float
    frobenius: float
    spectral: float
    rank_of_energy: int


@dataclass(frozen=True, slots=True)
class Analysed:
    """A gate matrix of a checkpoint, and its norms.

    Attributes
    ----------
    name : str
        The tensor that it is, or is part of.
    role : str
    layer : int or None
    direction : str or None
    shape : (int, int)
        Of W: rows are outputs.
    norms : Norms
    """

    name: str
    role: str
    layer: int | None
    direction: str | None
    shape: tuple[int, int]
    norms: Norms


def norms_of(W: Tensor) -> Norms:
    """Return the norms of a matrix, in float64.

    Parameters
    ----------
    W : (m, n), floating
        Rows are outputs. Finite.

    Source
    ------
    Winata et al. 2019; the slides print mean and spread without 1/n and the root, which are here.

    Examples
    --------
    >>> found = norms_of(torch.tensor([[3.0, 0.0], [0.0, -1.0]]))
    >>> found.l1, found.l1_mean, found.l1_std, found.nuclear, found.rank_of_energy
    (3.0, 2.0, 1.0, 4.0, 2)
    """
    W = W.detach().double()
    sums = W.abs().sum(0)  # (n,)
    S = torch.linalg.svdvals(W)  # (min(m, n),)
    kept = S.square().cumsum(0)
    enough = kept >= ENERGY * kept[-1]
    return Norms(
        l1=float(sums.max()),
        l1_mean=float(sums.mean()),
        l1_std=float(sums.std(correction=0)),
        nuclear=float(S.sum()),
        frobenius=float(kept[-1].sqrt()),
        spectral=float(S[0]),
        rank_of_energy=int(enough.int().argmax()) + 1 if float(kept[-1]) else 0,
    )


def analyse(path: Path) -> Iterator[Analysed]:
    """Yield the norms of every gate matrix of a checkpoint or an artefact, one at a time.

    What is factored is multiplied back first, so that an artefact shows what compression did.

    Raises
    ------
    CheckpointError, ManifestMismatchError
        It can't be read.
    """
    with Opened(path) as opened:
        for matrix in opened.facts.matrices:
            W = dense(opened.weight(matrix))
            yield Analysed(
                name=matrix.source,
                role=matrix.role,
                layer=matrix.layer,
                direction=matrix.direction,
                shape=(W.shape[0], W.shape[1]),
                norms=norms_of(W),
            )
