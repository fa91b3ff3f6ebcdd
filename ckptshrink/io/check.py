"""What is wrong with a file, found without loading it: the library behind ``ckptshrink check``."""

import builtins
import io
import json
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from ckptshrink.errors import (
    CheckpointError,
    TruncatedPickleError,
    UnknownFormatError,
    UnsafeCheckpointError,
    printable,
)
from ckptshrink.io.checkpoint import Checkpoint, Reader
from ckptshrink.io.detect import LEGACY_TORCH, begins_as_pickle, open_checkpoint
from ckptshrink.io.files import SourceFile, source_errors
from ckptshrink.io.pickle_machine import MAX_BYTES
from ckptshrink.io.pickle_records import Token
from ckptshrink.io.pickle_survey import Survey, kind_of, survey
from ckptshrink.io.tar_file import GZIP, TarIndex, TarMember, begins_as_tar
from ckptshrink.io.torch_tar import TarContainer, is_torch_tar, tar_members
from ckptshrink.io.torch_zip import ZipEntry, ZipIndex, check_number_of_entries

Level = Literal["unsafe", "corrupt", "note"]

_MAX_PICKLES: Final = 1000
_MAX_LISTED: Final = 100
_MAX_FILES: Final = 100_000
_HDF5: Final = b"\x89HDF\r\n\x1a\n"
_MAX_TAIL: Final = 66_000
_START: Final = 4096
_WINDOW: Final = 4096
_KERAS_CONFIGS: Final = ("model_config", "training_config")
_KERAS_MODULES: Final = frozenset(
    """keras tf_keras keras_core keras_nlp keras_hub keras_cv keras_tuner tensorflow
    tensorflow_addons tensorflow_hub""".split()  # noqa: SIM905
)
_KERAS_TOOLS: Final = frozenset(
    """get_file enable_unsafe_deserialization load_model load_weights load_img model_from_json
    clone_model save_model deserialize_keras_object func_load read_file write_file py_function
    numpy_function run_script""".split()  # noqa: SIM905
)
"""Functions of Keras and TensorFlow that download, open or run what they are given."""

_SCRIPT: Final = "__torch__."
"""How the classes of a TorchScript program are called, which are of the program and no imports."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check found.

    Attributes
    ----------
    level : str
        ``"unsafe"``: loading it elsewhere could run code or do harm. ``"corrupt"``: it can't be
        read in full. ``"note"``: worth knowing.
    what : str
    where : str
        Entry of an archive, or name of a tensor; empty for the file.
    """

    level: Level
    what: str
    where: str = ""


@dataclass(frozen=True, slots=True)
class Checked:
    """A file and what was found in it.

    Attributes
    ----------
    format : str
        That of the checkpoint, ``"pickle"``, ``"npy"``, ``"tar"``, ``"zip"``, or ``"unknown"``.
    findings : tuple of Finding
    names : mapping of str to str
        Every global that its pickles name, and what kind of name it is.
    """

    path: Path
    format: str
    findings: tuple[Finding, ...]
    names: dict[str, str]

    @property
    def passed(self) -> bool:
        """Whether nothing unsafe or corrupt was found."""
        return all(finding.level == "note" for finding in self.findings)


def files_of(folder: Path) -> Iterator[Path]:
    """Yield the plain files below a folder, sorted; links are not followed.

    Raises
    ------
    CheckpointError
        The folder can't be listed, or has over 100,000 files.
    """
    pending, count = [folder], 0
    while pending:
        here = pending.pop()
        with source_errors(here):
            entries = sorted(here.iterdir(), key=lambda entry: entry.name)
        below = []
        for entry in entries:
            if entry.is_symlink():
                continue
            if entry.is_dir():
                below.append(entry)
            elif entry.is_file():
                count += 1
                if count > _MAX_FILES:
                    raise CheckpointError(f"has over {_MAX_FILES:,} files", path=folder)
                yield entry
        pending += reversed(below)


