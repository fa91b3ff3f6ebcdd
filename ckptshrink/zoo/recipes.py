"""From the keys of a zoo file to what compression, tasks and gate take; and their hashes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from ckptshrink.digest import value_sha256
from ckptshrink.errors import PlanError
from ckptshrink.evaluation.evaluator import EVALUATORS
from ckptshrink.evaluation.gate.table import gate_of_table
from ckptshrink.evaluation.gate.verdict import Rule
from ckptshrink.evaluation.gate.verdict import Settings as GateSettings
from ckptshrink.evaluation.task_settings import DOWNSTREAM, TASKS_OF_SETTING
from ckptshrink.linalg.methods import METHODS
from ckptshrink.plan import Settings
from ckptshrink.planning.request import (
    Request,
    Size,
    Target,
    parse_budget,
    parse_target,
)
from ckptshrink.zoo.settings import SIZES, Recipe, Task

_FILES: Final = ("vocab", "train_text", "archive")
"""Settings of a task that name files, which its hash is of as well."""

_COMMON: Final = frozenset(
    {"task", "data", "max_examples", "batch_size", "timeout", "seed", "options"}
)


@dataclass(frozen=True, slots=True)
class Compression:
    """How a model is compressed.

    Attributes
    ----------
    request : Request
    strict : bool
    max_shard_bytes : int or None
        None is the default.
    """

    request: Request
    strict: bool = False
    max_shard_bytes: int | None = None

    @property
    def sha256(self) -> str:
        """Return the hash of everything that the artefact depends on, beside its source."""
        request = asdict(self.request) | {"settings": self.request.settings.model_dump(mode="json")}
        return value_sha256([request, self.strict, self.max_shard_bytes])


@dataclass(frozen=True, slots=True)
class Scoring:
    """One task that a model and its source are scored on.

    Attributes
    ----------
    name : str
        Of its table.
    task : str
        Which evaluator.
    data : Path or None
    settings : mapping
        As of `TaskOptions`.
    """

    name: str
    task: str
    data: Path | None
    max_examples: int | None
    batch_size: int | None
    timeout: float | None
    seed: int
    settings: Mapping[str, Any]

    @property
    def is_downstream(self) -> bool:
        """Whether its model must have been trained over the very ELMo that is compressed."""
        return self.task in DOWNSTREAM

    @property
    def files(self) -> tuple[Path, ...]:
        """Return the files that scores depend on."""
        found = [] if self.data is None else [self.data]
        for name in _FILES:
            value = self.settings.get(name, ())
            found += [value] if isinstance(value, Path) else value
        return tuple(found)

    def sha256(self, hashes: Mapping[Path, str]) -> str:
        """Return the hash of everything that scores depend on, beside the model.

        Parameters
        ----------
        hashes : mapping of Path to str
            SHA-256 of each of `files`.
        """
        settings = {k: v for k, v in self.settings.items() if k not in _FILES}
        files = [[path.name, hashes[path]] for path in self.files]
        numbers = [self.max_examples, self.batch_size, self.seed]
        # as text, since the settings of an installed task may be anything that TOML has
        return value_sha256([self.task, numbers, files, sorted(map(repr, settings.items()))])


@dataclass(frozen=True, slots=True)
class Gate:
    """What the gate allows."""

    rules: tuple[Rule, ...]
    settings: GateSettings

    @property
    def sha256(self) -> str:
        """Return the hash of what is allowed."""
        rules = [rule.model_dump(mode="json") for rule in self.rules]
        return value_sha256([rules, self.settings.model_dump(mode="json")])


@dataclass(frozen=True, slots=True)
class Work:
    """Everything that is done with a model."""

    compression: Compression
    scorings: tuple[Scoring, ...] = field(default=())
    gate: Gate | None = None


def work_of(recipe: Recipe, folder: Path) -> Work:
    """Return what a recipe asks for.

    Parameters
    ----------
    folder : Path
        Relative paths are looked for from here.

    Raises
    ------
    PlanError, EvaluationInputError
        Something in it can't be.
    """
    tasks = recipe.tasks or {}
    scorings = tuple(_scoring(name, task, folder) for name, task in tasks.items())
    gate = None
    if recipe.gate is not None:
        gate = Gate(*gate_of_table(recipe.gate))
        metrics = [rule.metric for rule in gate.rules if rule.kind != "max_size"]
        if metrics and not scorings:
            raise PlanError(f"the gate has a rule for {metrics[0]!r}, and there are no tasks")
        if not gate.rules and not scorings:
            raise PlanError("the gate has no rule, and there are no tasks")
    return Work(_compression(recipe), scorings, gate)


def _compression(recipe: Recipe) -> Compression:
    targets = tuple(map(_target, recipe.target or ()))
    sizes = {name: getattr(recipe, name) for name in SIZES if getattr(recipe, name) is not None}
    budget = sizes.pop("budget", None)
    plain = {
        name: getattr(recipe, name)
        for name in ("method", "grouping", "dtype", "keep")
        if getattr(recipe, name) is not None
    }
    if "method" in plain:
        _check_method(plain["method"])
    settings = {
        name: getattr(recipe, name)
        for name in Settings.model_fields
        if getattr(recipe, name) is not None
    }
    shard = recipe.max_shard_size
    return Compression(
        Request(
            targets=targets,
            size=Size(**sizes) if sizes else None,
            budget=None if budget is None else parse_budget(str(budget)),
            settings=Settings(**settings),
            **plain,
        ),
        strict=bool(recipe.strict),
        max_shard_bytes=None if shard is None else _nbytes(shard),
    )


def _target(text: str) -> Target:
    target = parse_target(text)
    if target.method is not None:
        _check_method(target.method)
    return target


def _check_method(name: str) -> None:
    METHODS.check(name)


def _nbytes(size: str | int) -> int:
    nbytes = int(parse_budget(str(size)))
    if nbytes < 2:
        raise PlanError(f"max_shard_size = {size!r} is no size in bytes", hint="for instance '5GB'")
    return nbytes


def _scoring(name: str, table: Task, folder: Path) -> Scoring:
    task = table.task or name
    EVALUATORS.check(task)
    given = {
        key: getattr(table, key)
        for key in Task.model_fields
        if key not in _COMMON and getattr(table, key) is not None
    }
    for key in given:
        tasks = TASKS_OF_SETTING[key]
        if task not in tasks:
            raise PlanError(
                f"tasks.{name}: {key} goes with {', '.join(tasks)}, and not with {task}"
            )
    settings: dict[str, Any] = dict(given)
    for key in _FILES:
        if key in settings:
            value = settings[key]
            one = isinstance(value, str)
            settings[key] = folder / value if one else tuple(folder / each for each in value)
    return Scoring(
        name=name,
        task=task,
        data=None if table.data is None else folder / table.data,
        max_examples=table.max_examples,
        batch_size=table.batch_size,
        timeout=table.timeout,
        seed=table.seed,
        settings=settings | table.options,
    )
