"""Put the weights of a recurrent cell together: its layer, its gates, its parts of a tensor."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from ckptshrink.errors import LayoutError
from ckptshrink.gates import GateLayout, GateMatrix, Part
from ckptshrink.layouts.names import Hit
from ckptshrink.layouts.rules import BIAS, JOINT, CellRule, Kind
from ckptshrink.tensors import TensorRef

HINT: Final = "compress other tensors by name, or describe the cell in a layout file"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a cell stands: its prefix, and what the groups of its layout's pattern took."""

    prefix: str
    list: str
    layer: str
    direction: str
    group: str = ""
    cell: str = ""
    gate: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """The stored weights of one layer and direction.

    Attributes
    ----------
    rule : CellRule
    place : Place
    weights : mapping of str to TensorRef
        By Wi, Wh, P, joint or bias; the raw weight where there is one.
    copies : mapping of str to str
        Names that a raw weight wins over, and its name.
    """

    rule: CellRule
    place: Place
    weights: Mapping[str, TensorRef]
    copies: Mapping[str, str]


def gather_cells(claims: Iterable[tuple[TensorRef, str, Hit[CellRule]]]) -> list[Cell]:
    """Return the cells that tensors belong to.

    Parameters
    ----------
    claims : iterable of (TensorRef, parent, Hit)
        A tensor, the path before its last component, and the rule that claims it.
    """
    slots: dict[tuple[int, Place], dict[str, dict[bool, TensorRef]]] = {}
    rules: dict[int, CellRule] = {}
    for ref, parent, hit in claims:
        role = hit.rule.parts.get(hit.groups.get("part", ""))
        if role is None:
            continue
        rules[id(hit.rule)] = hit.rule
        raw = "raw" in hit.groups
        keys = ("list", "layer", "direction", "group", "cell", "gate")
        groups = (hit.groups.get(key, "") for key in keys)
        place = Place(hit.prefix, *groups)
        if raw in slots.get((id(hit.rule), place), {}).get(role, {}):
            # x.weight_ih beside x.module.weight_ih: two modules, and not a wrapper and its content
            place = replace(place, prefix=parent)
        slots.setdefault((id(hit.rule), place), {}).setdefault(role, {})[raw] = ref
    cells = []
    for (key, place), by_role in slots.items():
        rule = rules[key]
        if rule.needs_raw and not any(True in refs for refs in by_role.values()):
            continue
        if rule.needs_recurrent and "Wh" not in by_role:
            continue
        weights = {role: refs.get(True) or refs[False] for role, refs in by_role.items()}
        copies = {
            refs[False].name: refs[True].name
            for refs in by_role.values()
            if len(refs) > 1 and refs[False].shape == refs[True].shape
        }
        cells.append(Cell(rule, place, weights, copies))
    return cells


def number_layers(cells: Sequence[Cell]) -> list[int]:
    """Return the layer of each cell, counted from 0 through its model or the modules of its list.

    A list of one-layer modules can number its cells by name (``rnns.2``); in a Sequential, where
    the numbers of other modules lie between, or with modules of several layers, they are counted.
    """
    counted = _count_in_model(cells)
    sizes: dict[tuple[int, str], dict[int, int]] = {}
    where: list[tuple[str, int | None, int]] = []
    for number, cell in enumerate(cells):
        if number in counted:
            where.append(("", None, counted[number]))
            continue
        inner = int(cell.place.layer or 0)
        base, position = _list_position(cell)
        where.append((base, position, inner))
        if position is not None:
            known = sizes.setdefault((id(cell.rule), base), {})
            known[position] = max(known.get(position, 0), inner + 1)
    offsets: dict[tuple[int, str], dict[int, int]] = {}
    for key, known in sizes.items():
        total = 0
        for position in sorted(known):
            offsets.setdefault(key, {})[position] = total
            total += known[position]
    layers = []
    for cell, (base, position, inner) in zip(cells, where, strict=True):
        key = (id(cell.rule), base)
        if position is None:
            layers.append(inner)
        elif cell.rule.numbering == "name" and max(sizes[key].values()) == 1:
            layers.append(position)
        else:
            layers.append(offsets[key][position] + inner)
    return layers


