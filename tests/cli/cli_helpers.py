"""What tests of the command line pass to one another."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, str]]:
        """Return the tab-separated rows of standard output, by the names of its header line."""
        header, *lines = self.out.splitlines()
        fields = header.split("\t")
        return [dict(zip(fields, line.split("\t"), strict=True)) for line in lines]


Shrink = Callable[..., Done]
"""Run the command line with these arguments."""

Tensors = Mapping[str, NDArray[np.float64]]
"""Values by name; written as float32."""

Write = Callable[[Path, Mapping[str, NDArray[Any]]], Path]
"""Write a safetensors file and return its path."""
