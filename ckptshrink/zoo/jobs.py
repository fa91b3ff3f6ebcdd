"""Which checkpoints a zoo file is about: globs spread out, names in the output, shards."""

import difflib
import fnmatch
import glob
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from ckptshrink.errors import CkptshrinkError, NothingMatchedError, PlanError, printable
from ckptshrink.zoo import remote
from ckptshrink.zoo.recipes import Work, work_of
from ckptshrink.zoo.settings import Model, Zoo, merged

REPORTS: Final = "reports"
"""Folder of the output in which there is one for each model: its record, log, scores, report."""

SHRUNK: Final = ".shrunk"
"""What is added to the name of a checkpoint to make that of its artefact."""

_SHARD: Final = re.compile(r"(.+)-\d{5}-of-\d{5}\.(safetensors|bin)")


@dataclass(frozen=True, slots=True)
class Job:
    """One checkpoint of a zoo, and what is done with it.

    Attributes
    ----------
    name : str
        Its place in the zoo, with ``/`` between folders; that of its artefact is the same and
        `SHRUNK`.
    source : str
        A path, or a URL.
    work : Work
    entry : int
        Which ``[[model]]`` of the zoo file it is of, from 0.
    """

    name: str
    source: str = field(repr=False)  # a URL can have a password in it
    work: Work
    entry: int = 0

    @property
    def artefact(self) -> str:
        """Return the place of the artefact in the output."""
        return self.name + SHRUNK

    @property
    def reports(self) -> str:
        """Return the place in the output of everything that is said about the model."""
        return f"{REPORTS}/{self.name}"

    @property
    def shown(self) -> str:
        """Return the name as a text that any file and terminal can hold."""
        return printable(self.name.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))


def jobs_of(zoo: Zoo, folder: Path, out: str) -> list[Job]:
    """Return every job of a zoo file, in order of their names.

    Of several entries that match a checkpoint the last one holds; entries with another ``into``
    put theirs beside it.

    Parameters
    ----------
    folder : Path
        Of the zoo file.
    out : str
        The output, of which nothing is taken for an input.

    Raises
    ------
    NothingMatchedError
        A glob that matches nothing: all of them at once.
    PlanError
        Something in an entry can't be, or two checkpoints would be put in one place.
    """
    found: dict[str, Job] = {}
    empty: list[str] = []
    for number, model in enumerate(zoo.model):
        try:
            work = work_of(merged(zoo.defaults, model), folder)
        except CkptshrinkError as error:
            place = f"[[model]] {number + 1}: "
            raise PlanError(place + error.message, hint=error.hint) from error
        for pattern in model.path:
            sources = list(_sources(pattern, model, folder, out))
            if not sources:
                empty.append(pattern)
            for source in sources:
                job = Job(_name(source, model, folder), source, work, number)
                other = found.get(job.name)
                if other is not None and other.source != source:
                    one, two = map(remote.shown, (other.source, source))
                    raise PlanError(
                        f"{one} and {two} would both be put at {job.shown}",
                        hint='give one of their [[model]] tables an into = "FOLDER"',
                    )
                found[job.name] = job
    if empty:
        named = ", ".join(repr(remote.shown(pattern)) for pattern in empty)
        raise NothingMatchedError(
            f"{named} {'matches' if len(empty) == 1 else 'match'} nothing",
            hint=_hint(empty, folder),
        )
    _check_places(found)
    return [found[name] for name in sorted(found)]


def in_shard(jobs: Iterable[Job], shard: int, shards: int) -> Iterator[Job]:
    """Yield the jobs of one shard; a job is in the same one whatever other jobs there are.

    Parameters
    ----------
    shard : int
        From 1 to `shards`.
    """
    for job in jobs:
        digest = hashlib.sha256(os.fsencode(job.name)).digest()
        if int.from_bytes(digest[:8], "big") % shards == shard - 1:
            yield job