def _count_in_model(cells: Sequence[Cell]) -> dict[int, int]:
    """Return the layers of the cells that are counted through their model, by place in `cells`.

    The cells of one prefix are a stack. The two directions of a stack are layer by layer the same,
    whatever their cells are called.
    """
    stacks: dict[str, dict[str, dict[tuple[str, str], list[int]]]] = {}
    # cells that get no role come last, and take no number from those that do
    for number, cell in sorted(enumerate(cells), key=lambda item: bool(item[1].rule.suspect)):
        if cell.rule.numbering == "model":
            place = cell.place
            direction = stacks.setdefault(place.prefix, {}).setdefault(place.direction, {})
            direction.setdefault((place.cell, place.list), []).append(number)
    layers: dict[int, int] = {}
    before = 0
    for directions in stacks.values():
        for stack in directions.values():
            for layer, numbers in enumerate(stack.values(), before):
                layers |= dict.fromkeys(numbers, layer)
        before += max(len(stack) for stack in directions.values())
    return layers


def _list_position(cell: Cell) -> tuple[str, int | None]:
    """Return the list that a cell's module is in, by what is before and after the place, and that.

    The module is the list's own (``rnns.1``), or in one of a kind (``layers.1.lstm``).
    """
    prefix = cell.place.prefix
    if cell.place.list:
        return prefix, int(cell.place.list)
    if cell.rule.numbering == "order":
        _, above, last = ["", "", *prefix[:-1].rsplit("/", 2)][-3:]
        for at, after in ((last, ""), (above, last)):
            # longer numbers are ids and not places, and int() refuses very long ones
            if at.isascii() and at.isdigit() and len(at) < 5:
                base = prefix[: len(prefix) - len(f"{at}/{after}/" if after else f"{at}/")]
                return f"{base}#/{after}", int(at)
    return prefix, None


def matrices_of(cell: Cell, layer: int) -> list[GateMatrix]:
    """Return the gate matrices of a cell.

    Raises
    ------
    LayoutError
        A weight is missing, or shapes can't be those of one cell. Names a tensor and the shapes.
    """
    if JOINT in cell.rule.parts.values():
        return _joint(cell, layer)
    if "Wh" in cell.rule.parts.values():
        return _separate(cell, layer)
    if "Wi" in cell.rule.parts.values():
        return _input_only(cell, layer)
    # only the projection of the cell is a matrix of its own
    kind = cell.rule.kinds[0]
    return [_matrix(cell, layer, kind, role, ref) for role, ref in cell.weights.items()]


def _separate(cell: Cell, layer: int) -> list[GateMatrix]:
    rule = cell.rule
    given, recurrent, projection = (cell.weights.get(role) for role in ("Wi", "Wh", "P"))
    if given is None or recurrent is None:
        missing = "recurrent" if recurrent is None else "input"
        raise _alone(given or recurrent or next(iter(cell.weights.values())), missing)
    rows, n_recurrent = _outputs_inputs(recurrent, rule)
    n_given = _outputs_inputs(given, rule)[0]
    if all(n_given * kind.blocks != rows * kind.input_blocks for kind in rule.kinds):
        raise _differ(given, recurrent)
    hidden = n_recurrent
    if projection is not None:
        n_projected, hidden = _outputs_inputs(projection, rule)
        if n_projected != n_recurrent:
            raise LayoutError(
                f"shape {projection.shape} does not go with shape {recurrent.shape} of "
                f"{recurrent.name}: it gives {n_projected} values where {n_recurrent} are taken",
                tensor=projection.name,
                hint=HINT,
            )
    kind = _kind(recurrent, rule, rows, hidden)
    if n_given != kind.input_blocks * hidden:
        raise _differ(given, recurrent)
    bias = cell.weights.get(BIAS)
    if bias is not None and bias.shape != (2, rows):
        raise LayoutError(
            f"shape {bias.shape} does not go with shape {recurrent.shape} of {recurrent.name}: "
            f"a bias for each of its products is (2, {rows})",
            tensor=bias.name,
            hint=HINT,
        )
    made = [_matrix(cell, layer, kind, "Wi", given), _matrix(cell, layer, kind, "Wh", recurrent)]
    if projection is not None:
        made.append(_matrix(cell, layer, kind, "P", projection))
    return made


