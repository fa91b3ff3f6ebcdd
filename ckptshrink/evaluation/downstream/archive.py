"""AllenNLP's ``model.tar.gz``: unpacked with care, and written anew after a training.

An archive is a program: its configuration names the classes that are built. Score only those whose
origin you trust.
"""

import gzip
import io
import json
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import Any, Final, cast

from ckptshrink.digest import CHUNK, file_sha256
from ckptshrink.errors import CheckpointError, EvaluationInputError, printable
from ckptshrink.io.detect import open_checkpoint
from ckptshrink.io.staging import Staging

CONFIG: Final = "config.json"
_WEIGHTS: Final = "weights.th"

_LEVEL: Final = 1
"""Of gzip: trained weights hardly pack, and level 9 takes minutes for a full-size ELMo."""


def unpack(archive: Path, folder: Path) -> str:
    """Unpack an archive into an empty folder, and return its SHA-256.

    Raises
    ------
    EvaluationInputError
        It is no archive of AllenNLP, holds something else than plain files below its root, or more
        than the disk has room for.
    """
    free = shutil.disk_usage(folder).free
    try:
        sha256 = file_sha256(archive)
        with tarfile.open(archive, "r:gz") as tar:
            for member in _members(tar, archive):
                free -= member.size
                if free < 0:
                    raise EvaluationInputError(
                        "holds more than there is room for", path=archive, hint=f"df -h {folder}"
                    )
                target = folder.joinpath(*PurePosixPath(member.name).parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                source = tar.extractfile(member)
                if source is not None:
                    with source, target.open("xb") as file:
                        shutil.copyfileobj(source, file, CHUNK)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise EvaluationInputError(
            f"is no model.tar.gz of AllenNLP: {printable(str(error))}", path=archive
        ) from error
    except OSError as error:
        raise EvaluationInputError(
            f"can't be unpacked: {error.strerror or error}", path=archive
        ) from error
    for name in (CONFIG, _WEIGHTS):
        if not (folder / name).is_file():
            raise EvaluationInputError(f"has no {name}: no archive of AllenNLP", path=archive)
    return sha256


def _members(tar: tarfile.TarFile, archive: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the files of an archive, whose names lie below its root."""
    for member in tar:
        parts = PurePosixPath(member.name).parts
        if member.isdir():
            continue
        if not parts or member.name.startswith("/") or ".." in parts or "\0" in member.name:
            raise EvaluationInputError(
                f"holds a file that would lie outside: {printable(member.name)[:80]}", path=archive
            )
        if not member.isreg():
            raise EvaluationInputError(
                f"holds something else than a file: {printable(member.name)[:80]}", path=archive
            )
        yield member


def elmo_sizes(unpacked: Path, archive: Path) -> tuple[dict[str, int], ...]:
    """Return the sizes of every ELMo in an unpacked archive, by their names in options.json.

    The weights are read as data, and nothing in them is run.

    Raises
    ------
    EvaluationInputError
        The weights can't be read, or there is no ELMo in them.
    """
    try:
        with closing(open_checkpoint(unpacked / _WEIGHTS)) as reader:
            shapes = {name: ref.shape for name, ref in reader.checkpoint.tensors.items()}
    except CheckpointError as error:
        raise EvaluationInputError(f"its {_WEIGHTS} {error.message}", path=archive) from error
    found: dict[str, dict[str, int]] = {}
    for name, shape in shapes.items():
        place = _SIZED.search(name)
        if place is None or len(shape) != 2:
            continue
        sizes = found.setdefault(name[: place.start()], dict.fromkeys(_COUNTED, 0))
        if place["layer"] is not None:
            sizes["projection_dim"], sizes["dim"] = shape
            sizes["n_layers"] += 1
        elif place["highway"] is not None:
            sizes["n_highway"] += 1
        else:
            sizes["filters"] = shape[1]
    if not found:
        raise EvaluationInputError("its model has no ELMo", path=archive)
    return tuple(found.values())


_SIZED: Final = re.compile(
    r"_elmo_lstm\.(?:_elmo_lstm\.forward_layer_(?P<layer>\d+)\.state_projection"
    r"|_token_embedder\.(?:_highways\._layers\.(?P<highway>\d+)|_projection))\.weight$"
)
_COUNTED: Final = ("n_layers", "n_highway")


def local_elmo(files: list[list[str | None]]) -> tuple[Path, Path] | None:
    """Return the options and weights that an archive names, where both are files of this machine.

    Parameters
    ----------
    files : list of [options_file, weight_file]
        Of each place where the archive builds an ELMo.
    """
    for options, weights in files:
        if options and weights and Path(options).is_file() and Path(weights).is_file():
            return Path(options), Path(weights)
    return None


def write_archive(made: Path, target: Path, names: Mapping[str, str]) -> None:
    """Write the archive that a training made, the same bytes for the same content.

    Parameters
    ----------
    made : Path
        What AllenNLP has archived.
    target : Path
    names : mapping of str to str
        Texts of the configuration that name temporary files, and what takes their place.

    Raises
    ------
    OutputError
        It exists already, or can't be written.
    """
    with Staging(target, single=True) as staging, tarfile.open(made, "r:gz") as tar:
        file = staging.create(staging.target.name)
        # no name and no time in the header of gzip, no owner and no time in those of tar
        with (
            gzip.GzipFile("", "wb", _LEVEL, cast("io.BufferedWriter", file), mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as out,
        ):
            for member in tar:  # AllenNLP sorts them
                source = tar.extractfile(member) if member.isreg() else None
                if source is None:
                    continue
                entry = tarfile.TarInfo(member.name)
                if member.name == CONFIG:
                    text = json.dumps(_renamed(json.load(source), names), indent=2).encode()
                    entry.size = len(text)
                    out.addfile(entry, io.BytesIO(text))
                else:
                    entry.size = member.size
                    out.addfile(entry, source)
        staging.commit()


def _renamed(node: Any, names: Mapping[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _renamed(value, names) for key, value in node.items()}
    if isinstance(node, list):
        return [_renamed(value, names) for value in node]
    return names.get(node, node) if isinstance(node, str) else node
