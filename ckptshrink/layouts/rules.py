"""What a layout file says: the rules by which names of a model family become gate matrices.

The TOML keys of a table are the attributes of its class here, with a `Pattern` spelled out as
`leaf`, `scope` and `wrapper`. `layout_files` reads them, `name_match` matches names, `cells` and
`layouts` put together what matched.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

NO_ROLE: Final = "none"
"""Role in a matrix rule that says: two-dimensional, and still no matrix (a bias, a norm)."""

JOINT: Final = "joint"
"""Part of a cell rule whose tensor packs Wi and Wh."""

BIAS: Final = "bias"
"""Part of a cell rule that is no matrix, though it may have two rows (GRU with `reset_after`)."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """Which names a rule is for.

    A name is split at ``.`` and ``/`` into components; patterns write ``/`` for either. `leaf` must
    match the whole last component, `scope` whole components before it, as many as it can; what
    comes before those is the prefix, and may be anything. No quantifier may repeat a ``/``.

    Attributes
    ----------
    leaf : compiled pattern
    scope : compiled pattern or None
        For components that each end in ``/``; None where the leaf alone decides.
    depth : int
        The most components that `scope` can match.
    """

    leaf: re.Pattern[str]
    scope: re.Pattern[str] | None
    depth: int


@dataclass(frozen=True, slots=True)
class Kind:
    """A cell type and its gate order. A cell without gates has one block of rows.

    Attributes
    ----------
    cell, gates : str
    input_gates : str
        Gate order of the input weight, where it has others than the recurrent one.
    """

    cell: str
    gates: str
    input_gates: str = ""

    @property
    def blocks(self) -> int:
        """Rows of a recurrent weight over hidden size."""
        return max(1, len(self.gates))

    @property
    def input_blocks(self) -> int:
        """Rows of an input weight over hidden size."""
        return len(self.input_gates) or self.blocks

    def gates_of(self, role: str) -> str:
        """Return the gate order of a weight of a role."""
        return (role == "Wi" and self.input_gates) or self.gates


@dataclass(frozen=True, slots=True)
class Mark:
    """A name by which a layout is known. TOML: ``[[marks]]``.

    Attributes
    ----------
    pattern : Pattern
    wide : bool
        Whether the tensor must have more columns than rows. By that GPT-2's ``c_attn``, stored as
        (inputs, 3 outputs), is told from the Linear that other models have under the same name.
    """

    pattern: Pattern
    wide: bool


@dataclass(frozen=True, slots=True)
class CellRule:
    """Which tensors make a recurrent cell. TOML: ``[[cells]]``.

    Tensors that agree in prefix, `list`, `layer`, `direction`, `group`, `cell` and `gate` (named
    groups of the pattern) are one cell; the group `part` says which weight, the group `raw` that a
    weight wins over its copy. With a group `gate` every gate has matrices of its own.

    Attributes
    ----------
    pattern : Pattern
        With ``wrapper = "module"`` one more component of that name may stand before the leaf.
    parts : mapping of str to str
        What the group `part` (``""`` where it is absent) stands for: Wi, Wh, P, joint or bias.
    kinds : tuple of Kind
        The cell type is the one whose blocks are rows / hidden size.
    directions : mapping of str to str
        What the group `direction` stands for; forward where it is absent.
    numbering : str
        ``"name"``: the group `list` is the layer; ``"order"``: cells of a list are counted;
        ``"model"``: all cells of the model are counted, in stored order.
    transposed : bool
        Whether tensors are stored as (inputs, outputs).
    forget_bias : float
    needs_raw : bool
        Whether only cells with a `raw` weight are meant.
    needs_recurrent : bool
        Whether only cells with a Wh are meant: other layers name their weights alike.
    suspect : str
        Where the names are no proof: why weights whose shapes are those of a cell look recurrent.
        They get no role, and others that the rule matches are let be.
    halves : bool
        Whether a joint weight takes as many recurrent values as inputs, whatever its gates have:
        the projection that makes them is that of all groups of a cell.
    """

    pattern: Pattern
    parts: Mapping[str, str]
    kinds: tuple[Kind, ...]
    directions: Mapping[str, str]
    numbering: str
    transposed: bool
    forget_bias: float
    needs_raw: bool
    needs_recurrent: bool
    suspect: str
    halves: bool


@dataclass(frozen=True, slots=True)
class MatrixRule:
    """The role of a matrix outside recurrent cells. TOML: ``[[matrices]]``."""

    pattern: Pattern
    role: str
    transposed: bool


@dataclass(frozen=True, slots=True)
class CopyRule:
    """A tensor that repeats another one, `of`, under the same prefix. TOML: ``[[copies]]``."""

    pattern: Pattern
    of: str


@dataclass(frozen=True, slots=True)
class ListRule:
    """A list that repeats the weights of its module in a known order. TOML: ``[[lists]]``.

    Attributes
    ----------
    pattern : Pattern
        Its group `index` is the place in the list.
    order : tuple of str
        Names within the module, for every layer and direction: ``"weight_ih_l{layer}{direction}"``.
    directions : tuple of str
        What stands for ``{direction}``, in order.
    raw : str
        Suffix of the weight that wins over a plain name.
    """

    pattern: Pattern
    order: tuple[str, ...]
    directions: tuple[str, ...]
    raw: str


@dataclass(frozen=True, slots=True)
class KeepRule:
    """Tensors that look like weights and are none to compress. TOML: ``[[keeps]]``.

    Attributes
    ----------
    pattern : Pattern
    reason : str
        Why, for the row of the tensor.
    note : str
        What the user should know of a checkpoint that has them, said once; may be empty.
    """

    pattern: Pattern
    reason: str
    note: str


@dataclass(frozen=True, slots=True)
class DropRule:
    """Tensors that are no part of the model. TOML: ``[[drops]]``, by pattern or by `head`."""

    pattern: Pattern | None
    head: re.Pattern[str] | None
    reason: str


@dataclass(frozen=True, slots=True)
class RecurrentRule:
    """Names that look recurrent, whatever stands beside them. TOML: ``[[recurrent]]``."""

    pattern: Pattern
    why: str


@dataclass(frozen=True, slots=True)
class Tokens:
    """Words in a name that make it look recurrent, and words that excuse it. TOML: ``[tokens]``."""

    recurrent: re.Pattern[str]
    exempt: frozenset[str]
    exempt_component: re.Pattern[str]


@dataclass(frozen=True, slots=True)
class Layout:
    """One layout file.

    Attributes
    ----------
    family : str
        For display.
    priority : int
        Layouts are tried in ascending order; the first that claims a tensor has it.
    about : str
        What writes such files.
    model_types : tuple of str
        What ``config.json`` calls the models that have these names.
    marks : tuple of Mark
        The layout is tried only where a name matches one of them; always, where there are none.
    cells, matrices, copies, lists, keeps, drops, recurrent
        Rules. Those for matrices hold only where the layout's marks or cells were found.
    tokens : Tokens or None
    """

    family: str
    priority: int
    about: str
    model_types: tuple[str, ...]
    marks: tuple[Mark, ...]
    cells: tuple[CellRule, ...]
    matrices: tuple[MatrixRule, ...]
    copies: tuple[CopyRule, ...]
    lists: tuple[ListRule, ...]
    keeps: tuple[KeepRule, ...]
    drops: tuple[DropRule, ...]
    recurrent: tuple[RecurrentRule, ...]
    tokens: Tokens | None
