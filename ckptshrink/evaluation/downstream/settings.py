"""What the AllenNLP tasks are asked for beyond the options of every task."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ckptshrink.errors import PlanError
from ckptshrink.evaluation.evaluator import TaskOptions
from ckptshrink.evaluation.subjects import Subject, subject_of
from ckptshrink.evaluation.task_options import check_numbers, settings_of

_KNOWN: Final = (
    "archive", "elmo", "overrides", "python", "train", "train_data", "train_elmo",
    "validation_data",
)  # fmt: skip
_OF_TRAINING: Final = ("train_data", "validation_data", "train_elmo")


@dataclass(frozen=True, slots=True)
class Training:
    """What a model is trained from.

    Attributes
    ----------
    config : Path
        AllenNLP's configuration. Paths of data and of ELMo in it are replaced.
    data, validation : Path
        In the forms in which the task's data may be.
    elmo : Subject
        Over which it is trained.
    """

    config: Path
    data: Path
    validation: Path
    elmo: Subject


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a task, checked.

    Attributes
    ----------
    data : Path
        What is scored.
    archive : Path
        The model's ``model.tar.gz``; of a training, where it goes.
    training : Training or None
    origin : Subject or None
        The ELMo that the archive was trained over, as far as the caller says.
    python : str or None
        Interpreter with AllenNLP.
    overrides : mapping
        Changes of the archive's or the training's configuration, as of ``allennlp --overrides``.
    """

    data: Path
    archive: Path
    training: Training | None
    origin: Subject | None
    python: str | None
    overrides: Mapping[str, Any]

    @classmethod
    def of(cls, task: str, options: TaskOptions) -> "Settings":
        """Return the settings in `options`.

        Raises
        ------
        PlanError
            One is missing, unknown or contradicts another.
        CheckpointError, ManifestMismatchError
            An ELMo among them can't be read.
        """
        given = settings_of(options, task, _KNOWN)
        check_numbers(options)
        if options.data is None:
            raise PlanError(f"the task {task} needs --data, the examples to score")
        if "archive" not in given:
            raise PlanError(
                f"the task {task} needs --archive, the model.tar.gz of its model",
                hint="or --train CONFIG, which writes it there",
            )
        training = _training(task, given)
        origin = _subject(given["elmo"]) if "elmo" in given else None
        return cls(
            data=Path(options.data),
            archive=Path(given["archive"]),
            training=training,
            origin=origin or (training.elmo if training is not None else None),
            python=str(given["python"]) if "python" in given else None,
            overrides=_overrides(given.get("overrides")),
        )


def _training(task: str, given: Mapping[str, Any]) -> Training | None:
    if "train" not in given:
        alone = [name for name in _OF_TRAINING if name in given]
        if alone:
            raise PlanError(f"--{alone[0].replace('_', '-')} goes with --train")
        return None
    for name in _OF_TRAINING:
        if name not in given:
            raise PlanError(f"--train of the task {task} needs --{name.replace('_', '-')}")
    return Training(
        config=Path(given["train"]),
        data=Path(given["train_data"]),
        validation=Path(given["validation_data"]),
        elmo=_subject(given["train_elmo"]),
    )


def _subject(given: Any) -> Subject:
    return given if isinstance(given, Subject) else subject_of(Path(given), any_file=True)


def _overrides(given: Any) -> Mapping[str, Any]:
    found = given
    if isinstance(given, str):
        try:
            found = json.loads(given)
        except ValueError as error:
            raise PlanError(f"the setting overrides is no JSON: {error}") from error
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise PlanError("the setting overrides is no JSON object")
    return dict(found)