def check_file(path: Path) -> Checked:
    """Check one file; no payload is kept, and checksums of all are compared.

    Raises
    ------
    CheckpointError
        There is no such file, it is no plain file, or it can't be opened.
    """
    with closing(SourceFile(path)) as file:
        found = _Findings()
        kind = _check_content(file, "", found)
    checkpoint = None if found.broken else _check_as_checkpoint(path, kind, found)
    form = kind if checkpoint is None else checkpoint.format
    for other in checkpoint.files if checkpoint is not None and form == "torch-shards" else ():
        if other != path:  # each is a file of torch.save, with pickles of its own
            with closing(SourceFile(other)) as file:
                _check_content(file, other.name, found)
    if found.programs:
        what = "holds a program (TorchScript), of which loading it can run parts"
        found.add("note" if form == "torchscript" else "unsafe", what, found.programs[0])
    return Checked(path, form, tuple(found.all()), found.names)


def _check_content(file: SourceFile, where: str, found: "_Findings") -> str:
    """Look into a file by what it begins with, and return what that is.

    Parameters
    ----------
    where : str
        What it is in an archive, or in a checkpoint of several files.
    """
    start = bytes(file.read(0, min(file.size, _START)))
    if start.startswith(b"PK"):
        _check_zip(file, where, found)
        return "zip"
    if start.startswith(b"\x93NUMPY"):
        _check_npy(file, 0, file.size, where, found)
        return "npy"
    if begins_as_tar(start) and not begins_as_pickle(file, start):
        _check_tar(file, where, found)
        return "tar"
    if start.startswith(_HDF5) or _is_safetensors(start):
        return "unknown"
    kind = _check_pickles(file, where, found)
    if kind == "pickle":
        _check_second_nature(file, start, where, found)
    return kind


class _Findings:
    """What is found, each thing once, and globals by their name."""

    def __init__(self) -> None:
        self._found: dict[Finding, None] = {}
        self.names: dict[str, str] = {}
        self.programs: list[str] = []
        self.broken = False

    def add(self, level: Level, what: str, where: str = "") -> None:
        self._found.setdefault(Finding(level, printable(what), printable(where[:200])))

    def name(self, name: str, kind: str, where: str) -> None:
        self.names.setdefault(name, kind)
        shown = name[:200]
        if kind == "dangerous":
            self.add("unsafe", f"names {shown}, which a checkpoint has no use for", where)
        elif kind == "unexpected":
            self.add("unsafe", f"names {shown}, which is unknown and would be called", where)
        elif kind == "model class":
            self.add("note", f"loading it in torch imports {shown}, a class of the model", where)

    def fault(self, error: CheckpointError, where: str) -> None:
        """Add why a pickle was given up, at which no other reader has to look."""
        self.broken = True
        self.error(error, where)

    def error(self, error: CheckpointError, where: str = "") -> None:
        """Add what a reader says against a file."""
        unsafe = isinstance(error, UnsafeCheckpointError)
        self.add("unsafe" if unsafe else "corrupt", error.message, where)

    def all(self) -> list[Finding]:
        order = {"unsafe": 0, "corrupt": 1, "note": 2}
        found = sorted(self._found, key=lambda finding: order[finding.level])
        if len(found) > _MAX_LISTED:
            more = len(found) - _MAX_LISTED
            return [*found[:_MAX_LISTED], Finding(found[0].level, f"and {more:,} more")]
        return found


def _is_safetensors(start: bytes) -> bool:
    from ckptshrink.io.safetensors_file import looks_like_header

    return looks_like_header(start[:9])


