"""Find the format of a checkpoint from its content, and open it.

Suffixes say little: ``.pt``, ``.pth``, ``.bin``, ``.th`` and ``.pkl`` are all torch files, ``.h5``
can be a web page that a proxy sent, and ``.safetensors`` the text that Git LFS left behind.
"""

import zipfile
from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Final

from ckptshrink.errors import CheckpointError, CorruptCheckpointError, UnknownFormatError
from ckptshrink.io.checkpoint import Reader
from ckptshrink.io.files import SourceFile, source_errors
from ckptshrink.io.model_folder import has_weights, is_beside_config, weights_of, with_sidecars
from ckptshrink.io.safetensors_file import looks_like_header
from ckptshrink.io.safetensors_index import read_index
from ckptshrink.io.staging import MANIFEST
from ckptshrink.io.tar_file import begins_as_tar
from ckptshrink.io.tensorflow import (
    is_tensorflow_folder,
    refuse_folder,
    tensorflow_file,
    tensorflow_prefix,
)
from ckptshrink.io.torch_tar import is_torch_tar
from ckptshrink.io.torch_zip import check_number_of_entries

_HDF5: Final = b"\x89HDF\r\n\x1a\n"
LEGACY_TORCH: Final = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")
_START: Final = 4096
_SEARCHED: Final = 1 << 20

_UNPACK: Final = "unpack it, and give the checkpoint inside"

