"""One matrix with what was asked of it, and the plan rows that can come of it."""

import math
from dataclasses import dataclass
from typing import Final

from ckptshrink.gates import GateMatrix
from ckptshrink.linalg import ranks
from ckptshrink.plan import PlanItem
from ckptshrink.planning.request import Size
from ckptshrink.stored import blocks_of, entries_of, stored_dtype
from ckptshrink.tensors import nbytes_of

_ROUNDING: Final = {"F16": 2.0**-11, "BF16": 2.0**-8}
"""Unit of rounding. Both factors rounded came to 0.4 of it in Frobenius norm on gate shapes."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A matrix with everything that was asked of it."""

    matrix: GateMatrix
    dtype: str
    size: Size | None
    method: str
    grouping: str
    store: str

    @property
    def factor_dtype(self) -> str:
        """Dtype code of the stored factors."""
        return stored_dtype(self.store, self.dtype)

    @property
    def rounding(self) -> float:
        """Relative error that storing the factors in a narrower dtype can add; 0 if it is kept."""
        return _ROUNDING.get(self.factor_dtype, 0.0) if self.factor_dtype != self.dtype else 0.0

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the matrix as it is in the source."""
        return nbytes_of(self.matrix.shape, self.dtype)

    @property
    def full_rank(self) -> int:
        """Largest rank that every block of the matrix can have."""
        return min(min(shape) for _, _, shape in blocks_of(self.matrix, self.grouping))

    def stored_nbytes(self, rank: int) -> int:
        """Bytes of what would be stored at this rank."""
        entries = entries_of(
            self.matrix, method=self.method, rank=rank, grouping=self.grouping,
            dtype=self.factor_dtype,
        )  # fmt: skip
        return sum(nbytes_of(shape, dtype) for _, shape, dtype in entries)

    def stored_params(self, rank: int) -> int:
        """Parameters of what would be stored at this rank, in the papers' accounting."""
        return sum(
            ranks.stored_params(self.method, m, n, rank)
            for _, _, (m, n) in blocks_of(self.matrix, self.grouping)
        )

    def useful_rank(self) -> int:
        """Largest rank that stores fewer bytes than the dense matrix; 0 if there is none."""
        low, high = 0, self.full_rank
        while low < high:
            middle = (low + high + 1) // 2
            if self.stored_nbytes(middle) < self.dense_nbytes:
                low = middle
            else:
                high = middle - 1
        return low


def factorized_row(choice: Choice, rank: int, reason: str, predicted: float | None) -> PlanItem:
    """Return the row of a matrix that is factorized at `rank`."""
    matrix = choice.matrix
    return PlanItem(
        name=matrix.key,
        action="factorize",
        method=choice.method,
        rank=rank,
        grouping="per-gate" if choice.grouping == "per-gate" else "stacked",
        dtype=choice.store,
        reason=reason,
        role=matrix.role,
        layer=matrix.layer,
        shape=matrix.shape,
        n_params_before=math.prod(matrix.shape),
        n_params_after=choice.stored_params(rank),
        nbytes_before=choice.dense_nbytes,
        nbytes_after=choice.stored_nbytes(rank),
        predicted_rel_error=predicted,
    )


def dense_row(choice: Choice, reason: str) -> PlanItem:
    """Return the row of a matrix that was asked for and stays dense all the same."""
    return kept_row(choice.matrix, choice.dtype, reason)


def kept_row(matrix: GateMatrix, dtype: str, reason: str) -> PlanItem:
    """Return the row of a matrix that stays as it is."""
    n_params, nbytes = math.prod(matrix.shape), nbytes_of(matrix.shape, dtype)
    return PlanItem(
        name=matrix.key, action="keep", reason=reason, role=matrix.role, layer=matrix.layer,
        shape=matrix.shape, n_params_before=n_params, n_params_after=n_params,
        nbytes_before=nbytes, nbytes_after=nbytes,
    )  # fmt: skip
