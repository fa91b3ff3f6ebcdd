"""Checkpoints in a store: which files are one, what tells its states apart, fetching it.

A store is asked for no more than the reader would look at on a disk: a file and the few beside it
that are carried along, an index and its shards, or the folder of a model.
"""

import shutil
import tempfile
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final

from ckptshrink.digest import value_sha256
from ckptshrink.errors import (
    CheckpointError,
    MissingError,
    TransientError,
    UnknownFormatError,
    UnsafeCheckpointError,
    printable,
)
from ckptshrink.io.files import SourceFile
from ckptshrink.io.hdf5_file import options_names
from ckptshrink.io.model_folder import (
    BIN_INDEX_SUFFIX,
    BIN_NAME,
    CONFIG,
    MAX_ENTRIES,
    MAX_SIDECAR,
    is_carried,
)
from ckptshrink.io.safetensors_header import INDEX_SUFFIX, SINGLE_NAME
from ckptshrink.io.safetensors_index import read_index
from ckptshrink.io.staging import MANIFEST
from ckptshrink.zoo.stores import Entry, FarFolder, hint_of
from ckptshrink.zoo.urls import is_plain, path_of, shown

MISSING: Final = "missing"
"""Identity of a source that is not there."""

_INDEX: Final = ".json"

_WEIGHTS: Final = (".safetensors", ".bin")

_ALONE: Final = (
    ".safetensors", ".bin", ".pt", ".pth", ".th", ".pkl", ".pickle", ".keras", ".gz", ".tgz",
    ".tar", ".ckpt", ".model",
)  # fmt: skip
"""Suffixes of files beside which no options of an ELMo are looked for: these are no HDF5."""

_USUAL: Final = (
    CONFIG, "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "tokenizer.model", "spiece.model",
)  # fmt: skip
"""What is asked for by name where a folder can't be listed, as over HTTP."""

_SPARE: Final = 64 << 20
"""Bytes that are left free on the disk of temporary files."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What there is of a source, from listings.

    Attributes
    ----------
    place : FarFolder
        What the URL leads to.
    store : FarFolder
        The folder that the files are in: the same, of a folder.
    weights : Entry
        The file that stands for all of them.
    is_folder : bool
        Whether the whole folder is the checkpoint.
    beside : tuple of Entry
        What is carried along.
    others : tuple of Entry
        What lies in the folder beside these, which a reader names as left out.
    known : tuple of Entry
        Everything that its identity is made of.
    """

    place: FarFolder
    store: FarFolder
    weights: Entry
    is_folder: bool = False
    beside: tuple[Entry, ...] = ()
    others: tuple[Entry, ...] = ()
    known: tuple[Entry, ...] = ()

    @property
    def home(self) -> str:
        """Return the name of the folder that the files are in, on this machine too."""
        path = PurePosixPath(path_of(self.place.url))
        name = path.name if self.is_folder else path.parent.name
        return name if is_plain(name) else "source"

    @property
    def identity(self) -> str:
        """Return what is another text once a file is; empty where the store does not tell."""
        if not all(entry.marks for entry in self.known):
            return ""
        found = [[e.name, e.nbytes, [list(mark) for mark in e.marks]] for e in self.known]
        return value_sha256(sorted(found))

    @property
    def nbytes(self) -> int:
        """Return the bytes of everything that may be fetched."""
        return sum(entry.nbytes or 0 for entry in self.known)

    @property
    def _is_index(self) -> bool:
        return self.weights.name.endswith(_INDEX)


