"""Semi-non-negative matrix factorization: a pair of which one factor has no negative entry."""

from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from ckptshrink.errors import PlanError
from ckptshrink.linalg.closed import closed
from ckptshrink.linalg.ding import ding
from ckptshrink.linalg.factors import Factors, Options
from ckptshrink.linalg.laws import Law
from ckptshrink.linalg.products import Weight, weigh
from ckptshrink.linalg.ranks import check_rank
from ckptshrink.linalg.svd import finished, svd, zero_factors


class SemiNMF:
    """Pair U V of which V, or U, has no negative entry; the other factor is free.

    The default solver works in closed form but for one vector, see `nonnegative`. Its error at
    rank r is that of the SVD at r where the leading r right singular directions hold a positive
    vector, and never above that of the SVD at r - 1.

    Laws
    ----
    NONNEGATIVE, NOT_ABOVE_SVD_AT_R_MINUS_1, NOT_BELOW_OPTIMUM, PREDICTS_BOUND and those that all
    factorizers share; `laws` lists them. The solver ``"ding"`` has no bound on its error.

    Notes
    -----
    How well the factors stand rounding depends on the least entry of that vector, so that several
    are tried and the pair with the least error *as stored* is kept.

    Source
    ------
    Ding, Li and Jordan (2010), IEEE Trans. Pattern Anal. Mach. Intell. 32(1), 45-55; Gillis and
    Kumar (2015), SIAM J. Matrix Anal. Appl. 36(4), 1404-1424.

    Examples
    --------
    >>> W = torch.tensor([[1.0, -2.0, 3.0], [0.5, 1.0, -1.0], [2.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    >>> f = semi_nmf(W, 2, Options())
    >>> bool((f.V >= 0).all()), f.sq_error <= svd(W, 1, Options()).sq_error
    (True, True)
    """

    name = "semi-nmf"
    source = (
        "Ding, Li and Jordan (2010), IEEE Trans. Pattern Anal. Mach. Intell. 32(1), 45-55; "
        "Gillis and Kumar (2015), SIAM J. Matrix Anal. Appl. 36(4), 1404-1424"
    )
    laws = frozenset(
        {
            Law.NONNEGATIVE,
            Law.NOT_ABOVE_SVD_AT_R_MINUS_1,
            Law.NOT_BELOW_OPTIMUM,
            Law.DETERMINISTIC,
            Law.ERROR_REPORTED_TRULY,
            Law.SHAPES_AND_DTYPE,
            Law.INPUT_UNCHANGED,
            Law.PREDICTS_BOUND,
            Law.MONOTONE_IN_RANK,
            Law.REFUSES_BAD_INPUT,
        }
    )

    def __call__(self, W: Tensor, r: int, options: Options) -> Factors:
        """Return the pair of rank `r`.

        Parameters
        ----------
        W : (m, n), floating
            Not modified.
        r : int, 1 <= r <= min(m, n)
        options : Options
            `dtype`, `nonnegative`, `solver`, and for ``"ding"`` `iterations` and `seed`.

        Raises
        ------
        RankError
            `r` is out of range.
        NonFiniteError
            W has a NaN or an infinity, or a factor doesn't fit the storage dtype.
        PlanError
            No such solver, or a negative number of iterations.
        """
        weight = weigh(W)
        if options.nonnegative == "V":
            return self._right(weight, r, options)
        found = self._right(replace(weight, W=weight.W.T), r, options)
        return Factors(
            found.V.T.contiguous(),
            found.U.T.contiguous(),
            found.sq_error,
            found.sq_norm,
            found.spectrum,
            found.notes,
        )

    def sq_errors(self, W: Tensor, options: Options) -> Tensor:
        """Return bounds on the squared error at ranks 0, 1, ..., k: the SVD's at one rank less.

        At rank k it is 0 where the non-negative factor is on the short side, which then has room
        for every matrix; on the long side it isn't.

        Returns
        -------
        (k + 1,) float64, on the CPU
        """
        tails = svd.sq_errors(W, options)
        bounds = torch.cat([tails[:1], tails[:-1]])
        rows, columns = W.shape if options.nonnegative == "V" else W.shape[::-1]
        if columns <= rows:
            bounds[-1] = 0.0
        return bounds

    def _right(self, weight: Weight, r: int, options: Options) -> Factors:
        check_rank(*weight.shape, r)
        dtype = options.dtype or weight.W.dtype
        if weight.scaled_sq_norm == 0.0:
            return zero_factors(weight.W, r, dtype)
        if options.solver == "ding":
            if options.iterations < 0:
                raise PlanError(f"iterations must not be negative; got {options.iterations}")
            U, V = ding(weight, r, options.iterations, options.seed)
            return finished(weight, U.to(dtype), V.to(dtype))
        if options.solver == "closed":
            return closed(weight, r, dtype)
        raise PlanError(f"no solver {options.solver!r}; closed and ding are")


semi_nmf: Final = SemiNMF()
