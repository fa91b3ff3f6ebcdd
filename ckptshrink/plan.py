"""A plan: what happens to every tensor of a checkpoint. Frozen, hashed, an editable JSON file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ckptshrink.digest import value_sha256
from ckptshrink.errors import PlanError
from ckptshrink.tensors import TensorRef

PLAN_SCHEMA_VERSION: Final = 1

Action = Literal["factorize", "keep", "tied", "copy", "drop"]
"""What happens to a tensor.

``factorize``
    its matrix is replaced by what the method stores;
``keep``
    its bytes are carried over;
``tied``
    the very same elements as an earlier tensor: listed, stored once;
``copy``
    repeats a compressed weight (a dropout-masked copy): not stored, rebuilt from that weight;
``drop``
    no part of the model (optimizer state): not stored.
"""

Grouping = Literal["stacked", "per-gate"]
StoredDtype = Literal["keep", "float16", "bfloat16"]

DTYPE_CODES: Final[dict[str, str]] = {"float16": "F16", "bfloat16": "BF16"}


NOT_TARGETED: Final = "not targeted"
"""Reason of a matrix that stays dense because nothing asked for it."""


class Frozen(BaseModel):
    """Base of every value that is written to a file: immutable, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Settings(Frozen):
    """What holds for a whole run, beside the choices made per matrix."""

    exact: bool = Field(False, description="SVD in float64, optimal to rounding")
    nonnegative: Literal["output", "input"] = Field(
        "output", description="side of W (rows are outputs) whose Semi-NMF factor has no sign"
    )
    solver: Literal["closed", "ding"] = Field("closed", description="Semi-NMF solver")
    iterations: int = Field(100, ge=1, description="updates of the ding solver")
    nonfinite: Literal["refuse", "copy"] = Field(
        "refuse", description="what to do with a matrix that holds NaN or infinity"
    )
    use_averaged: bool = Field(False, description="take the optimizer's ASGD averages as weights")
    allow_inflate: bool = Field(False, description="factorize also where that stores more bytes")
    seed: int = Field(0, ge=0, description="seed of every random choice")


class PlanItem(Frozen):
    """What happens to one matrix, or to one tensor that is no matrix.

    `name` is the tensor's, or ``T.Wh`` for a part of a packed tensor T. A user may edit `action`
    (``keep`` or ``factorize``), `method`, `rank`, `grouping` and `dtype`; the rest follows.
    """

    name: str
    action: Action
    method: str | None = None
    rank: int | None = Field(None, ge=1)
    grouping: Grouping = "stacked"
    dtype: StoredDtype = "keep"
    reason: str = ""
    role: str | None = None
    layer: int | None = None
    shape: tuple[int, ...] = ()
    n_params_before: int = 0
    n_params_after: int = 0
    nbytes_before: int = 0
    nbytes_after: int = 0
    predicted_rel_error: float | None = None
    max_rel_error: float | None = Field(None, description="a run that exceeds it is refused")
    of: str | None = Field(None, description="the tensor that a tied or copied one repeats")

    def decision(self) -> dict[str, Any]:
        """Return what a run does with the item, without what was predicted or explained."""
        if self.action != "factorize":
            return {"name": self.name, "action": self.action, "of": self.of}
        keys = {"name", "action", "method", "rank", "grouping", "dtype", "max_rel_error"}
        return self.model_dump(mode="json", include=keys)


class Plan(Frozen):
    """Every tensor of a checkpoint and its fate, in stored order.

    Attributes
    ----------
    index_sha256 : str
        Hash of the names, shapes and dtypes that the plan is for. A checkpoint of the same
        architecture fits the same plan.
    """

    schema_version: Literal[1] = PLAN_SCHEMA_VERSION
    source: str = Field("", description="file name of the checkpoint that was planned")
    format: str = ""
    family: str = ""
    index_sha256: str
    settings: Settings = Settings()
    items: tuple[PlanItem, ...]
    digest: str = Field("", description="hash of the decisions, as planned")

    def decisions_sha256(self) -> str:
        """Return the hash of everything that a run depends on."""
        return value_sha256(
            {
                "schema_version": self.schema_version,
                "index_sha256": self.index_sha256,
                "settings": self.settings.model_dump(mode="json"),
                "items": [item.decision() for item in self.items],
            }
        )

    def sealed(self) -> "Plan":
        """Return the plan with its digest filled in."""
        return self.model_copy(update={"digest": self.decisions_sha256()})

    def to_json(self) -> str:
        """Return the plan as indented JSON, one item a block, ending in a newline."""
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"

    @property
    def totals(self) -> dict[str, int]:
        """Return parameters and payload bytes before and after; tied weights count once."""
        counted = [item for item in self.items if item.action in {"factorize", "keep"}]
        return {
            key: sum(getattr(item, key) for item in counted)
            for key in ("n_params_before", "n_params_after", "nbytes_before", "nbytes_after")
        }


def index_sha256(tensors: Mapping[str, TensorRef]) -> str:
    """Return the hash of a checkpoint's names, shapes and dtypes."""
    return value_sha256([[ref.name, list(ref.shape), ref.dtype] for ref in tensors.values()])


def read_plan(path: Path) -> Plan:
    """Read a plan from its JSON file.

    Raises
    ------
    PlanError
        Not readable, not JSON, or not a plan; every wrong field is an issue of the error.
    """
    try:
        return Plan.model_validate_json(path.read_bytes())
    except OSError as error:
        raise PlanError(f"can't be read: {error.strerror}", path=path) from error
    except ValidationError as error:
        raise PlanError(
            "is not a plan this version can run",
            path=path,
            hint="write one with: ckptshrink plan CHECKPOINT --target Wh --rank 10 -o plan.json",
            issues=issues_of(error),
        ) from error


def issues_of(error: ValidationError) -> list[str]:
    """Return one line per wrong field: where it is and what is wrong with it."""
    return [
        f"{'.'.join(map(str, issue['loc'])) or 'file'}: {issue['msg']}" for issue in error.errors()
    ]