def _joint(cell: Cell, layer: int) -> list[GateMatrix]:
    rule = cell.rule
    joint, projection = cell.weights.get(JOINT), cell.weights.get("P")
    if joint is None:
        raise _alone(next(iter(cell.weights.values())), "gate")
    rows, columns = _outputs_inputs(joint, rule)
    if projection is None:
        hidden = rows // rule.kinds[0].blocks
        n_recurrent = columns // 2 if rule.halves else hidden
    else:
        n_recurrent, hidden = _outputs_inputs(projection, rule)
    kind = _kind(joint, rule, rows, hidden)
    n_inputs = columns - n_recurrent
    if n_inputs < 1 or n_recurrent < 1:
        raise LayoutError(
            f"shape {joint.shape} can't hold an input beside the {n_recurrent} recurrent values",
            tensor=joint.name,
            hint=HINT,
        )
    axis = 0 if rule.transposed else 1  # of the inputs, along which [x; h] are packed
    made = [
        _matrix(cell, layer, kind, "Wi", joint, Part(axis, 0, n_inputs)),
        _matrix(cell, layer, kind, "Wh", joint, Part(axis, n_inputs, columns)),
    ]
    if projection is not None:
        made.append(_matrix(cell, layer, kind, "P", projection))
    return made


def _input_only(cell: Cell, layer: int) -> list[GateMatrix]:
    weight = cell.weights["Wi"]
    kind = cell.rule.kinds[0]
    rows = _outputs_inputs(weight, cell.rule)[0]
    if rows < 1 or rows % kind.blocks:
        raise LayoutError(
            f"shape {weight.shape} is of no {kind.cell}: {rows} outputs for {kind.blocks} gates",
            tensor=weight.name,
            hint=HINT,
        )
    return [_matrix(cell, layer, kind, "Wi", weight)]


def _differ(given: TensorRef, recurrent: TensorRef) -> LayoutError:
    return LayoutError(
        f"shape {recurrent.shape} does not go with shape {given.shape} of {given.name}: "
        "their gates differ in size",
        tensor=recurrent.name,
        hint=HINT,
    )


def _alone(ref: TensorRef, missing: str) -> LayoutError:
    return LayoutError(
        f"shape {ref.shape}, and its cell has no {missing} weight", tensor=ref.name, hint=HINT
    )


def _kind(ref: TensorRef, rule: CellRule, rows: int, hidden: int) -> Kind:
    """Return the kind whose gates of this hidden size make these rows."""
    for kind in rule.kinds:
        if hidden > 0 and rows == kind.blocks * hidden:
            return kind
    fits = ", ".join(f"{kind.blocks * hidden} ({kind.cell})" for kind in rule.kinds)
    raise LayoutError(
        f"shape {ref.shape} is of no known cell: {rows} outputs, where hidden size {hidden} takes "
        f"{fits}",
        tensor=ref.name,
        hint=HINT,
    )


def _outputs_inputs(ref: TensorRef, rule: CellRule) -> tuple[int, int]:
    first, second = ref.shape
    return (second, first) if rule.transposed else (first, second)


def _matrix(
    cell: Cell, layer: int, kind: Kind, role: str, ref: TensorRef, part: Part | None = None
) -> GateMatrix:
    rule = cell.rule
    axis = 1 if rule.transposed else 0
    if role == "P":
        layout = GateLayout(axis=axis, transposed=rule.transposed)
    else:
        gates = cell.place.gate or kind.gates_of(role)
        layout = GateLayout(gates, axis, rule.transposed, part is not None, rule.forget_bias)
    shape = [ref.shape[0], ref.shape[1]]
    if part is not None:
        shape[part.axis] = part.stop - part.start
    return GateMatrix(
        role=role,
        source=ref.name,
        shape=(shape[0], shape[1]),
        layer=layer,
        direction=rule.directions.get(cell.place.direction, "forward"),
        layout=layout,
        part=part,
        cell=kind.cell,
    )
