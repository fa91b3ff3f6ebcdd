"""Checkpoints and outputs that are URLs, by way of fsspec; ``hf://`` by huggingface_hub.

A job is done with files of this machine, wherever its source and its output are: what it needs is
fetched into a folder of its own, and what it made is sent from there. Local paths never come near
any of that; fsspec is imported with the first URL.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ckptshrink.errors import CkptshrinkError, TransientError
from ckptshrink.zoo.urls import (
    has_glob,
    is_below,
    is_plain,
    is_url,
    path_of,
    shown,
    without_secrets,
)

if TYPE_CHECKING:
    from ckptshrink.zoo.jobs import Job
    from ckptshrink.zoo.sources import Survey
    from ckptshrink.zoo.standing import Hashes, Standing
    from ckptshrink.zoo.stores import FarFolder
    from ckptshrink.zoo.work import Place

__all__ = [
    "Look", "check_output", "fingerprint_of", "is_below", "is_url", "looking", "matching",
    "path_of", "shown", "without_secrets", "workspace",
]  # fmt: skip

_SHARD: Final = re.compile(r"(.+)-\d{5}-of-\d{5}\.(safetensors|bin)")

_MAGIC: Final = re.compile(r"[*?\[]")


def matching(pattern: str) -> list[str]:
    """Return the URLs that a pattern finds, sorted; one that is no glob as it is.

    Shards are replaced by their index. A glob that ends in a slash finds folders.

    Raises
    ------
    PlanError
        No library opens such a URL here; the hint says what to install.
    CkptshrinkError
        The store can't be listed.
    """
    from ckptshrink.zoo.stores import FarFolder, check_scheme

    check_scheme(pattern)
    if not has_glob(pattern):
        return [pattern.rstrip("/")]
    start = _MAGIC.search(pattern, pattern.index("://"))
    assert start is not None  # noqa: S101 - has_glob found it
    head = pattern[: start.start()].rpartition("/")[0]
    folder = FarFolder(head)
    rest = pattern[len(head) + 1 :]
    found = folder.glob(rest.rstrip("/"))
    names = {name for name, is_folder in found if is_folder == rest.endswith("/")}
    return sorted({f"{head}/{name}" for name in _whole(names, folder)})


def check_output(out: str) -> None:
    """Make the folder that everything goes to, or say why nothing can be written there.

    Nothing is written into it; of a store see `FarFolder.check`.

    Raises
    ------
    OutputError
        A folder can't be made or written to; a bucket or repository is not there.
    CkptshrinkError
        The store can't be reached, or no library opens its URL.
    """
    from ckptshrink.zoo.stores import store_of

    store_of(out).check()


def fingerprint_of(source: str) -> Path | str:
    """Return what tells one state of a source from another: its path, or a URL's identity.

    Raises
    ------
    TransientError
        The store does not answer.
    """
    return _looked_at(source)[1] if is_url(source) else Path(source)


@contextmanager
def workspace(job: "Job", out: str, *, fetch: bool = True) -> "Iterator[Place]":
    """Yield the place where a job is done; what is made there is in the output after.

    Parameters
    ----------
    fetch : bool
        Whether the source and what is there of the output are needed.

    Raises
    ------
    TransientError
        A store does not answer, or the disk for temporary files is full.
    CkptshrinkError
        The output can't be read or written. Of a source that can't be read the place has the error,
        since that is the model's fault alone.
    """
    from ckptshrink.zoo.work import Place

    if not is_url(job.source) and not is_url(out):
        root = Path(out)
        yield Place(Path(job.source), root / job.artefact, root / job.reports)
        return

    from ckptshrink.zoo.scratch import scratch_folder

    with scratch_folder() as room:
        source, identity, error = Path(job.source), "", None
        names: tuple[tuple[str, str], ...] = ()
        if is_url(job.source):
            source = room / "source"
            if fetch:
                source, identity, error = _fetched(job.source, source)
            names = ((str(source), shown(job.source)),)
        if not is_url(out):
            root = Path(out)
            yield Place(
                source, root / job.artefact, root / job.reports, identity, names, error
            )  # fmt: skip
            return

        from ckptshrink.zoo.publishing import FarOutput
        from ckptshrink.zoo.stores import FarFolder

        output, root = FarOutput(FarFolder(out), job), room / "out"
        artefact, reports = root / job.artefact, root / job.reports
        if fetch:
            record = output.fetch_reports(reports)
            manifest = None if error is not None else output.manifest(source, record)
            if manifest is not None:
                output.fetch_artefact(manifest, artefact)
        names += ((str(root), shown(out).rstrip("/")), (str(room), "..."))
        yield Place(source, artefact, reports, identity, names, error)
        output.send(artefact, reports)


@dataclass(frozen=True, slots=True)
class Look:
    """What is seen of a job without doing anything.

    Attributes
    ----------
    standing : Standing
    source : Path or None
        Where the source is on this machine; None of a URL.
    nbytes : int
        Of a source that is a URL, as far as its store says.
    """

    standing: "Standing"
    source: Path | None
    nbytes: int = 0


@contextmanager
def looking(job: "Job", out: str, hashes: "Hashes") -> "Iterator[Look]":
    """Yield how far a job is, read from its source and the output wherever they are.

    Nothing is fetched but records and manifests. A store that fails is no error here: then nothing
    is known of the job, and whoever does it meets the same, and tries again.
    """
    from ckptshrink.zoo.standing import Standing, standing_of

    root, source = Path(out), Path(job.source)
    if not is_url(job.source) and not is_url(out):
        look = Look(
            standing_of(job, source, root / job.artefact, root / job.reports, hashes), source
        )
    else:
        near = None if is_url(job.source) else source
        try:
            look = _far_look(job, out, hashes)
        except (CkptshrinkError, OSError):
            look = Look(Standing(None, None), near)
    yield look


def _far_look(job: "Job", out: str, hashes: "Hashes") -> Look:
    from ckptshrink.zoo.standing import Standing, standing_of, standing_with

    near, nbytes = Path(job.source), 0
    source: Path | str = near
    if is_url(job.source):
        survey, source = _looked_at(job.source)
        nbytes = 0 if survey is None else survey.nbytes
    if not is_url(out):
        root = Path(out)
        standing = standing_of(job, source, root / job.artefact, root / job.reports, hashes)
    else:
        from ckptshrink.zoo.publishing import FarOutput
        from ckptshrink.zoo.stores import FarFolder

        output = FarOutput(FarFolder(out), job)
        record, _ = output.record()
        if record is None:  # never finished, whatever else is there
            standing = Standing(None, None)
        else:
            manifest = output.manifest(source, record)
            there = output.documents() if record.tasks else frozenset()
            standing = standing_with(
                job,
                manifest,
                record,
                lambda scored: scored.documents.keys() <= there,
                source,
                hashes,
            )
    return Look(standing, None if is_url(job.source) else near, nbytes)


def _looked_at(url: str) -> "tuple[Survey | None, str]":
    """Return what there is of a source and its identity; a word of its own for what can't be read.

    Raises
    ------
    TransientError
        The store does not answer.
    """
    from ckptshrink.zoo.sources import MISSING, survey

    try:
        found = survey(url)
    except TransientError:
        raise
    except CkptshrinkError:
        return None, MISSING
    return found, found.identity


def _fetched(url: str, room: Path) -> tuple[Path, str, CkptshrinkError | None]:
    """Return where a source is on this machine, its identity, and why it is not there.

    The identity is taken before: should the source change meanwhile, the next run sees that.
    """
    from ckptshrink.zoo.sources import MISSING, fetch, survey

    room.mkdir()
    identity = MISSING
    try:
        found = survey(url)
        identity = found.identity
        return fetch(found, room), identity, None
    except TransientError:
        raise
    except CkptshrinkError as error:
        name = path_of(url).rpartition("/")[2]
        return room / (name if is_plain(name) else "source"), identity, error


def _whole(names: set[str], folder: "FarFolder") -> Iterator[str]:
    """Yield the names with the index of each shard that has one in its place."""
    known: dict[str, bool] = {}
    for name in names:
        shard = _SHARD.fullmatch(name)
        index = "" if shard is None else f"{shard[1]}.{shard[2]}.index.json"
        if index and index not in known:
            known[index] = index in names or folder.has(index)
        yield index if known.get(index) else name