def _check_as_checkpoint(path: Path, kind: str, found: _Findings) -> Checkpoint | None:
    """Read all of a checkpoint, add what its reader says against it, and return it."""
    try:
        with closing(open_checkpoint(path)) as reader:
            _read_all(reader)
            checkpoint = reader.checkpoint
    except UnknownFormatError as error:
        # A sound pickle of something else is no harm; one that is nearly a checkpoint is.
        if kind in {"unknown", "tar", "zip"} or not (
            kind == "npy" or "not one of" in error.message
        ):
            found.add("corrupt", error.message)
        elif kind != "npy":
            found.add("note", error.message)
        return None
    except CheckpointError as error:
        found.error(error, error.tensor or "")
        return None
    for note in checkpoint.notes:
        level: Level = "unsafe" if "after the last storage" in note else "note"
        found.add(level, note)
    if checkpoint.format in {"hdf5", "keras"}:
        _check_keras(checkpoint.container.get("weights", checkpoint.container), found)
    return checkpoint


def _read_all(reader: Reader) -> None:
    for name in reader.checkpoint.tensors:
        for _ in reader.chunks(name):
            pass


def _check_pickles(file: SourceFile, where: str, found: _Findings) -> str:
    """Survey stacked pickles; ``"unknown"`` if there are none."""
    data = bytes(file.read(0, min(file.size, MAX_BYTES)))
    at, kind = 0, "unknown"
    of_torch = 5 if data.startswith(LEGACY_TORCH) else 1
    for n in range(_MAX_PICKLES):
        if at >= len(data):
            break
        one = survey(data, at)
        if at == 0 and one.fault is not None and (not one.names or _by_chance(one, data)):
            return "unknown"
        if one.fault is None or one.names:
            kind = "pickle"
        for name, what in one.names.items():
            found.name(name, what, where)
        if one.fault is not None:
            # behind the five pickles of a legacy file come its storages, which are no pickles
            if one.names or n < of_torch:
                found.fault(one.fault, where)
            break
        at = one.end
    else:
        found.add("unsafe", f"has over {_MAX_PICKLES:,} pickles in a row", where)
    return kind


def _by_chance(one: Survey, data: bytes) -> bool:
    """Tell whether a text only begins as a pickle does, as a list of labels can.

    ``contradiction`` and a line below it read as the name of a global, and then it breaks off.
    """
    if one.fault is None or one.calls or "dangerous" in one.names.values():
        return False
    try:
        text = str(data[:_START], "utf-8", "ignore" if len(data) > _START else "strict")
    except UnicodeDecodeError:
        return False
    return all(line.isprintable() for line in text.replace("\t", " ").splitlines())


