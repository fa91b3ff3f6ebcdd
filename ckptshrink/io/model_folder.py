"""The folder of a Hugging Face model: its weights, what is carried along with them, what is not.

A model is more than its weights: `from_pretrained` asks for the configuration and the tokenizer
too. They are carried by a list of names, and only as small plain files of the folder itself: never
programs (``modeling_*.py``), pickles (``training_args.bin``, ``vocab.pkl``) or other weights, which
are named as left out.
"""

import os
import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ckptshrink.digest import CHUNK
from ckptshrink.errors import (
    CheckpointError,
    ManifestMismatchError,
    UnknownFormatError,
    printable,
)
from ckptshrink.io.checkpoint import Checkpoint
from ckptshrink.io.files import SourceFile, source_errors
from ckptshrink.io.safetensors_header import INDEX_SUFFIX, SINGLE_NAME, strict_json
from ckptshrink.io.safetensors_index import inside
from ckptshrink.io.staging import Staging

BIN_NAME: Final = "pytorch_model.bin"
"""The one file of weights that `save_pretrained` wrote before safetensors."""

BIN_INDEX_SUFFIX: Final = ".bin.index.json"

CONFIG: Final = "config.json"

MAX_SIDECAR: Final = 64 << 20
"""Most bytes of a file that is carried along: the largest tokenizers have 35 MB."""

MAX_SIDECARS: Final = 64
"""Most files that are carried along."""

MAX_ENTRIES: Final = 10_000
"""Most entries of a folder that are looked at: a hub snapshot has some dozens."""

_MAX_CONFIG: Final = 4 << 20
_NAMED: Final = 8

_CARRIED: Final = re.compile(
    r"(?:[A-Za-z0-9_-]+_)?config\.json|config_[a-z_]+\.json"
    r"|(?:tokenizer|vocab|special_tokens_map|added_tokens|normalizer|chat_template|encoder"
    r"|entity_vocab|tekken|modules)\.json"
    r"|(?:vocab|merges|dict)\.txt|bpe\.codes|vocab\.bpe|chat_template\.jinja"
    r"|[A-Za-z0-9._-]+\.(?:model|spm)"
    r"|(?:LICENSE|LICENCE|NOTICE)(?:\.txt|\.md)?"
)
"""Names of configurations, vocabularies, merges, tokenizers and licences."""

_OUTPUTS: Final = (
    "lm_head.weight", "decoder.weight", "embed_out.weight", "vocab_projector.weight",
    "proj_out.weight", "lm_loss.weight",
)  # fmt: skip
"""How the names of output layers end where they are stored beside the embedding."""

_LANGUAGE_MODEL: Final = re.compile(
    r".*(?:LMHeadModel|ForCausalLM|ForMaskedLM|ForConditionalGeneration|MTModel|ForPreTraining)"
)

_SENTENCEPIECE: Final = re.compile(r".*\.(?:model|spm)")


@dataclass(frozen=True, slots=True)
class Sidecars:
    """What lies beside a model's weights.

    Attributes
    ----------
    carried : tuple of Path
        Sorted by name.
    model_type : str or None
        What ``config.json`` calls the model's architecture.
    is_tied : bool
        Whether it says that a language model's output layer is its input embedding.
    notes : tuple of str
        What is left out and why, one line each.
    """

    carried: tuple[Path, ...]
    model_type: str | None
    is_tied: bool
    notes: tuple[str, ...]


def weights_of(folder: Path) -> Path:
    """Return the file of a folder that stands for all of its weights, as transformers chooses it.

    That is ``model.safetensors``, or the index of safetensors shards, or ``pytorch_model.bin``, or
    the index of its shards.

    Raises
    ------
    UnknownFormatError
        There is none of these, or more than one index.
    UnsafeCheckpointError
        It is a link that leads out of the folder.
    """
    names = _names(folder)
    for single, suffix in ((SINGLE_NAME, INDEX_SUFFIX), (BIN_NAME, BIN_INDEX_SUFFIX)):
        if single in names:
            return inside(folder, single)
        found = [name for name in names if name.endswith(suffix)]
        if len(found) > 1:
            raise UnknownFormatError(
                f"is a folder with {len(found)} files *{suffix} and no {single}",
                path=folder,
                hint=f"name one of: {', '.join(map(printable, found[:_NAMED]))}",
            )
        if found:
            return inside(folder, found[0])
    raise UnknownFormatError("is a folder without a model's weights", path=folder)


def has_weights(names: Collection[str]) -> bool:
    """Tell from the names of a folder's files whether `weights_of` has something to choose."""
    suffixes = (INDEX_SUFFIX, BIN_INDEX_SUFFIX)
    return bool({SINGLE_NAME, BIN_NAME} & set(names)) or any(n.endswith(suffixes) for n in names)


def is_carried(name: str) -> bool:
    """Tell whether a file is carried along with the weights of its folder, by its name."""
    return _CARRIED.fullmatch(name) is not None


def is_beside_config(weights: Path) -> bool:
    """Tell whether a file of weights is that of a model's folder, by its name and its neighbour."""
    return weights.name in {SINGLE_NAME, BIN_NAME} and (weights.parent / CONFIG).exists()


