"""The ELMo to be scored, as files that AllenNLP loads; whether an archive was trained over it."""

import math
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from ckptshrink.errors import EvaluationInputError
from ckptshrink.evaluation.subjects import Subject
from ckptshrink.io.archive_file import FORMAT as ARCHIVE
from ckptshrink.manifest import read_manifest

if TYPE_CHECKING:
    from ckptshrink.runtime.elmo_options import ElmoOptions

_HINT = "score with a model that was trained over this ELMo, and did not train it (requires_grad)"


@dataclass(frozen=True, slots=True)
class DenseElmo:
    """An ELMo as files that AllenNLP loads.

    Attributes
    ----------
    subject : Subject
    weights, options : Path
    said : ElmoOptions
        What `options` says.
    kept : frozenset of str or None
        Tensors that the artefact has as its source has them; None for a source.
    """

    subject: Subject
    weights: Path
    options: Path
    said: "ElmoOptions"
    kept: frozenset[str] | None


def dense_elmo(subject: Subject, folder: Path) -> DenseElmo:
    """Return an ELMo dense: a source as it is, an artefact restored into a folder.

    Raises
    ------
    EvaluationInputError
        It is no ELMo, or not one that AllenNLP's classes can be: on tokens, of one layer, without
        skip connections.
    CheckpointError, ManifestMismatchError
        It can't be read.
    """
    path = subject.path
    if subject.kind == "file":
        raise EvaluationInputError(
            "is neither an ELMo nor the archive itself",
            path=path,
            hint="give an ELMo's HDF5 file or an artefact made of one; --archive has the model",
        )
    made = subject.kind == "artefact"
    found = _from_artefact(subject, folder) if made else _from_source(subject)
    _check_options(found)
    return found


def _from_artefact(subject: Subject, folder: Path) -> DenseElmo:
    from ckptshrink.rewrite import restore
    from ckptshrink.runtime.elmo_options import read_options

    manifest = read_manifest(subject.path)
    source = manifest.source
    _check_is_elmo(subject.path, source.format, source.family)
    beside = [subject.path / Path(n).name for n in source.sidecars if n.endswith(".json")]
    options = _options(subject.path, beside)
    weights, _ = restore(subject.path, Path(mkdtemp(dir=folder)) / "elmo.hdf5")
    kept = frozenset(row.name for row in manifest.tensors if row.action == "keep")
    return DenseElmo(subject, weights, options, read_options(options), kept)


def _from_source(subject: Subject) -> DenseElmo:
    from ckptshrink.planning.opened import open_source
    from ckptshrink.runtime.elmo_options import read_options

    reader, recognition = open_source(subject.path)
    with closing(reader):
        checkpoint = reader.checkpoint
        _check_is_elmo(subject.path, checkpoint.format, recognition.family)
        beside = [p for p in checkpoint.sidecars if p.name.endswith(".json")]
    options = _options(subject.path, beside)
    return DenseElmo(subject, subject.path.resolve(), options, read_options(options), None)


def _check_is_elmo(path: Path, form: str, family: str) -> None:
    if form == ARCHIVE:
        raise EvaluationInputError(
            "is of another archive than the one that the task is scored with",
            path=path,
            hint="--archive names the archive itself, or the one that the artefact was made of",
        )
    if form != "hdf5" or family != "elmo":
        raise EvaluationInputError(
            f"is no ELMo in HDF5, but {form} ({family})",
            path=path,
            hint="these tasks score an ELMo inside of AllenNLP's models",
        )


def _options(path: Path, beside: list[Path]) -> Path:
    if len(beside) != 1:
        raise EvaluationInputError("has no options.json beside it", path=path)
    return beside[0].resolve()


def _check_options(elmo: DenseElmo) -> None:
    said = elmo.said
    reason = None
    if said.char_cnn is None:
        reason = "is an ELMo on tokens, and AllenNLP's reads characters"
    elif said.lstm.n_layers < 2:
        reason = "has one LSTM layer, and AllenNLP's loader knows files of two or more"
    elif not said.lstm.use_skip_connections:
        reason = "has no skip connections, and AllenNLP's ELMo always has"
    if reason is not None:
        raise EvaluationInputError(reason, path=elmo.subject.path)


