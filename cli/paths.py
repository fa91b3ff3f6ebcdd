"""Paths as a user writes them: where output goes by default, and how a path is typed in a shell."""

import os
import shlex
from pathlib import Path
from typing import Final

from ckptshrink.errors import OutputError

_INDEX: Final = ".safetensors.index.json"


def default_out(source: Path, *, dense: bool) -> Path:
    """Return where a smaller checkpoint is written if nothing says where: beside its source.

    Examples
    --------
    >>> str(default_out(Path("zoo/elmo.hdf5"), dense=False))
    'zoo/elmo.shrunk'
    >>> str(default_out(Path("zoo/elmo.hdf5"), dense=True))
    'zoo/elmo.shrunk.hdf5'
    """
    if source.name in {"", ".."}:  # the current folder, or the one above
        source = source.resolve()
    if source.name.endswith(_INDEX):
        stem, suffix = source.name.removesuffix(_INDEX), ""
    elif source.is_dir():
        stem, suffix = source.name, ""
    else:
        stem, suffix = source.stem, source.suffix
    return source.with_name(f"{stem}.shrunk{suffix if dense else ''}")


def shell(path: str | os.PathLike[str]) -> str:
    """Return a path as it is typed in a shell, whatever characters it has.

    Examples
    --------
    >>> shell("a b.pt"), shell("-rf.pt")
    ("'a b.pt'", './-rf.pt')
    """
    text = os.fspath(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def nbytes_on_disk(path: Path) -> int:
    """Return the bytes of a file, or of every file in a folder.

    Raises
    ------
    OutputError
        What was written is gone, or can't be read.
    """
    try:
        if not path.is_dir():
            return path.stat().st_size
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    except OSError as error:
        raise OutputError(f"was written, and can't be read: {error.strerror}", path=path) from error