def sidecars_of(folder: Path, weights: Iterable[str]) -> Sidecars:
    """Return what is carried along with the weights of a folder, and what is not.

    Parameters
    ----------
    folder : Path
    weights : iterable of str
        Names of the files that the tensors are read from, which are not named as left out.
    """
    used = {name.split("/", 1)[0] for name in weights}
    carried: list[Path] = []
    notes: list[str] = []
    others: list[str] = []
    for name in _names(folder):
        if name in used or name.startswith("."):  # .gitattributes, .cache: not of the model
            continue
        if not _CARRIED.fullmatch(name):
            others.append(name)
            continue
        fault = _fault(folder, name)
        if fault is None and len(carried) == MAX_SIDECARS:
            fault = f"is one more than the {MAX_SIDECARS} files that are carried along"
        if fault is None:
            carried.append(folder / name)
        else:
            notes.append(f"left out {name}: {fault}")
    if others:
        shown = ", ".join(map(printable, others[:_NAMED]))
        more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        notes.append(f"left out of the folder: {shown}{more}")
    config = _config(folder, notes) if folder / CONFIG in carried else {}
    if "auto_map" in config:
        notes.append(f"{CONFIG} names code of its own (auto_map), which is not carried along")
    return Sidecars(tuple(carried), _model_type(config), _is_tied(config), tuple(notes))


def with_sidecars(checkpoint: Checkpoint, *, folder: Path | None) -> Checkpoint:
    """Return a checkpoint with what lies beside its weights.

    Parameters
    ----------
    checkpoint : Checkpoint
        As the reader of its format has it.
    folder : Path or None
        Given where the user named the folder: all of it is the checkpoint then, and comes back as a
        folder. None where the user named a file of weights in one.
    """
    home = checkpoint.files[0].parent if folder is None else folder
    shards = checkpoint.container.get("shards", {})
    found = sidecars_of(home, [*shards, *(path.name for path in checkpoint.files)])
    notes = list(found.notes)
    if found.is_tied and not any(name.endswith(_OUTPUTS) for name in checkpoint.tensors):
        notes.append("the output layer is tied to the input embedding, and stored once as that")
    changed = replace(
        checkpoint,
        sidecars=(*checkpoint.sidecars, *found.carried),
        model_type=found.model_type,
        notes=(*checkpoint.notes, *notes),
    )
    if folder is None:
        return changed
    record = {**checkpoint.container, "folder": {"weights": checkpoint.files[0].name}}
    return replace(changed, root=folder, container=record)


def copy_sidecars(paths: Iterable[Path], staging: Staging) -> None:
    """Copy files that were found beside a checkpoint into the target's folder.

    Raises
    ------
    CheckpointError
        One is gone, or has become something else than a plain file.
    """
    for path in paths:
        with closing(SourceFile(path)) as file:
            out = staging.create(path.name)
            for start in range(0, file.size, CHUNK):
                out.write(file.read(start, min(CHUNK, file.size - start)).data)


def recorded_sidecars(artefact: Path, names: Iterable[str], known: Collection[str]) -> list[Path]:
    """Return the sidecars of an artefact by the names in its manifest.

    Parameters
    ----------
    known : collection of str
        The files that the manifest lists.

    Raises
    ------
    ManifestMismatchError
        A name is none of the listed files, or leads out of the artefact.
    UnsafeCheckpointError
        A file is a link that leads out of it.
    """
    found = []
    for name in names:
        if name not in known or Path(name).name != name or name in {"", ".", ".."}:
            raise ManifestMismatchError(f"{name!r:.80} is no file beside the model", path=artefact)
        found.append(inside(artefact, name))
    return found


def _names(folder: Path) -> list[str]:
    """Return the names of a folder's entries, sorted."""
    names = []
    with source_errors(folder), os.scandir(folder) as entries:
        for entry in entries:
            names.append(entry.name)
            if len(names) > MAX_ENTRIES:
                raise UnknownFormatError(
                    f"is a folder of more than {MAX_ENTRIES:,} entries, no model's",
                    path=folder,
                    hint="name the file",
                )
    return sorted(names)


def _fault(folder: Path, name: str) -> str | None:
    """Return why a file can't be carried along, or None if it can."""
    try:
        path = inside(folder, name)
        with closing(SourceFile(path)) as file:
            if file.size > MAX_SIDECAR:
                return f"has {file.size:,} bytes, and {MAX_SIDECAR:,} is the most"
            if _SENTENCEPIECE.fullmatch(name) and bytes(file.read(0, min(1, file.size))) != b"\n":
                # the first field of the protocol buffer; a pickle or an archive begins otherwise
                return "is no SentencePiece model"
    except CheckpointError as error:
        return error.message
    return None


def _config(folder: Path, notes: list[str]) -> dict[str, Any]:
    """Return what ``config.json`` says, and nothing with a note if it can't be read."""
    path = folder / CONFIG
    with closing(SourceFile(path)) as file:
        if file.size > _MAX_CONFIG:
            notes.append(f"{CONFIG} has {file.size:,} bytes, and is carried along unread")
            return {}
        data = bytes(file.read(0, file.size))
    try:
        return strict_json(data, "configuration", path)
    except CheckpointError as error:
        notes.append(f"{CONFIG}: {error.message}")
        return {}


def _model_type(config: Mapping[str, Any]) -> str | None:
    model_type = config.get("model_type")
    if isinstance(model_type, str) and re.fullmatch(r"[A-Za-z0-9_.-]{1,60}", model_type):
        return model_type
    return None


def _is_tied(config: Mapping[str, Any]) -> bool:
    names = config.get("architectures")
    is_model = isinstance(names, list) and any(
        isinstance(name, str) and _LANGUAGE_MODEL.fullmatch(name) for name in names
    )
    return is_model and config.get("tie_word_embeddings") is True