def matching(jobs: Sequence[Job], patterns: Sequence[str]) -> list[Job]:
    """Return the jobs whose names match one of several globs.

    Raises
    ------
    NothingMatchedError
        One of them matches none.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        names = {j.name for j in jobs if j.name == pattern or fnmatch.fnmatchcase(j.name, pattern)}
        if not names:
            close = difflib.get_close_matches(pattern, [job.name for job in jobs], n=1)
            raise NothingMatchedError(
                f"no model is called {pattern!r}",
                hint=f"did you mean {close[0]!r}?" if close else f"there are {len(jobs)} models",
            )
        chosen |= names
    return [job for job in jobs if job.name in chosen]


def _sources(pattern: str, model: Model, folder: Path, out: str) -> Iterator[str]:
    """Yield the checkpoints of one pattern, each once."""
    if remote.is_url(pattern):
        found = remote.matching(pattern)
    elif glob.has_magic(pattern) and not (folder / pattern).exists():
        found = _glob(pattern, folder)
    else:
        yield os.path.normpath(folder / pattern)  # named outright: if it is gone, that is said
        return
    far = remote.is_url(out)
    ours = None if far else os.path.realpath(out)
    seen: set[str] = set()
    for source in found:
        name = source.rsplit("/", 1)[-1]
        if any(fnmatch.fnmatch(name, g) or fnmatch.fnmatch(source, g) for g in model.exclude or ()):
            continue
        if far and remote.is_url(source) and remote.is_below(source, out):
            continue
        if ours is not None and os.path.realpath(source).startswith(ours + os.sep):
            continue
        whole = source if remote.is_url(source) else _index_of(source)
        if whole not in seen:
            seen.add(whole)
            yield whole


def _glob(pattern: str, folder: Path) -> list[str]:
    """Return the files that a glob finds; folders where it ends in a slash."""
    folders = pattern.endswith("/")
    # the folder is no pattern, whatever it is called
    whole = str(Path(glob.escape(str(folder))) / pattern) + ("/" if folders else "")
    # not Path.glob, which takes no absolute pattern and stops at a folder that can't be read
    found = map(Path, glob.iglob(whole, recursive=True))  # noqa: PTH207
    return sorted({str(each) for each in found if (each.is_dir() if folders else each.is_file())})


def _index_of(source: str) -> str:
    """Return the index of a shard, if it lies beside it: a model is one job, not many."""
    path = Path(source)
    shard = _SHARD.fullmatch(path.name)
    if shard is None:
        return source
    index = path.with_name(f"{shard[1]}.{shard[2]}.index.json")
    return str(index) if index.is_file() else source


def _name(source: str, model: Model, folder: Path) -> str:
    """Return a checkpoint's place: from the folder of the zoo file, or else its whole path."""
    if remote.is_url(source):
        path = remote.path_of(source)
    else:
        root, whole = folder.absolute(), Path(source).absolute()
        inside = root in whole.parents
        path = root.name if whole == root else str(whole.relative_to(root) if inside else whole)
    parts = [part for part in PurePosixPath(path).parts if part not in {"/", ".", ".."}]
    return "/".join([*PurePosixPath(model.into or "").parts, *parts])


def _check_places(jobs: dict[str, Job]) -> None:
    """Refuse an artefact that would lie in another one, or in the reports."""
    artefacts = {job.artefact for job in jobs.values()}
    for job in jobs.values():
        for place in (job.artefact, job.reports):
            for parent in map(str, PurePosixPath(place).parents):
                if parent in artefacts:
                    raise PlanError(
                        f"{job.shown} would be put into {printable(parent)}, an artefact",
                        hint='exclude one of the two, or give its table an into = "FOLDER"',
                    )
        if job.reports in artefacts:
            raise PlanError(f"{job.shown}: an artefact would take the place of its reports")


def _hint(patterns: Sequence[str], folder: Path) -> str:
    first = patterns[0]
    if remote.is_url(first):
        return "is it there, and may you read it?"
    head = first.split("*")[0].split("?")[0].split("[")[0].rpartition("/")[0]
    place = folder / head
    if not place.is_dir():
        return f"there is no folder {place}"
    return "** is any number of folders, * any name in one of them; folders need a / at the end"
