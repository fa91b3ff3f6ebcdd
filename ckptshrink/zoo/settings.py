"""What a zoo file may say: ``zoo.toml``, its keys, and what is wrong with one.

::

    out = "small"

    [defaults]
    target = "Wh"
    rank = 400

    [[model]]
    path = "elmo/**/*.hdf5"

    [[model]]
    path = ["awd/*.pt", "hf://someone/lm/model.safetensors"]
    budget = "25MB"

    [model.tasks.lm]
    data = "test.txt"
    vocab = "vocab.txt"

    [model.gate.metrics.ppl]
    max_rise = "2%"
    reason = "what the keyboard team can live with"

Relative paths are looked for from the folder of the file.
"""

import difflib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, WithJsonSchema

from ckptshrink.errors import PlanError, printable
from ckptshrink.plan import Frozen, Grouping, StoredDtype

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_MOST_BYTES: Final = 16 << 20

SIZES: Final = ("rank", "ratio", "energy", "max_error", "budget")
"""How far a model is compressed: one of them."""


def _several(value: Any) -> Any:
    """Return one text or several as several."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list | tuple) and all(isinstance(each, str) for each in value):
        return tuple(value)
    raise ValueError("is neither a text nor a list of texts")


_TEXT: Final = {"type": "string"}

Texts = Annotated[
    tuple[str, ...],
    BeforeValidator(_several),
    WithJsonSchema({"anyOf": [_TEXT, {"type": "array", "items": _TEXT}]}),
]


class Task(Frozen):
    """A task that the model and its source are scored on; see `docs/evaluation.md`.

    `options` are the settings of an installed task; the rest is named as on the command line.
    """

    task: str | None = Field(None, description="lm, sst5, ...; by default the name of the table")
    data: str | None = Field(None, description="the text, or the examples")
    max_examples: int | None = Field(None, ge=1)
    batch_size: int | None = Field(None, ge=1)
    timeout: float | None = Field(None, gt=0, description="seconds, for one model")
    seed: int = Field(0, ge=0)
    vocab: str | None = None
    train_text: Texts | None = None
    splits: tuple[int, ...] | None = None
    unk: str | None = None
    eos: str | None = None
    archive: str | None = None
    python: str | None = None
    overrides: str | None = Field(None, description="JSON")
    command: str | None = None
    better: dict[str, Literal["higher", "lower"]] | None = None
    units: dict[str, str] | None = None
    options: dict[str, Any] = Field(default_factory=dict)


class Recipe(Frozen):
    """What is done with a model. Every key may stand in ``[defaults]`` and in a ``[[model]]``."""

    target: Texts | None = Field(None, description="as --target: 'Wh', or 'Wi:rank=10'")
    rank: int | None = Field(None, ge=1)
    ratio: float | None = Field(None, gt=0, le=1)
    energy: float | None = Field(None, gt=0, le=1)
    max_error: float | None = Field(None, ge=0, lt=1)
    budget: str | int | float | None = Field(None, description="'25MB', or a share of the source")
    method: str | None = None
    grouping: Grouping | None = None
    dtype: StoredDtype | None = None
    keep: Texts | None = Field(None, description="globs on names of tensors that stay as they are")
    exact: bool | None = None
    nonnegative: Literal["output", "input"] | None = None
    solver: Literal["closed", "ding"] | None = None
    iterations: int | None = Field(None, ge=1)
    nonfinite: Literal["refuse", "copy"] | None = None
    use_averaged: bool | None = None
    allow_inflate: bool | None = None
    seed: int | None = Field(None, ge=0)
    strict: bool | None = None
    max_shard_size: str | int | None = None
    tasks: dict[str, Task] | None = None
    gate: dict[str, Any] | None = Field(None, description="a [gate] table, see docs/ci.md")


class Model(Recipe):
    """One or many checkpoints, and what is done with them where it differs from the defaults."""

    path: Texts = Field(
        min_length=1, description="a checkpoint, a folder, a glob, or a URL of one of these"
    )
    exclude: Texts | None = Field(None, description="globs on what a glob finds")
    into: str | None = Field(None, description="folder of the output in which they are put")


class Zoo(Frozen):
    """A zoo file."""

    out: str | None = Field(None, description="the folder, or its URL, that everything goes to")
    defaults: Recipe = Recipe()
    model: tuple[Model, ...] = Field(min_length=1)


def read_zoo(path: Path) -> Zoo:
    """Read a zoo file.

    Raises
    ------
    PlanError
        It can't be read, is no TOML, or says what can't be; every wrong key is an issue of the
        error, with what is close to it.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise PlanError("is too large for a zoo file", path=path)
        document = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise PlanError(f"can't be read: {error.strerror}", path=path) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PlanError(f"is no TOML: {printable(str(error))}", path=path) from error
    try:
        zoo = Zoo.model_validate(document)
    except ValidationError as error:
        issues = tuple(_issues(error))
        hint = "see docs/batch.md, or: ckptshrink batch --schema"
        raise PlanError(_summary(issues), path=path, issues=issues, hint=hint) from error
    issues = tuple(_contradictions(zoo))
    if issues:
        raise PlanError(_summary(issues), path=path, issues=issues)
    return zoo


