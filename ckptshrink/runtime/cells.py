"""The LSTM and GRU cells of a checkpoint or an artefact, one by one, as `bench` times them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from ckptshrink.errors import CheckpointError, LayoutError
from ckptshrink.gates import GateMatrix
from ckptshrink.runtime.elmo_options import options_path, read_options
from ckptshrink.runtime.layer import GATES
from ckptshrink.runtime.opened import Facts, Opened
from ckptshrink.runtime.weights import Weight, dense, rank_of, reordered, shape_of

_CLIP: Final = 3.0
"""Both clips of every released ELMo, for a file without its options; the time hardly depends on
their value."""

_LEAF: Final = re.compile(
    r"(?P<wrapper>module\.)?weight_(?P<part>ih|hh|hr)(?P<end>(?:_l\d+)?(?:_reverse)?)(?:_raw)?$"
)
_TF_LEAF: Final = re.compile(r"/(?:W_0|W_P_0|(?P<later>(?:projection/)?kernel))$")


@dataclass(frozen=True, slots=True)
class Cell:
    """One direction of one recurrent layer, in float32.

    Attributes
    ----------
    name : str
        Of its module in the checkpoint.
    layer : int
    direction : str
    kind : str
        ``"lstm"`` or ``"gru"``.
    wi, wh, proj : Weight
        Gates in torch's order.
    bias_ih, bias_hh : Tensor or None
    cell_clip, proj_clip : float or None
    """

    name: str
    layer: int
    direction: str
    kind: str
    wi: Weight
    wh: Weight
    proj: Weight | None
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    cell_clip: float | None = None
    proj_clip: float | None = None

    @property
    def n_inputs(self) -> int:
        """Size of the input."""
        return shape_of(self.wi)[1]

    @property
    def hidden(self) -> int:
        """Number of cells."""
        return shape_of(self.wh)[0] // (4 if self.kind == "lstm" else 3)

    @property
    def projected(self) -> int | None:
        """Size of the state that goes round, where there is a projection."""
        return None if self.proj is None else shape_of(self.proj)[0]

    @property
    def ranks(self) -> dict[str, int | None]:
        """Rank of each weight by role, None where it is dense or there is none."""
        by_role = {"Wi": self.wi, "Wh": self.wh, "P": self.proj}
        return {role: None if w is None else rank_of(w) for role, w in by_role.items()}

    @property
    def key(self) -> tuple[str, int, str]:
        """What tells it from the other cells of its model."""
        return self.name, self.layer, self.direction

    @property
    def sizes(self) -> tuple[object, ...]:
        """What a cell must have in common with it to be compared."""
        return self.kind, self.n_inputs, self.hidden, self.projected

    def weights(self) -> dict[str, Weight]:
        """Return the weights by torch's names for a layer of its own."""
        named = {
            "weight_ih_l0": self.wi,
            "weight_hh_l0": self.wh,
            "weight_hr_l0": self.proj,
            "bias_ih_l0": self.bias_ih,
            "bias_hh_l0": self.bias_hh,
        }
        return {name: weight for name, weight in named.items() if weight is not None}

    def multiplied_back(self) -> "Cell":
        """Return the cell with dense weights."""
        proj = None if self.proj is None else dense(self.proj).detach()
        return replace(self, wi=dense(self.wi).detach(), wh=dense(self.wh).detach(), proj=proj)


