"""A model to be evaluated: which file it is, and how large, in parameters and in bytes."""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from ckptshrink.digest import file_sha256, value_sha256
from ckptshrink.errors import CheckpointError, ManifestMismatchError, printable
from ckptshrink.gates import GateMatrix
from ckptshrink.io.files import SourceFile, source_errors
from ckptshrink.io.staging import MANIFEST
from ckptshrink.manifest import FileRecord, read_manifest
from ckptshrink.planning.opened import open_source

Kind = Literal["source", "artefact", "file"]
"""A checkpoint, an artefact, or a file that only the evaluator can read."""

_RECURRENT: Final = frozenset({"Wi", "Wh", "P"})
_BIAS: Final = re.compile(r"(?:^|[._/])(?:bias(?:$|[._])|bias_|B$)|bias$")
_PREFIX: Final = re.compile(r"^(.*[./])?")


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to be evaluated.

    Attributes
    ----------
    path : Path
    name : str
        What tables call it.
    kind : "source", "artefact" or "file"
    sha256 : str
        Of a source as its manifest would give it; of an artefact its manifest's own, which covers
        the hashes of its files; of a folder that has no reader, of its files' names and hashes.
    source_sha256 : str or None
        Of the source that an artefact was made from.
    nbytes : int
        On disk: the checkpoint's files; everything that an artefact is, its manifest too.
    n_params : int or None
        Parameters of the model, tied weights once. None for a file that has no reader.
    n_params_lstm : int or None
        Those of recurrent layers: Wi, Wh, P and their biases. None where there is no such layer.
    """

    path: Path
    name: str
    kind: Kind
    sha256: str
    source_sha256: str | None
    nbytes: int
    n_params: int | None
    n_params_lstm: int | None


def subject_of(path: Path, *, name: str | None = None, any_file: bool = False) -> Subject:
    """Return what is to be known of a model before it is evaluated.

    Parameters
    ----------
    path : Path
        An artefact's folder, or a checkpoint.
    name : str, optional
        What tables call it; by default the name of the file.
    any_file : bool
        Whether a file that has no reader will do, since the evaluator reads it itself.

    Raises
    ------
    CheckpointError, ManifestMismatchError
        It can't be read.
    """
    called = printable(name or path.resolve().name)
    with source_errors(path):
        path.stat()
    if (path / MANIFEST).is_file():
        return _artefact(path, called)
    try:
        return _source(path, called)
    except CheckpointError:
        if not any_file:
            raise
        return _file(path, called)


def _artefact(path: Path, name: str) -> Subject:
    manifest = read_manifest(path)
    for record in manifest.files:
        _check(path, record)
    recurrent = {row.tensor for row in manifest.tensors if row.role in _RECURRENT}
    kept = [row for row in manifest.tensors if row.action in {"factorize", "keep"}]
    cells = recurrent | biases_of(recurrent, (row.tensor for row in kept))
    inside = [row.n_params_after for row in kept if row.tensor in cells]
    return Subject(
        path=path,
        name=name,
        kind="artefact",
        sha256=manifest.manifest_sha256,
        source_sha256=manifest.source.sha256,
        nbytes=manifest.totals.nbytes_after + (path / MANIFEST).stat().st_size,
        n_params=manifest.totals.n_params_after,
        n_params_lstm=sum(inside) if recurrent else None,
    )


def _source(path: Path, name: str) -> Subject:
    reader, recognition = open_source(path)
    try:
        checkpoint = reader.checkpoint
        skipped = {*recognition.dropped, *recognition.copies, *recognition.aliases}
        sizes = {n: math.prod(t.shape) for n, t in checkpoint.tensors.items() if n not in skipped}
        recurrent = {m.source for m in recognition.matrices if _is_recurrent(m)}
        cells = recurrent | biases_of(recurrent, sizes)
        digests = [file_sha256(file) for file in checkpoint.files]
        whole = hashlib.sha256("".join(digests).encode()).hexdigest()
        return Subject(
            path=path,
            name=name,
            kind="source",
            sha256=digests[0] if len(digests) == 1 else whole,
            source_sha256=None,
            nbytes=sum(file.stat().st_size for file in checkpoint.files),
            n_params=sum(sizes.values()),
            n_params_lstm=sum(sizes.get(n, 0) for n in cells) if recurrent else None,
        )
    finally:
        reader.close()


def _file(path: Path, name: str) -> Subject:
    nbytes = 0
    digests: dict[str, str] = {}
    for file in _plain_files(path):
        with closing(SourceFile(file)) as opened:  # a pipe or a device would have no end
            sha = hashlib.sha256()
            for chunk in opened.chunks(0, opened.size):
                sha.update(chunk)
            nbytes += opened.size
        digests[file.relative_to(path).as_posix()] = sha.hexdigest()
    whole = digests["."] if "." in digests else value_sha256(_encodable(digests))
    return Subject(
        path=path,
        name=name,
        kind="file",
        sha256=whole,
        source_sha256=None,
        nbytes=nbytes,
        n_params=None,
        n_params_lstm=None,
    )


def _plain_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    with source_errors(path):
        files = sorted(p for p in path.rglob("*") if p.is_file())
    if not files:
        raise CheckpointError("is a folder without a file", path=path)
    return files


def _encodable(digests: Mapping[str, str]) -> dict[str, str]:
    """Return hashes by names that JSON can hold, since a file's name need not be Unicode."""
    return {name.encode("utf-8", "backslashreplace").decode(): sha for name, sha in digests.items()}


def _check(artefact: Path, record: FileRecord) -> None:
    """Refuse an artefact whose files are not those that its manifest, and so its hash, is about."""
    file = artefact / record.path
    inside = ".." not in Path(record.path).parts and not Path(record.path).is_absolute()
    with source_errors(file):
        whole = inside and file.is_file() and file.stat().st_size == record.nbytes
        same = whole and file_sha256(file) == record.sha256
    if not same:
        raise ManifestMismatchError(
            f"its {printable(record.path)} is not the file that its manifest lists",
            path=artefact,
            hint=f"ckptshrink verify {artefact} says what is wrong",
        )


def biases_of(recurrent: Iterable[str], names: Iterable[str]) -> set[str]:
    """Return the biases among `names` that stand beside a recurrent weight."""
    prefixes = {_prefix(name) for name in recurrent}
    return {name for name in names if _prefix(name) in prefixes and _BIAS.search(name)}


def _prefix(name: str) -> str:
    """Return what stands before a name's last part, without the wrapper of a weight dropout."""
    found = _PREFIX.match(name)
    return found.group().removesuffix("module.") if found else ""


def _is_recurrent(matrix: GateMatrix) -> bool:
    return matrix.role in _RECURRENT
