"""The writers of every source format behind two functions: write it new, or like the source."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ckptshrink.errors import PlanError
from ckptshrink.io.checkpoint import Reader
from ckptshrink.io.files import SourceFile
from ckptshrink.io.staged_file import StagedFile
from ckptshrink.io.staging import Staging
from ckptshrink.io.structure import tensors_in, unwrapped
from ckptshrink.tensors import TensorRef

Payloads = Callable[[str], Iterator[memoryview]]
Carried = Callable[[str], SourceFile]
Replaced = Mapping[str, Callable[[], NDArray[np.uint8]]]

_NOT_WRITTEN: Final = {
    "torchscript": ("the program: what is written is the model's state dict, for torch.load",),
    "torch-tar": (
        "the tar container: what is written is the zip container of torch 1.6 and later",
    ),
}
"""What a new file in place of such a source is without."""


def write_like(reader: Reader, replaced: Replaced, staging: Staging) -> None:
    """Copy a source's container with the payloads of some tensors exchanged.

    Parameters
    ----------
    replaced : mapping of str to callable
        Makes the new payload of a tensor, of the size of the old one, when the copy comes to it.
    """
    name = _only_name(staging, reader.checkpoint.container)
    match reader.checkpoint.format:
        case "hdf5":
            from ckptshrink.io import hdf5_file

            hdf5_file.write_like(reader, replaced, staging.adopt(name))
        case "keras":
            from ckptshrink.io import keras_file

            out, scratch = staging.create(name), _scratch(staging)
            keras_file.write_like(reader, replaced, scratch, out)
        case "allennlp-archive":
            from ckptshrink.io import archive_file

            archive_file.write_like(reader, replaced, staging)
        case "safetensors":
            from ckptshrink.io import safetensors_file

            safetensors_file.write_like(reader, replaced, _creator(staging))
        case "torch-shards":
            from ckptshrink.io import torch_shards

            torch_shards.write_like(reader, replaced, staging.create)
        case _:
            from ckptshrink.io import torch_write

            torch_write.write_like(reader, replaced, staging.create(name))


def write_new(
    format_: str,
    container: Mapping[str, Any],
    tensors: Mapping[str, TensorRef],
    payload: Payloads,
    carried: Carried,
    staging: Staging,
) -> tuple[str, ...]:
    """Write a checkpoint in its source's container, from what was recorded of that.

    Parameters
    ----------
    carried : callable
        Opens a file that the source carried inside, by its place in the artefact.

    Returns
    -------
    tuple of str
        What the source held and this file does not, one line each.

    Raises
    ------
    PlanError
        The format is none that can be written.
    """
    name = _only_name(staging, container)
    match format_:
        case "hdf5":
            from ckptshrink.io import hdf5_file

            hdf5_file.write_new(container, tensors, payload, staging.adopt(name))
            return ()
        case "keras":
            from ckptshrink.io import keras_file

            out, scratch = staging.create(name), _scratch(staging)
            keras_file.write_new(container, tensors, payload, scratch, out)
            return ()
        case "safetensors":
            from ckptshrink.io import safetensors_file

            kept = _without_dropped(container, tensors)
            safetensors_file.write_new(kept, tensors, payload, _creator(staging))
            return ()
        case "torch-shards":
            from ckptshrink.io import torch_shards

            return torch_shards.write_new(container, tensors, payload, staging.create)
        case "torch-zip" | "torch-legacy" | "torch-tar" | "torchscript":
            from ckptshrink.io import torch_write

            out = staging.create(name)
            left_out = torch_write.write_new(_kept(container, tensors), tensors, payload, out)
            if format_ == "torchscript":
                named = set(tensors_in(container.get("structure", {})))
                beside = [n for n, t in tensors.items() if n not in named and not t.shares_with]
                left_out += tuple(f"{n}: no part of the state dict" for n in beside)
            return (*left_out, *_NOT_WRITTEN.get(format_, ()))
        case "allennlp-archive":
            from ckptshrink.io import archive_file

            kept = _kept(container, tensors)
            return archive_file.write_new(kept, tensors, payload, carried, staging)
    raise PlanError(f"no writer for the format {format_!r}")


def _kept(container: Mapping[str, Any], tensors: Mapping[str, TensorRef]) -> Mapping[str, Any]:
    """Return the record of a file of torch.save without the tensors that were dropped."""
    structure = container.get("structure", {})
    dropped = set(tensors_in(structure)) - set(tensors)
    return {**container, "structure": unwrapped(structure, dropped)}


def _without_dropped(
    container: Mapping[str, Any], tensors: Mapping[str, TensorRef]
) -> Mapping[str, Any]:
    """Return the record of safetensors files without what the artefact does not have."""
    shards = container.get("shards")
    if not isinstance(shards, dict):
        return container
    kept = {
        file: [name for name in names if name in tensors]
        for file, names in shards.items()
        if isinstance(names, list)
    }
    # a shard of optimizer state alone is not written; one that was empty is
    return {
        **container,
        "shards": {f: names for f, names in kept.items() if names or not shards[f]},
    }


def _only_name(staging: Staging, container: Mapping[str, Any]) -> str:
    """Return the name of the one file: the target's, or in a model's folder that of the source."""
    if staging.single:
        return staging.target.name
    folder = container.get("folder")
    return str(folder.get("weights", "")) if isinstance(folder, dict) else staging.target.name


def _scratch(staging: Staging) -> Path:
    return staging.scratch_path(f"{staging.target.name}.weights")


def _creator(staging: Staging) -> Callable[[str], StagedFile]:
    if staging.single:
        return lambda _: staging.create(staging.target.name)
    return staging.create
