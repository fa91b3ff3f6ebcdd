"""What a factorizer can promise of its results. Declared here, held to by the conformance suite."""

import enum


@enum.unique
class Law(enum.Enum):
    """A property that every result of a factorizer has; each value is its one-line meaning.

    ``W`` is the matrix, ``U V`` the product of the stored tensors, ``S`` the singular values of
    ``W``, and eps the unit of the storage dtype.
    """

    OPTIMAL_FROBENIUS = (
        "norm(W - U V) is sqrt(sum(S[r:] ** 2)), to 1e-6 of it or to 4 max(m, n) eps S[0]"
    )
    EXACT_TO_ROUNDING = "with exact=True, sqrt(sum(S[r:] ** 2)) to 4 max(m, n) eps S[0] alone"
    NOT_BELOW_OPTIMUM = "no result claims an error below sqrt(sum(S[r:] ** 2))"
    NOT_ABOVE_SVD_AT_R_MINUS_1 = "norm(W - U V) is at most sqrt(sum(S[r - 1:] ** 2))"
    NONNEGATIVE = "the factor that options.nonnegative names has no negative entry, as stored"
    KEEPS_K_LARGEST = "min(m n, r (m + n)) entries of largest magnitude are kept, unchanged"
    DETERMINISTIC = "the same matrix, rank and options give the same bytes"
    ERROR_REPORTED_TRULY = "rel_error is that of the stored tensors, to 1e-5 of it or to 1e-7"
    SHAPES_AND_DTYPE = "the stored tensors are those of ranks.stored_tensors, in options.dtype"
    INPUT_UNCHANGED = "W is not written to, and no result shares its memory"
    FULL_RANK_IS_LOSSLESS = "at r = min(m, n) the error is rounding: 4 max(m, n) eps S[0]"
    PREDICTS_ERROR = "sq_errors[r] is the squared error to come, but for the storage's rounding"
    PREDICTS_BOUND = "sq_errors[r] is at least that, but for the storage's rounding"
    MONOTONE_IN_RANK = "sq_errors doesn't increase with r; the first is norm(W) ** 2"
    REFUSES_BAD_INPUT = "RankError for a rank out of range, NonFiniteError for NaN or infinity"