def survey(url: str) -> Survey:
    """Look at a source in its store; nothing of it is read.

    Raises
    ------
    MissingError
        It is not there.
    CheckpointError
        It may not be read, or it is a folder without a model's weights.
    TransientError
        The store does not answer.
    """
    place = FarFolder(url)
    found = place.entry()
    if found is None:
        raise MissingError("there is no such file or folder", path=shown(url), hint=hint_of(url))
    name = PurePosixPath(path_of(url)).name
    if not is_plain(name):
        raise CheckpointError("leads to no name that a file can have", path=shown(url))
    if found.is_folder:
        return _of_folder(place)
    weights = Entry(name, False, found.nbytes, found.marks)
    where, _, _ = path_of(url).rpartition("/")
    if not where:
        return Survey(place, place, weights, known=(weights,))
    folder = FarFolder(f"{url[: url.index(path_of(url))]}{where}")
    if name.endswith(_INDEX):
        return _of_index(place, folder, weights)
    if name in {SINGLE_NAME, BIN_NAME}:
        return _of_model(place, folder, weights)
    beside = (
        () if name.endswith(_ALONE) else _named(folder, options_names(PurePosixPath(name).stem))
    )
    return Survey(place, folder, weights, beside=beside, known=(weights, *beside))


def fetch(found: Survey, room: Path) -> Path:
    """Bring a source to this machine.

    Parameters
    ----------
    room : Path
        An empty folder; nothing is written outside of it, whatever the store says.

    Returns
    -------
    Path
        The file or folder, under its own name.

    Raises
    ------
    CheckpointError
        A file is missing, or the index names one that can't be.
    TransientError
        The store does not answer, or the disk here is full.
    """
    small = [e for e in found.beside if e.nbytes is None or e.nbytes <= MAX_SIDECAR]
    _refuse_links([*small, *([found.weights] if found.is_folder else [])], found.store)
    _check_space([found.weights, *small], found.store, room)
    folder = room / found.home  # a reader may tell what it is called
    folder.mkdir()
    store, weights = found.store, found.weights
    # by the URL as it was given, whose query may be what opens it
    itself = "" if not found.is_folder else weights.name
    found.place.fetch(itself, folder / weights.name, weights.nbytes)
    for entry in found.beside:
        if entry not in small and entry.nbytes is not None:
            with (folder / entry.name).open("wb") as file:  # by its size the reader leaves it out
                file.truncate(entry.nbytes)
        else:
            store.fetch(entry.name, folder / entry.name, entry.nbytes)
    if found._is_index:
        _fetch_shards(found, folder)
    for entry in found.others:
        if not (folder / entry.name).exists():
            # so that it is named as left out, as of a folder on a disk; nothing can be read of it
            (folder / entry.name).mkdir()
    return folder if found.is_folder else folder / weights.name


def _of_folder(store: FarFolder) -> Survey:
    """Return the survey of a model's folder, of which transformers' choice of weights is ours."""
    entries = _listed(store)
    names = {entry.name: entry for entry in entries if not entry.is_folder}
    for single, suffix in ((SINGLE_NAME, INDEX_SUFFIX), (BIN_NAME, BIN_INDEX_SUFFIX)):
        if single in names:
            return _with_folder(Survey(store, store, names[single], True), entries)
        found = sorted(each for each in names if each.endswith(suffix))
        if len(found) > 1:
            raise UnknownFormatError(
                f"is a folder with {len(found)} files *{suffix} and no {single}",
                path=store.shown(),
                hint=f"name one of: {', '.join(map(printable, found[:8]))}",
            )
        if found:
            return _with_folder(Survey(store, store, names[found[0]], True), entries)
    weights = [n for n in sorted(names) if not is_carried(n) and not n.startswith(".")]
    raise UnknownFormatError(
        "is a folder without a model's weights",
        path=store.shown(),
        hint=f"name the file: {', '.join(map(printable, weights[:4]))}" if weights else None,
    )


def _of_index(place: FarFolder, store: FarFolder, index: Entry) -> Survey:
    """Return the survey of an index that was named: all of its folder is the model."""
    try:
        entries = _listed(store)
    except CheckpointError:
        entries = []
    if not any(entry.name == index.name for entry in entries):
        beside = _named(store, _USUAL)
        shards = Entry("", False, None, ())  # not known yet, so that nothing tells their states
        return Survey(place, store, index, beside=beside, known=(index, *beside, shards))
    return _with_folder(Survey(place, store, index), entries)