def check_sizes(elmo: DenseElmo, sizes: Mapping[str, int], archive: Path) -> None:
    """Check that an ELMo has the sizes of the one in an archive.

    Raises
    ------
    EvaluationInputError
        It has others.
    """
    lstm, characters = elmo.said.lstm, elmo.said.char_cnn
    said = {"dim": lstm.dim, "projection_dim": lstm.projection_dim, "n_layers": lstm.n_layers}
    if characters is not None:
        said["filters"] = sum(n for _, n in characters.filters)
        said["n_highway"] = characters.n_highway or 0
    for name, size in sizes.items():
        if said.get(name, size) != size:
            raise EvaluationInputError(
                f"{name} is {said[name]} in its options.json, and {size} in the ELMo of "
                f"{archive.name}",
                path=elmo.subject.path,
                hint=_HINT,
            )


def check_same_model(elmo: DenseElmo, said: "ElmoOptions", name: str) -> None:
    """Check that an ELMo computes what another one does, apart from its weights.

    Parameters
    ----------
    said, name
        Options of the ELMo that the model was built with, and what it is called.

    Raises
    ------
    EvaluationInputError
        Their options differ.
    """
    for part in ("lstm", "char_cnn"):
        mine = getattr(elmo.said, part).model_dump()
        for field, value in getattr(said, part).model_dump().items():
            if mine[field] != value:
                raise EvaluationInputError(
                    f"its options.json says {field} {mine[field]}, and that of {name} {value}: "
                    "they are two models",
                    path=elmo.subject.path,
                )


@dataclass(frozen=True, slots=True)
class Differences:
    """How far an ELMo is from the one in an archive.

    Attributes
    ----------
    largest : mapping of str to float
        Largest absolute difference of each tensor, W_0 by its parts; infinite for NaN.
    constant : collection of str
        Tensors of one value, which two different ELMos may have in common.
    """

    largest: Mapping[str, float]
    constant: Collection[str]


def check_origin(
    elmo: DenseElmo, found: Differences, archive: Path, *, is_origin: bool, known: bool
) -> tuple[str, ...]:
    """Check that the archive was trained over this ELMo, as far as can be told; return notes.

    Swapping another ELMo into a model that has trained its own undoes that training, and the score
    is then no one's.

    Parameters
    ----------
    is_origin : bool
        Whether the caller says that this is the very ELMo that the archive was trained over.
    known : bool
        Whether the ELMo that the archive was trained over was found to be in it unchanged. A source
        may then differ: it is a variant, made by another tool.

    Raises
    ------
    EvaluationInputError
        The archive's ELMo is another one, or was fine-tuned. The message says by how much and
        where.
    """
    expected = [n for n in found.largest if elmo.kept is None or n in elmo.kept]
    apart = {name: found.largest[name] for name in expected if found.largest[name] > 0}
    telling = [name for name in expected if name not in found.constant]
    if not apart:
        if not telling:
            return ("nothing of it is as in its source: it may be another ELMo than the archive's",)
        return ()
    where = max(apart, key=lambda name: apart[name])
    most = "NaN" if math.isinf(apart[where]) else f"{apart[where]:.3g}"
    said = f"differs in {len(apart)} of {len(expected)} tensors, most by {most} at {where}"
    if elmo.kept is None and not is_origin:
        if known:
            return ()
        if len(set(telling) & set(apart)) < len(telling):
            return (f"{said} from the archive's own ELMo, which was taken for its source",)
    kept = "the tensors kept in " if elmo.kept is not None else ""
    raise EvaluationInputError(
        f"its ELMo was fine-tuned, or is not that of {kept}{elmo.subject.name}: it {said}",
        path=archive,
        hint=_HINT,
    )
