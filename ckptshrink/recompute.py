"""Recompute, from the files, every error that a manifest states."""

import math
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from ckptshrink.averages import AveragedReader
from ckptshrink.events import Listener, Progress
from ckptshrink.export.rebuilt import Rebuilt, matrix_of
from ckptshrink.io.checkpoint import Reader
from ckptshrink.io.detect import open_checkpoint
from ckptshrink.linalg.products import sq_norm
from ckptshrink.manifest import Manifest, TensorRecord
from ckptshrink.matrices import MatrixSource

REL_TOLERANCE: Final = 1e-3
"""Two computations of an error may differ by this share of it ..."""

ABS_TOLERANCE: Final = 1e-6
"""... or by this, of ‖W‖: float32 sums of 10⁷ squares were seen to differ by 3e-7."""

_BLOCK_BYTES: Final = 1 << 18
"""Of float64: stays in the cache. Of 16384 x 512, blocks of 32 MiB took 0.115 s, of 1 MiB 0.074 and
of 256 KiB 0.022: the system hands out and clears each larger one anew."""


def recompute(
    artefact: Path, manifest: Manifest, source: Path, listen: Listener
) -> tuple[list[str], tuple[str, float] | None]:
    """Compare an artefact with its source, a row at a time.

    Returns
    -------
    (list of str, (str, float) or None)
        Every difference in one line, and the row with the largest error.
    """
    found: list[str] = []
    worst: tuple[str, float] | None = None
    reader: Reader = open_checkpoint(source)
    with closing(reader), closing(Rebuilt(artefact, manifest)) as rebuilt:
        if manifest.settings.use_averaged:
            reader = AveragedReader(reader)
        missing = {row.tensor for row in manifest.tensors} ^ set(reader.checkpoint.tensors)
        found += [f"{name}: is in the source or in the artefact alone" for name in sorted(missing)]
        if found:
            return found, None
        matrices = MatrixSource(reader)
        total = sum(row.nbytes_before for row in manifest.tensors)
        done = 0
        for row in manifest.tensors:
            listen(Progress(row.name, done, total))
            done += row.nbytes_before
            if row.action == "factorize":
                error = _rel_error(matrices.matrix(matrix_of(row)), rebuilt.matrix(row))
                if worst is None or error > worst[1]:
                    worst = (row.name, error)
                if row.rel_error is None or not _agree(error, row.rel_error):
                    found.append(f"{row.name}: error is {error:.6g}, not {row.rel_error}")
            elif row.action == "keep" and not _equal(row, reader, rebuilt):
                found.append(f"{row.name}: was to be kept, and differs from the source")
    return found, worst


def _rel_error(W: Tensor, approximation: Tensor) -> float:
    """Return ‖W − Ŵ‖ / ‖W‖, summed in float64 over blocks of rows."""
    error = norm = 0.0
    for w, a in zip(_blocks(W), _blocks(approximation), strict=True):
        w64 = w.double()
        error += sq_norm(w64 - a.double())
        norm += sq_norm(w64)
    return math.sqrt(error / norm) if norm else 0.0


def _agree(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=REL_TOLERANCE, abs_tol=ABS_TOLERANCE)


def _blocks(W: Tensor) -> Iterator[Tensor]:
    rows = max(1, _BLOCK_BYTES // max(1, 8 * W.shape[1]))
    return (W[i : i + rows] for i in range(0, W.shape[0], rows))


def _equal(row: TensorRecord, reader: Reader, rebuilt: Rebuilt) -> bool:
    if row.part is not None and row.stored_as != (row.tensor,):
        kept = rebuilt.stored(row.stored_as[0])
        whole = MatrixSource(reader).matrix(matrix_of(row))
        return torch.equal(_bits(whole), _bits(kept))
    pairs = zip(reader.chunks(row.tensor), rebuilt.chunks(row.tensor), strict=False)
    # memoryviews are compared one item after the other
    return all(
        np.array_equal(np.frombuffer(a, np.uint8), np.frombuffer(b, np.uint8)) for a, b in pairs
    )


def _bits(tensor: Tensor) -> Tensor:
    # as bytes, so that NaN equals itself and -0.0 differs from 0.0
    return tensor.contiguous().view(torch.uint8)
