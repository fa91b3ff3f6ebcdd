"""Stored bytes ↔ torch tensors, and where the arithmetic runs. One of the few users of torch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ckptshrink.errors import PlanError

TORCH_DTYPES: Final[dict[str, torch.dtype]] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
"""Torch dtypes of the codes in `tensors.ITEMSIZE`."""


@dataclass(frozen=True, slots=True)
class Compute:
    """Where and with how many threads the arithmetic runs.

    Attributes
    ----------
    device : str
        ``"auto"`` takes CUDA where torch finds it.
    threads : int or None
        CPU threads of torch; None leaves torch's own choice.
    aside : bool
        Whether reading, hashing and writing go on beside the arithmetic, on other cores.
    """

    device: str = "auto"
    threads: int | None = None
    aside: bool = True

    def resolve(self) -> torch.device:
        """Return the device.

        Raises
        ------
        PlanError
            CUDA was asked for and torch has none, or the device is no such word.
        """
        if self.device not in {"auto", "cpu", "cuda"}:
            raise PlanError(f"--device is auto, cpu or cuda; got {self.device!r}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise PlanError("--device cuda: torch finds no CUDA device", hint="--device cpu")
        wants_cuda = self.device != "cpu" and torch.cuda.is_available()
        return torch.device("cuda" if wants_cuda else "cpu")

    @contextmanager
    def limits(self) -> Iterator[int]:
        """Hold torch to the number of threads, and give it back after; yields the number."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or min(before, os.cpu_count() or 1))
        try:
            yield torch.get_num_threads()
        finally:
            torch.set_num_threads(before)


def to_tensor(payload: NDArray[np.uint8], shape: tuple[int, ...], dtype: str) -> Tensor:
    """Return row-major bytes as a tensor that shares their memory."""
    return torch.from_numpy(payload).view(TORCH_DTYPES[dtype]).reshape(shape)


def to_bytes(tensor: Tensor) -> NDArray[np.uint8]:
    """Return a tensor's row-major bytes; shares memory where it is contiguous and on the CPU."""
    flat: NDArray[np.uint8] = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return flat
