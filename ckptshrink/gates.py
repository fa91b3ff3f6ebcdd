"""Gate matrices: which part of which stored tensor is which weight of a recurrent layer.

A GateMatrix has no payload. Its canonical orientation is W (m, n) with rows as outputs,
m = G·H for a matrix of stacked gates; `layout` says how the stored tensor relates to it.
"""

from dataclasses import dataclass

ROLES = ("Wi", "Wh", "P", "embedding", "softmax", "linear")
"""Roles: input, recurrent and projection weight of a layer, and the three kinds around them."""

GATED = ("Wi", "Wh")
"""Roles of matrices whose output side is a stack of gates."""


@dataclass(frozen=True, slots=True)
class GateLayout:
    """How a weight is packed in its stored tensor.

    Attributes
    ----------
    gates : str
        Gate order along the output side, one letter each (``"ifgo"``); empty for a plain matrix.
    axis : int
        Stored axis of the output side: 0 as in torch, 1 as in TensorFlow.
    transposed : bool
        Whether the stored tensor is Wᵀ, that is (n, m).
    joint_input : bool
        Whether the stored tensor packs [x; h]: its parts are Wi and Wh.
    forget_bias : float
        Added to the forget gate at run time and not in the file.
    """

    gates: str = ""
    axis: int = 0
    transposed: bool = False
    joint_input: bool = False
    forget_bias: float = 0.0


@dataclass(frozen=True, slots=True)
class Part:
    """A run of rows or columns of a stored tensor: indices ``start`` to ``stop`` along `axis`."""

    axis: int
    start: int
    stop: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """The two slices that cut the part out of its matrix."""
        run = slice(self.start, self.stop)
        return (run, slice(None)) if self.axis == 0 else (slice(None), run)


@dataclass(frozen=True, slots=True)
class GateMatrix:
    """One weight matrix of a model, by where it is stored.

    Attributes
    ----------
    role : str
        One of `ROLES`.
    source : str
        Name of the stored tensor.
    shape : tuple of int
        Stored shape of this matrix: that of the tensor, or of its part.
    layer : int or None
        Counted from 0.
    direction : str or None
        ``"forward"`` or ``"backward"``; None outside recurrent layers.
    layout : GateLayout
    part : Part or None
        Which part of the stored tensor, None for all of it.
    cell : str
        ``"lstm"``, ``"gru"``, ``"rnn"``, ``"qrnn"`` or ``""``.
    """

    role: str
    source: str
    shape: tuple[int, int]
    layer: int | None = None
    direction: str | None = None
    layout: GateLayout = GateLayout()
    part: Part | None = None
    cell: str = ""

    @property
    def key(self) -> str:
        """Name under which the matrix is planned and stored: ``T``, or ``T.Wh`` for a part of T."""
        return self.source if self.part is None else f"{self.source}.{self.role}"

    def blocks(self, grouping: str) -> tuple[tuple[str, Part | None], ...]:
        """Return the blocks to factorize apart: each gate, or the whole matrix.

        Parameters
        ----------
        grouping : str
            ``"stacked"`` (one block) or ``"per-gate"``.

        Returns
        -------
        tuple of (suffix, Part or None)
            Suffix of the stored name (``".i"``) and the slice of this matrix, not of the tensor.
        """
        gates = self.layout.gates
        if grouping == "stacked" or len(gates) < 2:
            return (("", None),)
        axis = self.layout.axis
        size = self.shape[axis] // len(gates)
        return tuple(
            (f".{gate}", Part(axis, i * size, (i + 1) * size)) for i, gate in enumerate(gates)
        )
