"""AllenNLP's ``model.tar.gz``: unpacked with care, and written anew after a training.

An archive is a program: its configuration names the classes that are built. Score only those whose
origin you trust.
"""

import json
import re
import shutil
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import Any, Final

from ckptshrink.digest import file_sha256
from ckptshrink.errors import CheckpointError, EvaluationInputError, UnsafeCheckpointError
from ckptshrink.io.detect import open_checkpoint
from ckptshrink.io.staging import Staging
from ckptshrink.io.tar_file import TarIndex
from ckptshrink.io.tar_writer import TarWriter

CONFIG: Final = "config.json"
_WEIGHTS: Final = "weights.th"


def unpack(archive: Path, folder: Path) -> str:
    """Unpack an archive into an empty folder, and return its SHA-256.

    Raises
    ------
    EvaluationInputError
        It is no archive of AllenNLP, holds something else than plain files below its root, or more
        than the disk has room for.
    """
    try:
        sha256 = file_sha256(archive)
        with closing(TarIndex(archive)) as index:
            _check_room(index, folder)
            for member in index.members.values():
                target = folder.joinpath(*PurePosixPath(member.name).parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                if not member.is_folder:
                    with closing(index.open(member)) as source, target.open("xb") as file:
                        for chunk in source.chunks(0, source.size):
                            file.write(chunk)
    except UnsafeCheckpointError as error:
        raise EvaluationInputError(error.message, path=archive, hint=error.hint) from error
    except CheckpointError as error:
        raise EvaluationInputError(
            f"is no model.tar.gz of AllenNLP: it {error.message}", path=archive, hint=error.hint
        ) from error
    except OSError as error:
        raise EvaluationInputError(
            f"can't be unpacked: {error.strerror or error}", path=archive
        ) from error
    for name in (CONFIG, _WEIGHTS):
        if not (folder / name).is_file():
            raise EvaluationInputError(f"has no {name}: no archive of AllenNLP", path=archive)
    return sha256


def _check_room(index: TarIndex, folder: Path) -> None:
    if sum(member.nbytes for member in index.members.values()) > shutil.disk_usage(folder).free:
        raise EvaluationInputError(
            "holds more than there is room for", path=index.path, hint=f"df -h {folder}"
        )


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
    with (
        Staging(target, single=True) as staging,
        closing(TarIndex(made)) as index,
    ):
        archive = TarWriter(staging.create(staging.target.name), is_packed=True)
        for member in index.members.values():  # AllenNLP sorts them
            if member.is_folder:
                continue
            with closing(index.open(member)) as source:
                if member.name == CONFIG:
                    config = json.loads(source.read(0, source.size).tobytes())
                    text = json.dumps(_renamed(config, names), indent=2).encode()
                    archive.add(member.name, len(text), [text])
                else:
                    archive.add(member.name, source.size, source.chunks(0, source.size))
        archive.close()
        staging.commit()


def _renamed(node: Any, names: Mapping[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _renamed(value, names) for key, value in node.items()}
    if isinstance(node, list):
        return [_renamed(value, names) for value in node]
    return names.get(node, node) if isinstance(node, str) else node
