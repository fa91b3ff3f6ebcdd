"""Which files make up a sharded checkpoint, and whether the index and the shards agree.

The index of safetensors shards and that of ``pytorch_model-*.bin`` have one form.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from ckptshrink.errors import (
    CheckpointError,
    CorruptCheckpointError,
    UnknownFormatError,
    UnsafeCheckpointError,
)
from ckptshrink.io.files import SourceFile, source_errors
from ckptshrink.io.safetensors_header import INDEX_SUFFIX, SINGLE_NAME, strict_json

_MAX_INDEX: Final = 100_000_000


@dataclass(frozen=True, slots=True)
class Index:
    """A shard index: which file each tensor is in, and metadata of any JSON kind."""

    path: Path
    weight_map: dict[str, str]
    metadata: dict[str, Any] | None

    def shard_paths(self) -> dict[str, Path]:
        """Return the path of every shard by its name, sorted.

        Raises
        ------
        UnsafeCheckpointError
            One lies outside the folder of the index, by its name or through a link.
        """
        return {name: self._shard_path(name) for name in sorted(set(self.weight_map.values()))}

    def check_held(self, held: Iterable[tuple[str, str]]) -> None:
        """Compare with what the shards hold, as pairs of tensor and file.

        Raises
        ------
        CorruptCheckpointError
            A tensor is not where the index puts it, or only a shard knows of it.
        """
        found, listed = set(held), set(self.weight_map.items())
        for pairs, what in (
            (listed - found, "the index puts it into {!r:.200}, which does not hold it"),
            (found - listed, "the shard {!r:.200} holds it, and the index does not say so"),
        ):
            if pairs:
                name, file = min(pairs)
                raise CorruptCheckpointError(
                    f"{what.format(file)} ({len(pairs)} such tensors)", path=self.path, tensor=name
                )

    def _shard_path(self, name: str) -> Path:
        pure = PurePosixPath(name)
        plain = name and "\0" not in name and str(pure) == name
        if not plain or pure.is_absolute() or ".." in pure.parts:
            raise UnsafeCheckpointError(
                f"names the shard {name!r:.200}, which is no plain name inside its folder",
                path=self.path,
            )
        return inside(self.path.parent, name)


def file_of_folder(folder: Path) -> Path:
    """Return the file of a folder that stands for the whole checkpoint: one file, or the index.

    Raises
    ------
    UnknownFormatError
        There is neither ``model.safetensors`` nor one index.
    UnsafeCheckpointError
        It is a link that leads out of the folder.
    """
    if (folder / SINGLE_NAME).exists():
        return inside(folder, SINGLE_NAME)
    with source_errors(folder):
        found = sorted(
            entry.name for entry in folder.iterdir() if entry.name.endswith(INDEX_SUFFIX)
        )
    if len(found) != 1:
        raise UnknownFormatError(
            f"is a folder with {len(found)} files *{INDEX_SUFFIX} and no {SINGLE_NAME}",
            path=folder,
            hint=f"name one of: {', '.join(found)}" if found else "name the file in it",
        )
    return inside(folder, found[0])


def read_index(file: SourceFile) -> Index:
    """Read and check an opened index.

    Raises
    ------
    UnknownFormatError
        It is no index of shards.
    CorruptCheckpointError
        It is JSON of more than one reading, or maps something else than text to text.
    """
    start = bytes(file.read(0, min(file.size, 64)))
    if file.size > _MAX_INDEX or not start.lstrip().startswith(b"{"):
        raise UnknownFormatError("is neither safetensors nor an index of shards", path=file.path)
    table = strict_json(bytes(file.read(0, file.size)), "index", file.path)
    weight_map, metadata = table.get("weight_map"), table.get("metadata")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UnknownFormatError("is JSON without a weight_map: no index of shards", path=file.path)
    if not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CorruptCheckpointError("weight_map does not map text to text", path=file.path)
    if metadata is not None and not isinstance(metadata, dict):
        raise CorruptCheckpointError("the metadata of the index is no object", path=file.path)
    return Index(file.path, weight_map, metadata)


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file of `folder`, refusing a link that leads out of it.

    Raises
    ------
    CheckpointError
        It is a link that leads nowhere.
    UnsafeCheckpointError
        It is a link that leads out of the folder, and not into the cache that the folder is of.
    """
    path = folder / name
    try:
        real, base = path.resolve(), folder.resolve()
    except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError before 3.13
        raise CheckpointError("is a link that leads nowhere", path=path) from error
    roots = [base]
    if base.parent.name == "snapshots":
        # The cache of huggingface_hub keeps every file of a snapshot as a link into ../../blobs.
        roots.append(base.parent.parent / "blobs")
    if not any(real.is_relative_to(root) for root in roots):
        raise UnsafeCheckpointError(
            "is a link that leads out of its folder",
            path=path,
            hint="put the file itself there, if you trust it",
        )
    return path
