"""How models are evaluated from the command line: the options of every task, and one run of it."""

import math
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ckptshrink.errors import PlanError
from ckptshrink.evaluation.task_settings import DOWNSTREAM, TASKS_OF_SETTING
from ckptshrink_cli import declare, params
from ckptshrink_cli.declare import (
    LM,
    PROGRAM,
    TASK,
    option,
    parsed,
    refuse,
    together,
    usage_errors,
)
from ckptshrink_cli.streams import Run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from click.shell_completion import CompletionItem

    from ckptshrink.evaluation.evaluator import Evaluator
    from ckptshrink.evaluation.run import Evaluated
    from ckptshrink.evaluation.subjects import Subject
    from ckptshrink.events import Listener

_SETTINGS: Final[Mapping[str, tuple[str, ...]]] = {
    "unit" if name == "units" else name: tasks for name, tasks in TASKS_OF_SETTING.items()
}
"""Options that not every task has, and those which have them."""

_MOST: Final = 2**31 - 1


def _task(name: str) -> str:
    from ckptshrink.evaluation.evaluator import EVALUATORS

    return params.one_of("task", name, EVALUATORS.names())


def _complete_task(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> "list[CompletionItem]":
    from click.shell_completion import CompletionItem

    from ckptshrink.evaluation.evaluator import EVALUATORS

    return [CompletionItem(name) for name in EVALUATORS.names() if name.startswith(incomplete)]


def _splits(text: str) -> tuple[int, ...]:
    return tuple(params.whole_number(part, most=_MOST) for part in text.split(","))


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise PlanError(f"{text!r} is not of the form NAME=VALUE")
    return key, value


def _better(text: str) -> tuple[str, str]:
    name, which = _pair(text)
    if which not in {"higher", "lower"}:
        raise PlanError(f"{text!r}: a metric is better higher or lower")
    return name, which


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise PlanError(f"{text!r} is no number of seconds") from None
    if not 0 < seconds < math.inf:
        raise PlanError(f"a time-out is above 0 seconds; got {text}")
    return seconds


def _file(heading: str, name: str, text: str, **more: Any) -> Any:
    return option(heading, name, metavar="FILE", type=click.Path(path_type=Path), help=text, **more)


_COUNT: Final = parsed(partial(params.whole_number, most=_MOST))

task_options: Final = together(
    option(TASK, "--task", metavar="TASK", callback=parsed(_task), shell_complete=_complete_task,
           help="lm, sst5, snli, squad, command, or one that is installed."),
    _file(TASK, "--data", "The text, or the examples."),
    option(TASK, "--max-examples", metavar="N", callback=_COUNT,
           help="Only the first N lines, sentences, pairs or questions."),
    option(TASK, "--batch-size", metavar="N", callback=_COUNT,
           help="Examples at a time (default: 1 stream for lm; as the archive has it downstream). "
           "Scores depend on it."),
    option(TASK, "--timeout", metavar="SECONDS", callback=parsed(_seconds),
           help="Most that scoring one model may take."),
    option(TASK, "--seed", default="0", metavar="N",
           callback=parsed(partial(params.whole_number, least=0, most=_MOST)),
           help="Seed of every random choice (default 0)."),
    _file(LM, "--vocab", "The vocabulary: a word a line, a JSON list or object, or fastai's "
          "itos.pkl."),
    _file(LM, "--train-text", "Take the words in the order in which they appear in this text; may "
          "be given again.", multiple=True),
    option(LM, "--unk", metavar="WORD", help="The word for unknown ones (default: <unk>, or "
           "fastai's)."),
    option(LM, "--eos", metavar="WORD", help="The word after each line (default: <eos>, or "
           "fastai's)."),
    option(LM, "--splits", metavar="N,N,...", callback=parsed(_splits),
           help="Where a split softmax is split, as its training gave it."),
    _file(declare.DOWNSTREAM, "--archive",
          "The task's model: an AllenNLP model.tar.gz with an ELMo in it."),
    option(declare.DOWNSTREAM, "--train", metavar="CONFIG", type=click.Path(path_type=Path),
           help="Train the task's model first, over the ELMo of --baseline or else of the first "
           "PATH, and write it to --archive."),
    _file(declare.DOWNSTREAM, "--train-data", "What --train trains on."),
    _file(declare.DOWNSTREAM, "--validation-data", "What --train chooses its epoch by."),
    option(declare.DOWNSTREAM, "--python", metavar="PROGRAM",
           help="Interpreter that has AllenNLP (default: this one)."),
    option(declare.DOWNSTREAM, "--overrides", metavar="JSON",
           help="Changes of the archive's or the training's configuration, as of allennlp."),
    option(PROGRAM, "--command", metavar="COMMAND",
           help="Program that is given the path ({path}; {dense} for the restored checkpoint) and "
           "prints metrics as JSON."),
    option(PROGRAM, "--better", metavar="NAME=WAY", multiple=True, callback=parsed(_better),
           help="Whether a metric of the program is better higher or lower; may be given again."),
    option(PROGRAM, "--unit", metavar="NAME=UNIT", multiple=True, callback=parsed(_pair),
           help="Unit of a metric of the program, such as fraction or percent; may be given "
           "again."),
    option(PROGRAM, "--option", "extra", metavar="NAME=VALUE", multiple=True,
           callback=parsed(_pair), help="Setting of an installed task; may be given again."),
)  # fmt: skip
"""Everything that says which task, and how it is run."""

TASK_PARAMS: Final = (
    "task", "data", "max_examples", "batch_size", "timeout", "seed", *_SETTINGS, "extra",
)  # fmt: skip
"""Names of the parameters that `task_options` fill."""


def required_task(given: Mapping[str, Any]) -> str:
    """Return the task; refuse options of another one.

    Raises
    ------
    click.UsageError
        No task, or an option that it has not.
    """
    task: str | None = given["task"]
    if task is None:
        refuse("give a --task: lm, sst5, snli, squad, command, or one that is installed")
    for name, tasks in _SETTINGS.items():
        if given[name] not in (None, ()) and task not in tasks:
            refuse(f"{params.flag_of(name)} goes with --task {', '.join(tasks)}")
    return task


def subjects_of(texts: Sequence[str], *, task: str) -> "list[Subject]":
    """Return the models of ``PATH`` or ``NAME=PATH``."""
    from ckptshrink.evaluation.subjects import subject_of

    any_file = task != "lm"  # another task may have a reader of its own, such as of an archive
    named = [_named(text) for text in texts]
    return [subject_of(path, name=name, any_file=any_file) for name, path in named]


def _named(text: str) -> tuple[str | None, Path]:
    name, equals, path = text.partition("=")
    if name and equals and path and not Path(text).exists():
        return name, Path(path)
    return None, Path(text)


@contextmanager
def evaluator_of(
    task: str,
    given: Mapping[str, Any],
    *,
    device: str,
    threads: int | None,
    listen: "Listener",
    origin: "Subject | None" = None,
    train_elmo: "Subject | None" = None,
) -> "Iterator[Evaluator]":
    """Make the evaluator of a task from its options, and close it after.

    Parameters
    ----------
    listen : callable
        Told how far a model is.
    origin : Subject, optional
        The source that is compressed: a task's model must have been trained over this ELMo.
    train_elmo : Subject, optional
        The ELMo over which ``--train`` trains.
    """
    from ckptshrink.evaluation.evaluator import EVALUATORS, TaskOptions

    settings = {name: given[name] for name in _SETTINGS if given[name] not in (None, ())}
    for name, key in (("better", "better"), ("unit", "units")):
        if name in settings:
            settings[key] = dict(settings.pop(name))
    if "train" in settings and train_elmo is not None:
        settings["train_elmo"] = train_elmo.path
    elif task in DOWNSTREAM and origin is not None and origin.kind == "source":
        settings["elmo"] = origin.path
    settings |= dict(given["extra"])
    with usage_errors():
        make = EVALUATORS.get(task)
        evaluator: Evaluator = make(
            TaskOptions(
                data=given["data"],
                seed=given["seed"],
                batch_size=given["batch_size"],
                max_examples=given["max_examples"],
                timeout=given["timeout"],
                device=device,
                threads=threads,
                settings=settings,
                listen=listen,
            )
        )
    with evaluator as opened:
        yield opened


def run_evaluation(
    run: Run,
    given: Mapping[str, Any],
    paths: Sequence[str],
    *,
    baseline: str | None,
    device: str,
    threads: int | None,
) -> "Evaluated":
    """Score models as the options say.

    Parameters
    ----------
    given : mapping
        The parameters of `task_options`.
    paths : sequence of str
        ``PATH`` or ``NAME=PATH``.
    baseline : str, optional
        The same, of the model that they are compared with.
    """
    from ckptshrink.evaluation.run import evaluate
    from ckptshrink_cli import progress

    task = required_task(given)
    first = subjects_of([baseline], task=task)[0] if baseline is not None else None
    subjects = subjects_of(paths, task=task)
    note = not_its_source(subjects, first)
    if note is not None:
        run.say(note)
    with progress.shown(run) as listen:
        nested = progress.Nested(listen)
        with evaluator_of(
            task, given, device=device, threads=threads, listen=nested.inside, origin=first,
            train_elmo=first or subjects[0],
        ) as evaluator:  # fmt: skip
            return evaluate(
                task, evaluator, subjects, baseline=first, seed=given["seed"], listen=nested.jobs
            )


def not_its_source(subjects: "Sequence[Subject]", baseline: "Subject | None") -> str | None:
    """Return what is to be said where the baseline is not what an artefact was made from."""
    if baseline is None or baseline.kind != "source":
        return None
    others = [s.name for s in subjects if s.source_sha256 not in (None, baseline.sha256)]
    if not others:
        return None
    return f"note: {', '.join(others)} was not made from {baseline.name}"
