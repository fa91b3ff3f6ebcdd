"""ASGD averages that an optimizer keeps beside the weights: compare them, or read them instead."""

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ckptshrink.errors import PlanError
from ckptshrink.io.checkpoint import Checkpoint, Reader

_PREFIX: Final = "optimizer.state."
_SLOT: Final = ".ax"


def averages_of(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the tensor that holds the running average of each parameter, by parameter name."""
    found = {}
    for name, ref in checkpoint.tensors.items():
        if name.startswith(_PREFIX) and name.endswith(_SLOT):
            owner = checkpoint.tensors.get(name[len(_PREFIX) : -len(_SLOT)])
            if owner is not None and (owner.shape, owner.dtype) == (ref.shape, ref.dtype):
                found[owner.name] = name
    return found


def compare_averages(reader: Reader) -> str | None:
    """Return one line on whether the averages equal the weights, None where there are none.

    The official training script saves while the averages are swapped in, so that they are equal;
    a file in which they differ was saved by another program, in the middle of an epoch.
    """
    averages = averages_of(reader.checkpoint)
    if not averages:
        return None
    differ = [
        name
        for name, average in averages.items()
        if any(a != b for a, b in zip(_copied(reader, name), reader.chunks(average), strict=True))
    ]
    if not differ:
        return f"ASGD averages (ax) of {len(averages)} parameters equal the weights"
    return (
        f"ASGD averages (ax) differ from {len(differ)} of {len(averages)} weights, first "
        f"{differ[0]}; the weights are used, --use-averaged takes the averages"
    )


def _copied(reader: Reader, name: str) -> Iterator[bytes]:
    # a chunk is valid only until the next one is asked for
    return (bytes(chunk) for chunk in reader.chunks(name))


class AveragedReader:
    """A reader that gives the running average wherever a parameter has one."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.checkpoint = reader.checkpoint
        self._averages = averages_of(reader.checkpoint)
        if not self._averages:
            raise PlanError(
                "--use-averaged: the checkpoint keeps no ASGD averages", path=self.checkpoint.root
            )

    def read(self, name: str) -> NDArray[np.uint8]:
        """Return the payload of a tensor, or of its average."""
        return self._reader.read(self._averages.get(name, name))

    def chunks(self, name: str) -> Iterator[memoryview]:
        """Yield the payload of a tensor, or of its average."""
        return self._reader.chunks(self._averages.get(name, name))

    def close(self) -> None:
        """Close the files."""
        self._reader.close()