def _of_model(place: FarFolder, store: FarFolder, weights: Entry) -> Survey:
    """Return the survey of ``model.safetensors``, which has a folder about it or is alone."""
    try:
        entries = _listed(store)
    except CheckpointError:
        entries = []
    if not any(entry.name == weights.name for entry in entries):
        beside = _named(store, _USUAL)
        return Survey(place, store, weights, beside=beside, known=(weights, *beside))
    if not any(entry.name == CONFIG for entry in entries):
        return Survey(place, store, weights, known=(weights,))
    return _with_folder(Survey(place, store, weights), entries)


def _with_folder(found: Survey, entries: list[Entry]) -> Survey:
    """Return a survey with what lies in the folder."""
    store, weights = found.store, _marked(found.store, found.weights)
    files = [e for e in entries if e.name != weights.name and not e.is_folder]
    # by a manifest the reader knows what we made of a model, and is no checkpoint
    beside = tuple(e for e in files if is_carried(e.name) or e.name == MANIFEST)
    others = tuple(
        e for e in entries if e not in beside and e.name != weights.name and e.name[:1] != "."
    )
    beside = tuple(_marked(store, e) for e in beside)
    known = [weights, *beside]
    if found._is_index:
        # which of them are its shards is known once it is read; more than these does no harm
        deep = list(store.tree().values()) if any(e.is_folder for e in others) else files
        shards = [e for e in deep if e.name.endswith(_WEIGHTS) and not is_carried(e.name)]
        known += [_marked(store, e) for e in shards if e.name != weights.name]
    return replace(found, weights=weights, beside=beside, others=others, known=tuple(known))


def _fetch_shards(found: Survey, folder: Path) -> None:
    """Fetch what an index names. Its reader checks the names; those that lead out are refused."""
    path = folder / found.weights.name
    with closing(SourceFile(path)) as file:
        try:
            index = read_index(file)
        except UnknownFormatError:  # another JSON file: what it is, is for the reader to say
            return
    shards = {name: to for name, to in index.shard_paths().items() if not to.exists()}
    there = [entry for entry in found.known if entry.name in shards]
    _refuse_links(there, found.store)
    _check_space(there, found.store, folder)
    sizes = {entry.name: entry.nbytes for entry in found.known}
    for name, shard in shards.items():
        shard.parent.mkdir(parents=True, exist_ok=True)
        try:
            found.store.fetch(name, shard, sizes.get(name))
        except MissingError as error:
            raise CheckpointError(
                f"names the shard {name!r:.200}, which is not there", path=path
            ) from error


def _named(store: FarFolder, names: Iterable[str]) -> tuple[Entry, ...]:
    """Return those of some files that are there."""
    found = []
    for name in names:
        try:
            entry = store.entry(name)
        except CheckpointError:  # a store that refuses to say
            continue
        if entry is not None and not entry.is_folder:
            found.append(entry)
    return tuple(found)


def _marked(store: FarFolder, entry: Entry) -> Entry:
    """Return what the store says of a file when asked for it, if its listing has names alone."""
    if entry.marks:
        return entry
    return store.entry(entry.name) or entry


def _listed(store: FarFolder) -> list[Entry]:
    entries = store.entries()
    if len(entries) > MAX_ENTRIES:
        raise UnknownFormatError(
            f"is a folder of more than {MAX_ENTRIES:,} entries, no model's",
            path=store.shown(),
            hint="name the file",
        )
    return [entry for entry in entries if is_plain(entry.name)]


def _refuse_links(files: Iterable[Entry], store: FarFolder) -> None:
    """Refuse a link that nobody named: it may lead to a file that is none of the model's."""
    for entry in files:
        if entry.is_link:
            raise UnsafeCheckpointError(
                "is a link, and those of a store are not followed",
                path=store.shown(entry.name),
                hint="a folder of this machine can be named by its path",
            )


def _check_space(files: Iterable[Entry], store: FarFolder, room: Path) -> None:
    """Refuse what the disk here has no room for, before it is full and others fail too."""
    free = shutil.disk_usage(room).free
    needed = sum(entry.nbytes or 0 for entry in files)
    if needed + _SPARE > free:
        raise TransientError(
            f"takes {needed:,} bytes here, and {tempfile.gettempdir()} has {free:,} free",
            path=store.shown(),
            hint="have TMPDIR name a folder on a larger disk",
        )
