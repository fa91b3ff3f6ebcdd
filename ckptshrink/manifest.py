"""The manifest of an artefact: what it was made from, how, what became of every tensor.

`manifest.json` is the canonical indented form of `Manifest`, so that any changed byte of it shows;
`manifest_sha256` in it covers the rest of it, and `files` every other file. No clock, host name or
path is in it: the same input, plan and seed give the same bytes.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError

from ckptshrink.digest import value_sha256
from ckptshrink.errors import ManifestMismatchError
from ckptshrink.io.staging import MANIFEST
from ckptshrink.plan import Action, Frozen, Grouping, Settings, issues_of
from ckptshrink.version import __version__

MANIFEST_SCHEMA_VERSION: Final = 1
_MAX_BYTES: Final = 1 << 30


class FileRecord(Frozen):
    """A file of the artefact, or of the source."""

    path: str
    nbytes: int
    sha256: str


class Source(Frozen):
    """The checkpoint that was compressed. `sha256` covers its files in the order of `files`."""

    file: str
    format: str
    family: str
    nbytes: int
    sha256: str
    files: tuple[FileRecord, ...]
    sidecars: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class PartRecord(Frozen):
    """Which rows (axis 0) or columns (axis 1) of the stored tensor a matrix is."""

    axis: int
    start: int
    stop: int


class LayoutRecord(Frozen):
    """How the gates of a recurrent weight are packed, for whoever runs it."""

    cell: str
    gates: str
    axis: int
    transposed: bool
    joint_input: bool
    forget_bias: float


class TensorRecord(Frozen):
    """What became of one matrix, or of one tensor that is no matrix.

    `name` is ``T``, or ``T.Wh`` where the tensor T packs several matrices; `tensor` is then T and
    `part` its run in T. `rel_error` is ‖W − Ŵ‖ / ‖W‖ in the Frobenius norm, of the values stored.
    `of` is the tensor that a tied or copied one repeats.
    """

    name: str
    tensor: str
    part: PartRecord | None = None
    role: str | None = None
    layer: int | None = None
    direction: str | None = None
    layout: LayoutRecord | None = None
    shape: tuple[int, ...]
    dtype: str
    action: Action
    method: str | None = None
    rank: int | None = None
    grouping: Grouping | None = None
    rel_error: float | None = None
    n_params_before: int
    n_params_after: int
    nbytes_before: int
    nbytes_after: int
    stored_as: tuple[str, ...] = ()
    of: str | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()


class Totals(Frozen):
    """Parameters of the model (tied weights once), and bytes of files on disk.

    `nbytes_before` is the source's files, `nbytes_after` the artefact's `files`.
    """

    n_params_before: int
    n_params_after: int
    nbytes_before: int
    nbytes_after: int


class Tied(Frozen):
    """Two names of one tensor; `name` is restored from `of`."""

    name: str
    of: str


class Tool(Frozen):
    """What made the artefact. `threads` is in it because sums depend on how they are split."""

    name: str
    version: str
    threads: int
    device: str
    libraries: dict[str, str]


class Manifest(Frozen):
    """Everything about an artefact; see docs/format.md."""

    schema_version: Literal[1] = MANIFEST_SCHEMA_VERSION
    source: Source
    plan_digest: str
    settings: Settings
    seed: int
    totals: Totals
    files: tuple[FileRecord, ...]
    tensors: tuple[TensorRecord, ...]
    tied: tuple[Tied, ...] = ()
    container: dict[str, Any] = Field(
        default_factory=dict, description="what restore needs to write the source's container again"
    )
    tool: Tool
    job_key: str = Field(
        "", description="hash of what a batch job was to do, see `job_key_of`; absent of others"
    )
    manifest_sha256: str = Field("", description="of the canonical JSON of all other fields")

    def sealed(self) -> "Manifest":
        """Return the manifest with its own hash filled in."""
        return self.model_copy(update={"manifest_sha256": self.content_sha256()})

    def content_sha256(self) -> str:
        """Return the hash of every field but the hash itself."""
        document = self._document()
        del document["manifest_sha256"]
        return value_sha256(document)

    def to_bytes(self) -> bytes:
        """Return the one text of this manifest."""
        text = json.dumps(self._document(), indent=1, ensure_ascii=False, allow_nan=False)
        return text.encode() + b"\n"

    def _document(self) -> dict[str, Any]:
        # without the field where it is empty: manifests from before it have the same bytes still
        return self.model_dump(mode="json", exclude=None if self.job_key else {"job_key"})


def job_key_of(inputs: Iterable[tuple[str, str]], configuration: str) -> str:
    """Return the key of a batch job: the same for the same input, configuration and version.

    Parameters
    ----------
    inputs : iterable of (str, str)
        Name and SHA-256 of each file that is read, and then of each that is carried along.
    configuration : str
        Hash of everything that was asked for.
    """
    return value_sha256(
        {"configuration": configuration, "inputs": list(map(list, inputs)), "tool": __version__}
    )


def read_manifest(artefact: Path) -> Manifest:
    """Read the manifest of an artefact folder and check it against its own hash.

    Raises
    ------
    ManifestMismatchError
        There is none, it is no manifest this version knows, or a byte of it was changed.
    """
    path = artefact / MANIFEST
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ManifestMismatchError("is too large to be a manifest", path=path)
        data = path.read_bytes()
    except OSError as error:
        raise ManifestMismatchError(
            f"has no readable {MANIFEST} ({error.strerror})",
            path=artefact,
            hint="is it an artefact made by: ckptshrink compress?",
        ) from error
    return manifest_of(data, path)


def manifest_of(data: bytes, path: str | os.PathLike[str]) -> Manifest:
    """Return a manifest from its text, checked against its own hash.

    Parameters
    ----------
    path : path
        What messages call it.

    Raises
    ------
    ManifestMismatchError
        It is no manifest this version knows, or a byte of it was changed.
    """
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        first = issues_of(error)[0]
        raise ManifestMismatchError(
            f"is no manifest of schema version {MANIFEST_SCHEMA_VERSION}: {first}", path=path
        ) from error
    try:
        same = manifest.to_bytes() == data and manifest.manifest_sha256 == manifest.content_sha256()
    except ValueError:  # a NaN or an infinity, which are no JSON and are read all the same
        same = False
    if not same:
        raise ManifestMismatchError("was changed since it was written", path=path)
    return manifest