_KNOWN_STARTS: Final[tuple[tuple[bytes, str, str | None], ...]] = (
    (
        b"version https://git-lfs",
        "is the pointer that Git LFS left in place of the file",
        "git lfs pull",
    ),
    (b"\x1f\x8b", "is packed by gzip", f"gunzip: {_UNPACK}"),
    (b"BZh", "is packed by bzip2", _UNPACK),
    (b"\xfd7zXZ", "is packed by xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "is packed by zstandard", _UNPACK),
    (b"7z\xbc\xaf", "is a 7-Zip archive", _UNPACK),
    (b"Rar!", "is a RAR archive", _UNPACK),
    (b"\x93NUMPY", "is a NumPy array", "put it into a state dict under its name"),
    (b"GGUF", "is a GGUF file, whose tensors are quantised already", None),
    (b"%PDF", "is a PDF document", None),
)
"""First bytes, what the file is, and what to do with it."""

_HTML: Final = (b"<!doctype html", b"<html", b"<?xml", b"<head")


def open_checkpoint(path: Path) -> Reader:
    """Open a checkpoint of any format that has a reader.

    Parameters
    ----------
    path : Path
        A file, the index of a sharded checkpoint, or a folder that holds one or a model's file.
        Configuration and tokenizer of a model's folder are its sidecars.

    Raises
    ------
    CheckpointError
        There is no such file, it is no plain file, or it can't be read.
    UnknownFormatError
        Its content is of no format that has a reader. The hint says what to do with it.
    CorruptCheckpointError, UnsafeCheckpointError
        See the reader of its format.
    """
    refusal = tensorflow_prefix(path)
    if refusal is not None:
        raise refusal
    with source_errors(path):
        is_folder = path.is_dir()
    if is_folder:
        _check_folder(path)
    weights = weights_of(path) if is_folder else path
    reader = _open_file(weights, detect_format(weights))
    if is_folder or len(reader.checkpoint.files) > 1:
        reader.checkpoint = with_sidecars(reader.checkpoint, folder=weights.parent)
    elif is_beside_config(weights):
        reader.checkpoint = with_sidecars(reader.checkpoint, folder=None)
    return reader


def _open_file(path: Path, form: str) -> Reader:
    match form:
        case "hdf5":
            from ckptshrink.io.hdf5_file import open_hdf5

            return open_hdf5(path)
        case "keras":
            from ckptshrink.io.keras_file import open_keras

            return open_keras(path)
        case "allennlp-archive":
            from ckptshrink.io.archive_file import open_archive

            return open_archive(path)
        case "safetensors":
            from ckptshrink.io.safetensors_file import open_safetensors

            return open_safetensors(path)
        case "torch-shards":
            from ckptshrink.io.torch_shards import open_torch_shards

            return open_torch_shards(path)
        case _:
            from ckptshrink.io.torch_file import open_torch

            return open_torch(path)


def detect_format(path: Path) -> str:
    """Return the format of a checkpoint.

    Of an archive no more than its beginning is looked at: what is in it is known once it is opened.

    Returns
    -------
    str
        ``"hdf5"``, ``"keras"``, ``"safetensors"`` (an index of such shards too), ``"torch"``,
        ``"torch-shards"`` for an index of several files of torch.save, or ``"allennlp-archive"``.

    Raises
    ------
    CheckpointError
        See `open_checkpoint`.
    """
    with source_errors(path):
        is_folder = path.is_dir()
    if is_folder:
        _check_folder(path)
        return detect_format(weights_of(path))
    with closing(SourceFile(path)) as file:
        if file.size == 0:
            raise CorruptCheckpointError(
                "is empty", path=path, hint="the download or the save was cut short: get it again"
            )
        start = bytes(file.read(0, min(file.size, _START)))
        found = _format_of_content(file, start)
        refusal = tensorflow_file(file, start) if found is None else None
    if refusal is not None:
        raise refusal
    if found is None:
        raise _unknown(path, start)
    return found


def _check_folder(folder: Path) -> None:
    """Refuse a folder that is no model's, as helpfully as its content allows."""
    with source_errors(folder):
        names = sorted(entry.name for entry in folder.iterdir())
    if MANIFEST in names and _is_artefact(folder / MANIFEST):
        raise UnknownFormatError(
            "is what ckptshrink made of a checkpoint, not a checkpoint",
            path=folder,
            hint=f"ckptshrink verify {folder}, or: ckptshrink restore {folder} -o FILE",
        )
    if has_weights(names):
        return
    if not names:
        raise UnknownFormatError("is an empty folder", path=folder)
    if is_tensorflow_folder(names):
        raise refuse_folder(folder)
    found = _checkpoints_among(folder, names)
    raise UnknownFormatError(
        "is a folder, and not that of a model or of shards",
        path=folder,
        hint=f"name the file: {', '.join(found)}" if found else None,
    )


def _checkpoints_among(folder: Path, names: Sequence[str]) -> list[str]:
    """Return the paths of a few files of a folder that are checkpoints, for a hint."""
    paths = (folder / name for name in names[:100])
    return [str(path) for path in islice(filter(_is_checkpoint, paths), 4)]


def _is_checkpoint(path: Path) -> bool:
    try:
        return path.is_file() and bool(detect_format(path))
    except (OSError, CheckpointError):
        return False


def _is_artefact(manifest: Path) -> bool:
    try:
        with closing(SourceFile(manifest)) as file:
            return b'"plan_digest"' in bytes(file.read(0, min(file.size, _SEARCHED)))
    except CheckpointError:
        return False


def _format_of_content(file: SourceFile, start: bytes) -> str | None:
    if start.startswith(_HDF5):
        return "hdf5"
    if start.startswith(b"PK"):
        return _format_of_zip(file)
    if start.startswith(LEGACY_TORCH) or begins_as_pickle(file, start):
        return "torch"
    if _is_tar(start) and is_torch_tar(file):
        return "torch"
    if looks_like_header(start[:9]):
        return "safetensors"
    if _is_shard_index(file, start):
        return _format_of_shards(file)
    if begins_as_tar(start):
        return "allennlp-archive"
    # Last, and not for a tar archive: one of a single HDF5 file has the signature at byte 512.
    return "hdf5" if not _is_tar(start) and _has_user_block(file) else None


def _is_tar(start: bytes) -> bool:
    return start[257:262] == b"ustar"


def _has_user_block(file: SourceFile) -> bool:
    """Look for HDF5's signature at 512, 1024, 2048 ...: bytes of any kind may come before it."""
    offset = 512
    while offset + len(_HDF5) <= file.size:
        if bytes(file.read(offset, len(_HDF5))) == _HDF5:
            return True
        offset *= 2
    return False


def begins_as_pickle(file: SourceFile, start: bytes) -> bool:
    """Tell whether a file is taken for a pickle, whatever else it is."""
    if start[:1] == b"\x80" and start[1:2] in {b"\2", b"\3", b"\4", b"\5"}:
        return True
    # Protocols 0 and 1 have no header. They begin with a mark, an empty list or dict, or a global,
    # and the last byte of every pickle is STOP.
    return start[:1] in {b"(", b"]", b"}", b"c"} and bytes(file.read(file.size - 1, 1)) == b"."


def _is_shard_index(file: SourceFile, start: bytes) -> bool:
    if not start.lstrip().startswith(b"{"):
        return False
    return b'"weight_map"' in bytes(file.read(0, min(file.size, _SEARCHED)))


def _format_of_shards(index: SourceFile) -> str:
    """Return the format of the shards, by the content of the first one."""
    first = next(iter(read_index(index).shard_paths().values()))
    with closing(SourceFile(first)) as shard:
        start = bytes(shard.read(0, min(shard.size, _START)))
        is_torch = start.startswith((b"PK", LEGACY_TORCH)) or begins_as_pickle(shard, start)
    # what is neither is left to the reader of safetensors, which says what is wrong with it
    return "torch-shards" if is_torch else "safetensors"


def _format_of_zip(file: SourceFile) -> str:
    """Return ``"torch"`` for an archive with torch's pickle, ``"keras"`` for one of Keras."""
    path = file.path
    check_number_of_entries(file)
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        raise CorruptCheckpointError(
            f"begins as a zip archive and can't be read as one: {error}",
            path=path,
            hint="a torch or Keras file that was cut short looks like this: get it again",
        ) from error
    if any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
        return "torch"
    if "model.weights.h5" in names or {"config.json", "metadata.json"} <= set(names):
        return "keras"
    what, hint = "is a zip archive without a torch pickle", _UNPACK
    if names and all(name.endswith(".npy") for name in names):
        what, hint = "is an npz archive of NumPy arrays", "put them into a state dict"
    if any(name.endswith("/model.json") for name in names) and any("/code/" in n for n in names):
        what = "is a TorchScript archive of torch 1.0 to 1.2"
        hint = "torch.jit.load and torch.jit.save it with a later torch, where you trust it"
    raise UnknownFormatError(what, path=path, hint=hint)


def _unknown(path: Path, start: bytes) -> UnknownFormatError:
    """Return the error for a file of no known format, as precise as its first bytes allow."""
    for magic, what, hint in _KNOWN_STARTS:
        if start.startswith(magic):
            return UnknownFormatError(what, path=path, hint=hint)
    text = start.lstrip().lower()
    if text.startswith(_HTML):
        hint = "a download page or an error was saved in its place: get the file itself"
        return UnknownFormatError("is a web page", path=path, hint=hint)
    if text.startswith((b"{", b"[")):
        hint = "give the .hdf5 file that these options belong to" if b'"lstm"' in text else None
        return UnknownFormatError("is JSON text, not a checkpoint", path=path, hint=hint)
    return UnknownFormatError(
        f"is of no known format: it begins with {start[:12]!r}",
        path=path,
        hint="known are HDF5, Keras, safetensors, AllenNLP's archives and what torch.save writes",
    )
