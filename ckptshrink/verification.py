"""Prove an artefact: its bytes, its tensors, and against its source every error."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ckptshrink.digest import file_sha256
from ckptshrink.errors import CkptshrinkError, ManifestMismatchError
from ckptshrink.events import Listener, Progress, silent
from ckptshrink.io.safetensors_file import open_safetensors
from ckptshrink.io.staging import MANIFEST
from ckptshrink.manifest import Manifest, TensorRecord, read_manifest
from ckptshrink.tensors import TensorRef


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found.

    Attributes
    ----------
    manifest : Manifest
    differences : tuple of str
        One line each; empty when the artefact is what its manifest says.
    n_files, n_tensors : int
        How many were checked.
    worst : tuple of (str, float) or None
        The row with the largest recomputed error; None without a source.
    """

    manifest: Manifest
    differences: tuple[str, ...]
    n_files: int
    n_tensors: int
    worst: tuple[str, float] | None = None

    @property
    def passed(self) -> bool:
        """Whether there is no difference."""
        return not self.differences


def verify(
    artefact: Path,
    *,
    source: Path | None = None,
    listen: Listener = silent,
) -> Verification:
    """Re-hash and re-read an artefact; with its source, recompute the error of every tensor.

    Parameters
    ----------
    artefact : Path
        The folder.
    source : Path, optional
        The checkpoint it was made from. Without it nothing is computed and torch is not imported.

    Raises
    ------
    ManifestMismatchError
        There is no manifest to hold the files to, or it was changed itself.
    CheckpointError
        The source can't be read.
    """
    manifest = read_manifest(artefact)
    differences = [*_files(artefact, manifest, listen)]
    if not differences:
        differences += _tensors(artefact, manifest)
    worst = None
    if source is not None and not differences:
        from ckptshrink.recompute import recompute  # computes, so it needs torch

        found, worst = recompute(artefact, manifest, source, listen)
        differences += found
    return Verification(
        manifest, tuple(differences), len(manifest.files), len(manifest.tensors), worst
    )


def _files(artefact: Path, manifest: Manifest, listen: Listener) -> list[str]:
    """Return what is wrong with the files: missing, unlisted, of another size or hash."""
    found = []
    listed = {record.path for record in manifest.files} | {MANIFEST}
    listed |= {parent.as_posix() for name in listed for parent in PurePosixPath(name).parents}
    for path in sorted(artefact.rglob("*")):
        name = path.relative_to(artefact).as_posix()
        if path.is_symlink() or name not in listed:
            found.append(f"{name}: is not listed in the manifest")
    total = sum(record.nbytes for record in manifest.files)
    done = 0
    for record in manifest.files:
        path = artefact / record.path
        listen(Progress(record.path, done, total))
        inside = PurePosixPath(record.path)
        if inside.is_absolute() or ".." in inside.parts or not path.is_file():
            found.append(f"{record.path}: is missing")
        elif path.stat().st_size != record.nbytes:
            found.append(f"{record.path}: has {path.stat().st_size} bytes, not {record.nbytes}")
        elif file_sha256(path) != record.sha256:
            found.append(f"{record.path}: its content was changed")
        done += record.nbytes
    return found


def _tensors(artefact: Path, manifest: Manifest) -> list[str]:
    """Return what is wrong with the tensors: each row's are there, and no others are."""
    try:
        with closing(open_safetensors(artefact)) as reader:
            stored = dict(reader.checkpoint.tensors)
    except CkptshrinkError as error:
        raise ManifestMismatchError(f"its tensors can't be read: {error}", path=artefact) from error
    found = []
    claimed: set[str] = set()
    for row in manifest.tensors:
        found += [
            f"{row.name}: {name} is not stored" for name in row.stored_as if name not in stored
        ]
        claimed.update(row.stored_as)
        found += _shape(row, stored)
    found += [f"{name}: is stored and belongs to no row" for name in stored if name not in claimed]
    return found


def _shape(row: TensorRecord, stored: Mapping[str, TensorRef]) -> list[str]:
    """Return a line if a kept tensor's shape or dtype is not the row's."""
    whole = row.action == "keep" and row.stored_as in {(row.name,), (row.tensor,)}
    if not whole or (row.part is not None and row.stored_as == (row.tensor,)):
        return []
    ref = stored.get(row.stored_as[0])
    if ref is None or (ref.shape, ref.dtype) == (row.shape, row.dtype):
        return []
    return [f"{row.name}: is stored as {ref.dtype} {ref.shape}, not {row.dtype} {row.shape}"]
