"""Magnitude pruning: the largest entries, as many as a pair of the rank would have parameters."""

import math
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ckptshrink.errors import NonFiniteError
from ckptshrink.linalg.factors import Options, Pruned
from ckptshrink.linalg.laws import Law
from ckptshrink.linalg.products import Weight, sq_norm, weigh
from ckptshrink.linalg.ranks import check_rank, kept_values

_BITS: Final = {2: (torch.int16, np.int16), 4: (torch.int32, np.int32), 8: (torch.int64, np.int64)}
"""Integers of a float's size. Without the sign bit they are ordered as the magnitudes are."""

_CHUNK: Final = 1 << 20
"""Entries that are squared at a time."""


class MagnitudePruning:
    """Matrix of which the ``min(m n, r (m + n))`` entries of largest magnitude are kept.

    Among equal magnitudes those that come first, row by row, are kept.

    Laws
    ----
    KEEPS_K_LARGEST, FULL_RANK_IS_LOSSLESS, PREDICTS_ERROR and those that all factorizers share;
    `laws` lists them.

    Notes
    -----
    The threshold is found by partition of the floats' bits as integers, which is exact and seven
    times as fast as ``torch.kthvalue``.

    Source
    ------
    Han, Pool, Tran and Dally (2015), NIPS 28, 1135-1143; the count r (m + n) is that of Winata,
    Madotto, Shin, Barezi and Fung (2019), arXiv 1908.09982.

    Examples
    --------
    >>> f = prune(torch.tensor([[1.0, -5.0, 2.0, 0.5], [3.0, 0.1, -4.0, 2.0]]), 1, Options())
    >>> f.dense().tolist()
    [[1.0, -5.0, 2.0, 0.0], [3.0, 0.0, -4.0, 2.0]]
    """

    name = "prune"
    source = "Han, Pool, Tran and Dally (2015), NIPS 28, 1135-1143"
    laws = frozenset(
        {
            Law.KEEPS_K_LARGEST,
            Law.DETERMINISTIC,
            Law.ERROR_REPORTED_TRULY,
            Law.SHAPES_AND_DTYPE,
            Law.INPUT_UNCHANGED,
            Law.FULL_RANK_IS_LOSSLESS,
            Law.PREDICTS_ERROR,
            Law.MONOTONE_IN_RANK,
            Law.REFUSES_BAD_INPUT,
        }
    )

    def __call__(self, W: Tensor, r: int, options: Options) -> Pruned:
        """Return the mask and values that match rank `r`.

        Parameters
        ----------
        W : (m, n), floating
            Not modified.
        r : int, 1 <= r <= min(m, n)
        options : Options
            `dtype` is heeded.

        Raises
        ------
        RankError
            `r` is out of range.
        NonFiniteError
            W has a NaN or an infinity, or a value doesn't fit the storage dtype.
        """
        weight = weigh(W)
        check_rank(*weight.shape, r)
        flat = weight.W.cpu().contiguous().reshape(-1)
        mask = torch.from_numpy(_largest(flat, kept_values(*weight.shape, r)))
        values = flat[mask].to(options.dtype or W.dtype)
        if not bool(values.isfinite().all()):
            name = str(values.dtype).removeprefix("torch.")
            raise NonFiniteError(f"a value overflows {name}", hint="keep the dtype of the matrix")
        dropped = _sq_norm(flat.masked_fill(mask, 0.0), weight)
        rounding = 0.0
        if values.dtype != flat.dtype:
            rounding = _sq_norm(flat[mask].to(weight.dtype) - values.to(weight.dtype), weight)
        return Pruned(
            mask.view(W.shape).to(W.device),
            values.to(W.device),
            weight.unscaled(dropped + rounding),
            weight.sq_norm,
        )

    def sq_errors(self, W: Tensor, options: Options) -> Tensor:
        """Return the squared Frobenius error at ranks 0, 1, ..., k: tails of sorted magnitudes.

        Returns
        -------
        (k + 1,) float64, on the CPU
            Non-increasing; the first is ``norm(W) ** 2``.
        """
        weight = weigh(W)
        m, n = weight.shape
        magnitudes = W.detach().abs().reshape(-1).sort().values.cpu().double()
        zero = torch.zeros(1, dtype=torch.float64)
        dropped = torch.cat([zero, magnitudes.square().cumsum(0)])  # by how many are dropped
        counts = torch.tensor([m * n - kept_values(m, n, r) for r in range(min(m, n) + 1)])
        errors = dropped[counts]
        errors[0] = weight.sq_norm
        return errors.cummin(0).values


prune: Final = MagnitudePruning()


def _largest(flat: Tensor, count: int) -> NDArray[np.bool_]:
    """Mask of the `count` entries of largest magnitude, ties by index."""
    if count == flat.numel():
        return np.ones(count, dtype=np.bool_)
    as_torch, as_numpy = _BITS[flat.dtype.itemsize]
    bits = flat.view(as_torch).numpy() & np.iinfo(as_numpy).max
    place = flat.numel() - count
    threshold = np.partition(bits, place)[place]
    mask: NDArray[np.bool_] = bits > threshold
    ties = np.flatnonzero(bits == threshold)
    mask[ties[: count - int(np.count_nonzero(mask))]] = True
    return mask


def _sq_norm(values: Tensor, weight: Weight) -> float:
    """Squared norm at the weight's scale, a chunk at a time."""
    chunks = torch.split(values, _CHUNK)
    return math.fsum(sq_norm(c.to(weight.dtype) * weight.scale) for c in chunks)
