"""What an evaluator is, what it is made from, and which there are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, TypeVar

from ckptshrink.evaluation.examples import Examples
from ckptshrink.evaluation.metrics import Metric
from ckptshrink.evaluation.subjects import Subject
from ckptshrink.events import Listener, silent
from ckptshrink.registry import Registry

EVALUATORS: Final = Registry(
    "task",
    {
        "lm": "ckptshrink.evaluation.perplexity:evaluator",
        "sst5": "ckptshrink.evaluation.downstream.tasks:sst5",
        "snli": "ckptshrink.evaluation.downstream.tasks:snli",
        "squad": "ckptshrink.evaluation.downstream.tasks:squad",
        "command": "ckptshrink.evaluation.command:evaluator",
    },
    "ckptshrink.evaluators",
)
"""Tasks by name; each is a function from `TaskOptions` to an `Evaluator`."""


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """What an evaluator is made from.

    Attributes
    ----------
    data : Path or None
        The text or the examples.
    seed : int
        Of every random choice.
    batch_size : int or None
        None is the task's own.
    max_examples : int or None
        Only the first so many of the data.
    timeout : float or None
        Seconds that scoring one model may take.
    device : str
        ``auto``, ``cpu`` or ``cuda``.
    threads : int or None
        CPU threads.
    settings : mapping
        What one task has and others have not, by the name of its option without dashes in front:
        ``{"vocab": Path("vocab.txt")}``. An evaluator refuses what it does not know.
    listen : callable
        Told, while a model is scored, how much of the data is done.
    """

    data: Path | None = None
    seed: int = 0
    batch_size: int | None = None
    max_examples: int | None = None
    timeout: float | None = None
    device: str = "auto"
    threads: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    listen: Listener = silent


@dataclass(frozen=True, slots=True)
class Data:
    """What models were scored on.

    Attributes
    ----------
    name : str
        Of the file.
    sha256 : str
        Of its content.
    nbytes : int
    """

    name: str
    sha256: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Scores:
    """What an evaluator found out about one model.

    Attributes
    ----------
    metrics : tuple of Metric
        At least one; names are unique.
    examples : Examples or None
    n_params : int or None
        Parameters of everything that ran, where that is more than the checkpoint: a task's model
        with the ELMo in it.
    notes : tuple of str
        What a reader of the numbers is to know.
    """

    metrics: tuple[Metric, ...]
    examples: Examples | None = None
    n_params: int | None = None
    notes: tuple[str, ...] = ()


class Evaluator(Protocol):
    """One task, set up once, that scores any number of models; a context manager.

    Making it checks everything that does not depend on the model and raises
    `EvaluationInputError` for what the user has to mend.
    """

    @property
    def data(self) -> Data | None:
        """Return what models are scored on."""

    @property
    def protocol(self) -> Mapping[str, Any]:
        """Return, as JSON, all that must be alike for two scores to be comparable."""

    @property
    def environment(self) -> Mapping[str, str]:
        """Return versions of what does the scoring."""

    def score(self, subject: Subject) -> Scores:
        """Score a model, from its file.

        Raises
        ------
        EvaluationError
            It crashed, took too long, or what came out makes no sense. The rest can go on.
        CheckpointError, EvaluationInputError
            The model is not one that this task can score.
        """

    def __enter__(self) -> "Evaluator":
        """Return itself."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go of processes and temporary files."""


Itself = TypeVar("Itself", bound="HoldsNothing")


class HoldsNothing:
    """The context of an evaluator that has nothing open from one model to the next."""

    __slots__ = ()

    def __enter__(self: Itself) -> Itself:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Do nothing."""
