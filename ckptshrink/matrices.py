"""Factorize one gate matrix of an opened checkpoint, block by block."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ckptshrink.errors import CkptshrinkError, PlanError
from ckptshrink.events import Listener, Progress
from ckptshrink.gates import GateMatrix
from ckptshrink.io.checkpoint import Reader
from ckptshrink.linalg.factors import Options
from ckptshrink.linalg.methods import METHODS
from ckptshrink.payload import TORCH_DTYPES, to_tensor
from ckptshrink.plan import PlanItem, Settings
from ckptshrink.stored import blocks_of, stored_dtype


@dataclass(frozen=True, slots=True)
class CompressedMatrix:
    """What one matrix became.

    Attributes
    ----------
    blocks : tuple of (str, dict of str to Tensor)
        Stored stem of each block, and its tensors by suffix, in the stored dtype.
    sq_error, sq_norm : float
        ‖W − Ŵ‖² of the values as stored, and ‖W‖².
    notes : tuple of str
        What the factorizer has to say, each once.
    """

    blocks: tuple[tuple[str, dict[str, Tensor]], ...]
    sq_error: float
    sq_norm: float
    notes: tuple[str, ...]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every stored tensor by its full name."""
        return {stem + suffix: t for stem, block in self.blocks for suffix, t in block.items()}

    @property
    def rel_error(self) -> float:
        """‖W − Ŵ‖ / ‖W‖ in the Frobenius norm; 0 for a matrix of zeros."""
        return (self.sq_error / self.sq_norm) ** 0.5 if self.sq_norm else 0.0


class MatrixSource:
    """Reads matrices of a checkpoint; keeps the last tensor, since its parts come in a row."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self._last: tuple[str, Tensor] | None = None

    def tensor(self, name: str) -> Tensor:
        """Return a whole stored tensor, on the CPU, in its stored dtype."""
        if self._last is None or self._last[0] != name:
            self._last = None  # before the next one is read: two of them need not fit
            ref = self.reader.checkpoint.tensors[name]
            self._last = (name, to_tensor(self.reader.read(name), ref.shape, ref.dtype))
        return self._last[1]

    def matrix(self, matrix: GateMatrix) -> Tensor:
        """Return a matrix in its stored orientation: a view of its tensor."""
        whole = self.tensor(matrix.source)
        return whole if matrix.part is None else whole[matrix.part.slices]

    def forget(self) -> None:
        """Free the last tensor."""
        self._last = None


def options_of(matrix: GateMatrix, item: PlanItem, settings: Settings, dtype: str) -> Options:
    """Return the factorizer's options: the non-negative side in terms of the stored factors."""
    # W is (outputs, inputs) and T = W or Wᵀ ≈ U V: the output side is U's unless T is transposed
    output_factor, input_factor = ("V", "U") if matrix.layout.transposed else ("U", "V")
    side = output_factor if settings.nonnegative == "output" else input_factor
    return Options(
        dtype=TORCH_DTYPES[stored_dtype(item.dtype, dtype)],
        exact=settings.exact,
        nonnegative="U" if side == "U" else "V",
        solver=settings.solver,
        iterations=settings.iterations,
        seed=settings.seed,
    )


def compress_matrix(
    source: MatrixSource,
    matrix: GateMatrix,
    item: PlanItem,
    settings: Settings,
    device: torch.device,
) -> CompressedMatrix:
    """Factorize a matrix as its plan item says.

    Raises
    ------
    NonFiniteError
        The matrix holds NaN or infinity; names the tensor and the file.
    """
    checkpoint = source.reader.checkpoint
    dtype = checkpoint.tensors[matrix.source].dtype
    if item.method is None or item.rank is None:
        raise PlanError("has no method or rank", tensor=item.name)
    factorize = METHODS.get(item.method)
    options = options_of(matrix, item, settings, dtype)
    whole = source.matrix(matrix)
    blocks: list[tuple[str, dict[str, Tensor]]] = []
    sq_error = sq_norm = 0.0
    notes: list[str] = []
    for stem, part, _ in blocks_of(matrix, item.grouping):
        block = whole if part is None else whole[part.slices]
        try:
            result = factorize(block.to(device), item.rank, options)
        except CkptshrinkError as error:
            error.tensor, error.path = item.name, str(checkpoint.root)
            raise
        blocks.append((stem, result.tensors()))
        sq_error += result.sq_error
        sq_norm += result.sq_norm
        notes += result.notes
    compressed = CompressedMatrix(tuple(blocks), sq_error, sq_norm, tuple(dict.fromkeys(notes)))
    limit = item.max_rel_error
    # two parts in a million for the sums that the plan and the run each make in their own order
    if limit is not None and compressed.rel_error > limit * (1 + 2e-6) + 1e-9:
        raise PlanError(
            f"comes out with an error of {compressed.rel_error:.6g}, above the {limit:g} asked",
            path=checkpoint.root,
            tensor=item.name,
            hint="a larger --max-error, --dtype keep or --exact",
        )
    return compressed


def error_curves(
    reader: Reader, settings: Settings, device: torch.device, listen: Listener
) -> Callable[[GateMatrix, str, str], Sequence[float]]:
    """Return the planner's curves: squared error at every rank, summed over a matrix's blocks."""
    source = MatrixSource(reader)
    total = sum(ref.nbytes for ref in reader.checkpoint.tensors.values())
    done = 0

    def curve(matrix: GateMatrix, method: str, grouping: str) -> Sequence[float]:
        nonlocal done
        listen(Progress(f"spectrum of {matrix.key}", done, total))
        whole = source.matrix(matrix)
        done += whole.nbytes
        item = PlanItem(name=matrix.key, action="factorize", method=method, rank=1)
        dtype = reader.checkpoint.tensors[matrix.source].dtype
        options = options_of(matrix, item, settings, dtype)
        summed = None
        for _, part, _ in blocks_of(matrix, grouping):
            block = whole if part is None else whole[part.slices]
            try:
                errors = METHODS.get(method).sq_errors(block.to(device), options)
            except CkptshrinkError as error:
                error.tensor, error.path = matrix.key, str(reader.checkpoint.root)
                raise
            summed = errors if summed is None else summed + errors
        return [] if summed is None else [float(e) for e in summed]

    return curve
