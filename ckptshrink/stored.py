"""Under which names, shapes and dtypes a factorized matrix is stored. See docs/format.md."""

from ckptshrink.gates import GateMatrix, Part
from ckptshrink.linalg.ranks import stored_tensors
from ckptshrink.plan import DTYPE_CODES

Entry = tuple[str, tuple[int, ...], str]
"""Name, shape and dtype code of a stored tensor."""


def blocks_of(matrix: GateMatrix, grouping: str) -> list[tuple[str, Part | None, tuple[int, int]]]:
    """Return the blocks that are factorized apart: stored stem, slice of the matrix, shape."""
    found = []
    for suffix, part in matrix.blocks(grouping):
        m, n = matrix.shape
        if part is not None:
            m, n = (part.stop - part.start, n) if part.axis == 0 else (m, part.stop - part.start)
        found.append((matrix.key + suffix, part, (m, n)))
    return found


def stored_dtype(choice: str, dtype: str) -> str:
    """Return the dtype code of stored factors: the matrix's own for ``"keep"``."""
    return DTYPE_CODES.get(choice, dtype)


def entries_of(
    matrix: GateMatrix, *, method: str, rank: int, grouping: str, dtype: str
) -> list[Entry]:
    """Return what a factorized matrix is stored as, `dtype` being that of the factors."""
    return [
        (stem + suffix, shape, code)
        for stem, _, (m, n) in blocks_of(matrix, grouping)
        for suffix, shape, code in stored_tensors(method, m, n, rank, dtype)
    ]