def merged(defaults: Recipe, model: Model) -> Recipe:
    """Return what holds for a model: its own keys, and those of the defaults that it lacks.

    A model that says how far it is compressed has none of the defaults' ways of saying that.
    `tasks` and `gate` are replaced whole.
    """
    own = {name: getattr(model, name) for name in Recipe.model_fields if _given(model, name)}
    sized = any(name in own for name in SIZES)
    taken = {
        name: getattr(defaults, name)
        for name in Recipe.model_fields
        if _given(defaults, name) and not (sized and name in SIZES)
    }
    return Recipe.model_construct(**taken | own)


def _given(recipe: Recipe, name: str) -> bool:
    return name in recipe.model_fields_set and getattr(recipe, name) is not None


def _contradictions(zoo: Zoo) -> Iterator[str]:
    """Yield what no key says alone."""
    places = [("defaults", zoo.defaults)]
    places += [(_model_place(number), model) for number, model in enumerate(zoo.model)]
    for place, recipe in places:
        sizes = [name for name in SIZES if _given(recipe, name)]
        if len(sizes) > 1:
            yield f"{place}: give one of {', '.join(sizes)}"
    for number, model in enumerate(zoo.model):
        place, recipe = _model_place(number), merged(zoo.defaults, model)
        if not recipe.target:
            yield f"{place}: has no target, and [defaults] neither"
        into = model.into
        if into is not None and (Path(into).is_absolute() or ".." in Path(into).parts or not into):
            yield f"{place}: into = {into!r} is no folder below the output"


def _issues(error: ValidationError) -> Iterator[str]:
    """Yield one line for each wrong key: where it is, what is wrong, and what is close."""
    seen: set[str] = set()
    found = error.errors()
    for issue in found:
        # a union says of each of its kinds what is wrong with it, by the name of the kind
        loc = [part for part in issue["loc"] if part not in {"str", "int", "float"}]
        if issue["type"] == "too_short" and len(found) > 1:
            continue  # of models, and there are wrong ones
        *outer, key = loc or ["file"]
        place = _place(outer)
        if issue["type"] == "extra_forbidden":
            known = _known(outer)
            close = difflib.get_close_matches(str(key), known, n=1)
            meant = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
            line = f"{place}: unknown key {printable(str(key))!r}; {meant}"
        elif issue["type"] == "missing":
            line = f"{place}: has no {'[[model]]' if key == 'model' else key}"
        else:
            line = f"{place}: {printable(str(key))}: {_readable(issue['msg'])}"
        if line not in seen:
            seen.add(line)
            yield line


def _readable(message: str) -> str:
    message = message.removeprefix("Value error, ").removeprefix("Input ")
    return message[:1].lower() + message[1:]


def _place(outer: Iterable[Any]) -> str:
    parts = list(outer)
    if not parts:
        return "the file"
    if parts[0] == "model" and len(parts) > 1 and isinstance(parts[1], int):
        return ".".join([_model_place(parts[1]), *map(printable, map(str, parts[2:]))])
    return ".".join(map(printable, map(str, parts)))


def _model_place(number: int) -> str:
    return f"[[model]] {number + 1}"


def _known(outer: Iterable[Any]) -> list[str]:
    """Return the keys that a table may have, by where it stands."""
    kind: type[BaseModel] = Zoo
    for part in outer:
        if part == "model":
            kind = Model
        elif part == "defaults":
            kind = Recipe
        elif part == "tasks":
            kind = Task
    return list(kind.model_fields)


def _summary(issues: tuple[str, ...]) -> str:
    if len(issues) == 1:
        return issues[0]
    return f"{len(issues)} things in it can't be"