def cells_of(path: Path) -> tuple[list[Cell], list[str]]:
    """Return the LSTM and GRU cells of a checkpoint or an artefact, and what is to be said of them.

    Raises
    ------
    CheckpointError, ManifestMismatchError
        It can't be read, or has no such cell.
    """
    with Opened(path) as opened:
        groups: dict[tuple[str, int | None, str | None], dict[str, GateMatrix]] = {}
        for matrix in opened.facts.matrices:
            if matrix.role not in {"Wi", "Wh", "P"}:
                continue
            key = (_module_of(matrix.source), matrix.layer, matrix.direction)
            if matrix.role in groups.get(key, {}):  # x.weight_ih beside x.module.weight_ih
                key = (matrix.source.rpartition(".")[0], *key[1:])
            groups.setdefault(key, {})[matrix.role] = matrix
        clips, notes = _clips(opened.facts)
        cells: list[Cell] = []
        kinds: list[str] = []
        for (name, layer, direction), by_role in groups.items():
            kind = by_role["Wi"].cell if "Wi" in by_role else ""
            if kind in {"lstm", "gru"} and "Wh" in by_role:
                clip = clips if by_role["Wi"].layout.joint_input else (None, None)
                cells.append(_cell(opened, name, by_role, clip))
            else:
                kinds.append(kind)
                notes.append(f"{name} layer {layer} {direction} is no LSTM or GRU, and not timed")
    if not cells:
        known = ", ".join(dict.fromkeys(filter(None, kinds)))
        others = f", only {known}" if known else ""
        raise LayoutError(
            f"has no LSTM or GRU layer to time{others}",
            path=path,
            hint="ckptshrink inspect lists what there is",
        )
    cells.sort(key=lambda cell: (cell.layer, cell.direction == "backward"))
    return cells, list(dict.fromkeys(notes))


def _module_of(source: str) -> str:
    """Return the name of the module that a weight belongs to, by its own."""
    return _TF_LEAF.sub("", _LEAF.sub("", source)).rstrip("./") or "(model)"


def _cell(
    opened: Opened,
    name: str,
    by_role: Mapping[str, GateMatrix],
    clips: tuple[float | None, float | None],
) -> Cell:
    wi = by_role["Wi"]
    gates = wi.layout.gates
    wanted = GATES if wi.cell == "lstm" else gates
    weights = {role: opened.weight(matrix).float() for role, matrix in by_role.items()}
    biases = [opened.tensor(n).float() for n in _biases(wi.source) if n in opened.facts.shapes]
    if biases and wi.layout.forget_bias:
        biases.append(_forget_bias(gates, len(biases[0]), wi.layout.forget_bias))
    if len(biases) == 1:
        biases.append(torch.zeros_like(biases[0]))
    bias_ih, bias_hh = (_ordered(bias, gates, wanted) for bias in biases or (None, None))
    return Cell(
        name=name,
        layer=wi.layer or 0,
        direction=wi.direction or "forward",
        kind=wi.cell,
        wi=reordered(weights["Wi"], gates, wanted),
        wh=reordered(weights["Wh"], gates, wanted),
        proj=weights.get("P"),
        bias_ih=bias_ih,
        bias_hh=bias_hh,
        cell_clip=clips[0],
        proj_clip=clips[1] if "P" in weights else None,
    )


def _biases(wi: str) -> tuple[str, ...]:
    """Return the names that the biases beside an input weight have."""
    if found := _TF_LEAF.search(wi):
        return (f"{wi[: found.start()]}/{'bias' if found['later'] else 'B'}",)
    found = _LEAF.search(wi)
    if found is None:
        return ()
    stem = f"{wi[: found.start()]}{found['wrapper'] or ''}"
    return tuple(f"{stem}bias_{part}{found['end']}" for part in ("ih", "hh"))


def _forget_bias(gates: str, rows: int, value: float) -> Tensor:
    bias = torch.zeros(len(gates), rows // len(gates))
    bias[gates.index("f")] = value
    return bias.flatten()


def _ordered(bias: Tensor | None, gates: str, wanted: str) -> Tensor | None:
    return None if bias is None else dense(reordered(bias, gates, wanted))


def _clips(facts: Facts) -> tuple[tuple[float | None, float | None], list[str]]:
    """Return the bounds of an ELMo's cells and states, from its options where it has some."""
    if facts.family != "elmo":
        return (None, None), []
    try:
        path = options_path(facts, None)
    except CheckpointError:
        note = f"no options file says where cells and states are clipped; taken as {_CLIP:g}"
        return (_CLIP, _CLIP), [note]
    said = read_options(path).lstm
    return (said.cell_clip, said.proj_clip), []
