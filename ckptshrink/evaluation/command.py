"""The task ``command``: any program that is given a model's path and prints metrics as JSON."""

import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from ckptshrink.errors import EvaluationError, EvaluationInputError, PlanError
from ckptshrink.evaluation.answers import Stated, scores_from
from ckptshrink.evaluation.evaluator import Data, HoldsNothing, Scores, TaskOptions
from ckptshrink.evaluation.metrics import Better
from ckptshrink.evaluation.program import run_program
from ckptshrink.evaluation.subjects import Subject
from ckptshrink.evaluation.task_options import check_numbers, data_of, settings_of
from ckptshrink.manifest import read_manifest
from ckptshrink.rewrite import restore

_SETTINGS: Final = ("command", "better", "units")

_DENSE: Final = "{dense}"
_PLACE: Final = re.compile(r"\{(?:path|dense)\}")


def evaluator(options: TaskOptions) -> "Command":
    """Return the evaluator of the task ``command``.

    Parameters
    ----------
    options : TaskOptions
        `data` is hashed only; the command names it itself. Settings are ``command`` (a program and
        its arguments, split as a shell would, run without one), and, by name of a metric,
        ``better`` (``"higher"`` or ``"lower"``) and ``units``. In the command ``{path}`` is the
        model's path, and ``{dense}`` that of an artefact restored to its source's container; where
        neither is there the path is put behind it.

    Raises
    ------
    EvaluationInputError
        There is no such program, or `data` can't be read.
    PlanError
        An option can't be, is not known, or is nothing that a program can be told.
    """
    settings = settings_of(options, "command", _SETTINGS)
    check_numbers(options)
    for name in ("batch_size", "max_examples"):
        if getattr(options, name) is not None:
            raise PlanError(
                f"--{name.replace('_', '-')} is nothing that a program is told",
                hint="write it into the command itself",
            )
    if options.device != "auto":
        raise PlanError(
            "--device is nothing that a program is told", hint="write it into the command itself"
        )
    command = settings.get("command")
    if not command:
        raise PlanError("the task command needs one", hint="--command 'python score.py {path}'")
    return Command(
        command=command,
        arguments=_arguments(command),
        stated=Stated(_better(_by_name(settings, "better")), _by_name(settings, "units")),
        data=None if options.data is None else data_of(options.data),
        seed=options.seed,
        threads=options.threads,
        timeout=options.timeout,
    )


def _arguments(command: str) -> tuple[str, ...]:
    try:
        arguments = shlex.split(command)
    except ValueError as error:
        raise PlanError(f"the command can't be split into words: {error}") from error
    if not arguments:
        raise PlanError("the command is empty", hint="--command 'python score.py {path}'")
    program = arguments[0]
    if not _PLACE.search(program) and shutil.which(program) is None:
        raise EvaluationInputError(
            f"there is no program {program!r}, or it is not executable",
            hint="no shell reads the command: cd, pipes and variables go into a script",
        )
    if not any(_PLACE.search(argument) for argument in arguments):
        arguments.append("{path}")
    return tuple(arguments)


def _by_name(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    given = settings.get(name) or {}
    if not isinstance(given, Mapping):
        raise PlanError(f"the setting {name} is by name of a metric; got {given!r}")
    return dict(given)


def _better(given: Mapping[str, Any]) -> dict[str, Better]:
    for name, way in given.items():
        if way not in ("higher", "lower"):
            raise PlanError(f"--better {name} is higher or lower; got {way!r}")
    return {name: cast(Better, way) for name, way in given.items()}


@dataclass(frozen=True, slots=True)
class Command(HoldsNothing):
    """The task ``command``, set up for one program.

    Attributes
    ----------
    command : str
        As given.
    arguments : tuple of str
        With places for the model in them.
    stated : Stated
    data : Data or None
    seed : int
    threads : int or None
    timeout : float or None
        Seconds that one run may take.
    """

    command: str
    arguments: tuple[str, ...]
    stated: Stated
    data: Data | None
    seed: int
    threads: int | None
    timeout: float | None

    @property
    def protocol(self) -> Mapping[str, Any]:
        """Return, as JSON, all that must be alike for two scores to be comparable."""
        return {"command": self.command}

    @property
    def environment(self) -> Mapping[str, str]:
        """Return nothing: the program alone knows what it uses."""
        return {}

    def score(self, subject: Subject) -> Scores:
        """Score a model: run the program, and read what it printed.

        The program's environment has ``CKPTSHRINK_SEED``, and ``OMP_NUM_THREADS`` where a number of
        threads was given.

        Raises
        ------
        EvaluationError
            It crashed, took too long, or what it printed makes no sense.
        EvaluationInputError
            It can't be started.
        CheckpointError, ManifestMismatchError, OutputError
            An artefact can't be restored.
        """
        env = {**os.environ, "CKPTSHRINK_SEED": str(self.seed)}
        if self.threads is not None:
            env["OMP_NUM_THREADS"] = str(self.threads)
        with _places(subject, self.arguments) as places:
            arguments = [_filled(argument, places) for argument in self.arguments]
            stdout, log = run_program(arguments, env=env, timeout=self.timeout)
        try:
            return scores_from(stdout, self.stated)
        except EvaluationError as error:
            error.log = log
            raise


@contextmanager
def _places(subject: Subject, arguments: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yield what stands for each placeholder; what was restored is there no longer than that."""
    path = subject.path.absolute()  # one that begins with a dash would be an option
    if subject.kind != "artefact" or not any(_DENSE in argument for argument in arguments):
        yield {"{path}": str(path), _DENSE: str(path)}
        return
    with tempfile.TemporaryDirectory(prefix="ckptshrink-") as folder:
        source = read_manifest(path).source
        name = Path(source.file).name
        dense, _ = restore(path, Path(folder, name if name not in {"", ".."} else "model"))
        for sidecar in source.sidecars:  # such as the options of an ELMo
            shutil.copyfile(path / Path(sidecar).name, dense.parent / Path(sidecar).name)
        yield {"{path}": str(path), _DENSE: str(dense)}


def _filled(argument: str, places: Mapping[str, str]) -> str:
    return _PLACE.sub(lambda found: places[found.group()], argument)
