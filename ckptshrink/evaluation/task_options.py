"""What evaluators ask of their options: settings that they know, and a data file with its hash."""

import difflib
import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ckptshrink.errors import PlanError
from ckptshrink.evaluation.evaluator import Data, TaskOptions
from ckptshrink.evaluation.files import opened


def settings_of(options: TaskOptions, task: str, known: Collection[str]) -> Mapping[str, Any]:
    """Return the settings that are given, without those that are None.

    Parameters
    ----------
    known : collection of str
        Names of the settings that the task has.

    Raises
    ------
    PlanError
        One is given that it has not; the message says which is close.
    """
    for name in options.settings:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise PlanError(
                f"the task {task} has no setting {name!r}; it has {', '.join(sorted(known))}",
                hint=f"did you mean {close[0]!r}?" if close else None,
            )
    return {name: value for name, value in options.settings.items() if value is not None}


def check_numbers(options: TaskOptions) -> None:
    """Refuse counts and times that can't be.

    Raises
    ------
    PlanError
        `batch_size` or `max_examples` is below 1, or `timeout` is not above 0.
    """
    for name in ("batch_size", "max_examples"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise PlanError(f"--{name.replace('_', '-')} is at least 1; got {value}")
    if options.timeout is not None and not options.timeout > 0:
        raise PlanError(f"--timeout is above 0 seconds; got {options.timeout}")


def data_of(path: Path) -> Data:
    """Return the name, hash and size of a file that models are scored on.

    Raises
    ------
    EvaluationInputError
        It can't be read.
    """
    sha = hashlib.sha256()
    with opened(path) as file:
        for chunk in file.chunks(0, file.size):
            sha.update(chunk)
        return Data(name=path.name, sha256=sha.hexdigest(), nbytes=file.size)