def _check_second_nature(file: SourceFile, start: bytes, where: str, found: _Findings) -> None:
    """Look for a zip directory at the end of what is not a zip file, and a tar header before it."""
    tail = bytes(file.read(max(0, file.size - _MAX_TAIL), min(file.size, _MAX_TAIL)))
    at = tail.rfind(b"PK\x05\x06")
    which = "which of two files it is depends on the reader"
    if at >= 0 and b"PK\x01\x02" in tail[:at]:
        found.add("unsafe", f"is a zip archive too: {which}", where)
    with suppress(tarfile.HeaderError):
        tarfile.TarInfo.frombuf(start[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
        found.add("unsafe", f"is a tar archive too: {which}", where)


def _check_tar(file: SourceFile, where: str, found: _Findings) -> None:
    """Look into a tar archive, which may be packed: torch's first container, or AllenNLP's."""
    if where:
        found.add("unsafe", "is an archive in an archive, which is not looked into", where)
        return
    try:
        if is_torch_tar(file):
            _check_torch_tar(file, found)
            return
        with closing(TarIndex(file.path)) as index:
            if "storages" in index.members:
                # to torch.load, wherever in the archive they are
                found.add("unsafe", "is of torch 0.1 too, which loads other members of it")
            for member in index.members.values():
                if not member.is_folder:
                    _check_member(index, member, found)
    except CheckpointError as error:
        if not found.broken:  # which said so already
            found.error(error)


def _check_member(index: TarIndex, member: TarMember, found: _Findings) -> None:
    with closing(index.open(member)) as file:
        start = bytes(file.read(0, min(file.size, _START)))
        if start.startswith(GZIP) and not begins_as_tar(start):
            found.add("note", "is packed by gzip, which is not looked into", member.name)
            return
        try:
            if start.startswith(_HDF5):  # an ELMo's own weights
                from ckptshrink.io.hdf5_file import open_hdf5_in

                with closing(open_hdf5_in(file)) as reader:
                    _read_all(reader)
            else:
                _check_content(file, member.name, found)
        except CheckpointError as error:
            found.error(error, member.name)


def _check_torch_tar(file: SourceFile, found: _Findings) -> None:
    """Survey every pickle of torch's tar container, between which raw values lie."""
    members = tar_members(file)

    def watch(start: int, stop: int) -> None:
        where = next((m.name for m in members.values() if m.start <= start <= m.stop), "")
        window = _WINDOW
        while True:
            data = file.read(start, max(0, min(window, stop - start))).tobytes()
            one = survey(data)
            more = isinstance(one.fault, TruncatedPickleError) and start + len(data) < stop
            if not more or len(data) > MAX_BYTES:
                break
            window *= 8
        for name, kind in one.names.items():
            found.name(name, kind, where)
        if one.fault is not None:
            found.fault(one.fault, where)

    # first, since the container is given up at its first fault, and by torch perhaps not
    watch(members["pickle"].start, members["pickle"].stop)
    TarContainer(file, watch).table()


def _check_zip(file: SourceFile, where: str, found: _Findings) -> None:
    within = f"{where}: " if where else ""
    try:
        index = ZipIndex(file)
    except CheckpointError as error:
        found.error(error, where)
        _salvage_zip(file, within, found)
        return
    names = index.entries
    is_script = any(name.endswith("/constants.pkl") for name in names)
    for entry in names.values():
        name = entry.name
        if "/code/" in f"/{name}" and name.endswith(".py"):
            found.programs.append(within + name)
        if entry.nbytes == entry.packed == entry.crc == 0:
            continue  # nothing is in it, and its checksum says so
        if entry.nbytes > MAX_BYTES and not name.endswith((".pkl", ".npy")):
            continue
        try:
            _check_entry(index, entry, within, is_script, found)
        except CheckpointError as error:
            found.add("corrupt", error.message, within + name)


def _check_entry(
    index: ZipIndex, entry: ZipEntry, within: str, is_script: bool, found: _Findings
) -> None:
    name = within + entry.name
    if entry.nbytes > MAX_BYTES:
        found.add("unsafe", f"takes {entry.nbytes:,} bytes, too many to look at", name)
        return
    _check_bytes(index.read(entry).tobytes(), name, found, is_script=is_script)


def _check_bytes(data: bytes, name: str, found: _Findings, *, is_script: bool = False) -> None:
    """Check the content of an entry by what it is, and by what its name says."""
    if data.startswith(b"\x93NUMPY"):
        _check_npy_bytes(data, name, found)
    elif name.endswith(".json"):
        with suppress(ValueError, RecursionError):
            _check_config(json.loads(data), name, found)
    elif data.startswith(b"PK\x03\x04"):
        found.add("unsafe", "is an archive in an archive, which is not looked into", name)
    elif "/data/" not in f"/{name}" or data[:1] == b"\x80":
        at = 0
        while at < len(data):
            one = survey(data, at)
            is_pickle = name.endswith((".pkl", ".pickle"))
            if one.fault is not None and not is_pickle and not _named_well(one.names):
                return
            for global_, kind in one.names.items():
                own = is_script and global_.startswith(_SCRIPT)
                found.name(global_, "expected" if own else kind, name)
            if one.fault is not None:
                found.fault(one.fault, name)
                return
            at = one.end


def _named_well(names: dict[str, Any]) -> bool:
    """Tell whether names are names, and not what text or weights happen to spell."""
    return bool(names) and all(part.isidentifier() for name in names for part in name.split("."))


def _check_npy(file: SourceFile, start: int, stop: int, where: str, found: _Findings) -> None:
    _check_npy_bytes(bytes(file.read(start, min(stop - start, MAX_BYTES))), where, found)


def _check_npy_bytes(data: bytes, where: str, found: _Findings) -> None:
    """Survey the pickle of an array of objects, which numpy would load."""
    width = 2 if data[6:7] == b"\x01" else 4
    length = int.from_bytes(data[8 : 8 + width], "little")
    header = data[8 + width : 8 + width + length]
    if b"'O'" in header or b"|O" in header or b"object" in header:
        one = survey(data, 8 + width + length)
        found.add("unsafe", "is an array of objects, which is a pickle", where)
        for name, kind in one.names.items():
            found.name(name, kind, where)
        if one.fault is not None:
            found.fault(one.fault, where)


def _salvage_zip(file: SourceFile, within: str, found: _Findings) -> None:
    """Survey what Python's own reader would find in an archive that ours refuses."""
    if within and file.size > MAX_BYTES:
        return
    source = io.BytesIO(bytes(file.read(0, file.size))) if within else file.path
    try:
        check_number_of_entries(file)
    except CheckpointError:  # said already
        return
    try:
        with zipfile.ZipFile(source) as archive:
            for info in archive.infolist()[:_MAX_PICKLES]:
                if info.file_size > 1 << 20 or info.compress_size > 1 << 20 or info.flag_bits & 1:
                    continue
                with archive.open(info) as entry:
                    _check_bytes(entry.read(1 << 20), within + info.filename, found)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, RuntimeError, EOFError):
        return
    except Exception as error:  # zlib.error and whatever a codec of zipfile raises
        if isinstance(error, MemoryError):
            raise


def _check_keras(container: Any, found: _Findings) -> None:
    """Look for code in the config that Keras keeps in an attribute."""
    for group in container.get("groups", []):
        for attribute in group["attributes"]:
            name = attribute["name"]
            if name in _KERAS_CONFIGS and isinstance(attribute["value"], str):
                with suppress(ValueError, RecursionError):
                    _check_config(json.loads(attribute["value"]), name, found)


def _check_config(config: Any, where: str, found: _Findings) -> None:
    pending = [config]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending += value
        elif isinstance(value, dict):
            pending += value.values()
            _check_layer(value, where, found)


def _check_layer(record: dict[str, Any], where: str, found: _Findings) -> None:
    """Look at one object of a config, of which Keras imports the module and calls the class."""
    name, module, config = (record.get(key) for key in ("class_name", "module", "config"))
    if not isinstance(name, str):
        return
    if name in ("Lambda", "__lambda__"):
        found.add("unsafe", "holds a Lambda layer, whose code Keras would run", where)
    if name == "TorchModuleWrapper":
        found.add("unsafe", f"holds a {name}, whose pickle Keras would load", where)
    words = config.get("vocabulary") if isinstance(config, dict) else None
    if isinstance(words, str) and (
        words.startswith(("/", "\\")) or "://" in words or ".." in words
    ):
        found.add("unsafe", f"names {words[:200]}, a file that Keras would open", where)
    if not isinstance(module, str) or not module:
        return
    if name in ("function", "type") and isinstance(config, str):
        name = config  # a function is named where a layer has its settings
    elif module == "builtins":
        name = name.strip("_")  # the kind of a plain value
    qualified = f"{module}.{name}"
    if module.partition(".")[0] in _KERAS_MODULES:
        if name in _KERAS_TOOLS:
            found.add("unsafe", f"names {qualified[:200]}, which is no part of a model", where)
    elif module != "builtins" or hasattr(builtins, name):
        kind = kind_of(Token(module, name))
        if kind == "dangerous":
            found.name(qualified, kind, where)
        elif kind == "unexpected":
            what = f"loading it in Keras imports {qualified[:200]}, code of the model's author"
            found.add("note", what, where)
