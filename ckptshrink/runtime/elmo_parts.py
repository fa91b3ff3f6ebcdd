"""The weights of an ELMo, from a checkpoint in bilm-tf's layout or an artefact made of one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ckptshrink.errors import LayoutError
from ckptshrink.gates import GateMatrix
from ckptshrink.runtime.elmo_options import ElmoOptions
from ckptshrink.runtime.layer import GATES
from ckptshrink.runtime.opened import Opened
from ckptshrink.runtime.weights import Weight, dense, reordered, shape_of


@dataclass(frozen=True, slots=True)
class CellParts:
    """One direction of one layer: gates in the order i, f, g, o, the forget bias in `bias`."""

    wi: Weight
    wh: Weight
    bias: Tensor
    proj: Weight | None

    @property
    def hidden(self) -> int:
        """Number H of cells."""
        return shape_of(self.wh)[0] // len(GATES)

    @property
    def state(self) -> int:
        """Size P of the state."""
        return shape_of(self.wh)[1]


@dataclass(frozen=True, slots=True)
class LinearParts:
    """A linear layer, W (m, n) and a bias (m,)."""

    weight: Weight
    bias: Tensor


@dataclass(frozen=True, slots=True)
class CharacterParts:
    """The embedding of words by their characters.

    Attributes
    ----------
    embedding : Weight
        (characters, d), without padding.
    convolutions : tuple of (Tensor, Tensor)
        (filters, d, width) and (filters,).
    highways : tuple of (LinearParts, LinearParts)
        Carry gate and transform, each (n_filters, n_filters).
    projection : LinearParts or None
        (P, F).
    """

    embedding: Weight
    convolutions: tuple[tuple[Tensor, Tensor], ...]
    highways: tuple[tuple[LinearParts, LinearParts], ...]
    projection: LinearParts | None


class PartsReader:
    """Reads parts of an opened ELMo, in float32, and checks that their shapes go together.

    Parameters
    ----------
    opened : Opened
        Must stay open.
    """

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._shapes = opened.facts.shapes
        self._matrices = {m.source: m for m in opened.facts.matrices if m.part is None}

    @property
    def has_characters(self) -> bool:
        """Whether words are embedded by their characters."""
        return "char_embed" in self._shapes

    def cells(self) -> dict[str, tuple[CellParts, ...]]:
        """Return the LSTMs of each direction that there is, from the first layer up.

        Raises
        ------
        LayoutError
            There are none, a layer is missing, or shapes don't go together.
        """
        found: dict[str, list[GateMatrix]] = {}
        for matrix in sorted(self._opened.facts.matrices, key=lambda m: m.layer or 0):
            if matrix.role == "Wi" and matrix.cell == "lstm":
                found.setdefault(matrix.direction or "forward", []).append(matrix)
        counts = {direction: len(matrices) for direction, matrices in sorted(found.items())}
        if "forward" not in counts or len(set(counts.values())) > 1:
            said = ", ".join(f"{n} {direction}" for direction, n in counts.items()) or "no"
            raise self._error(f"has {said} LSTMs, which is no ELMo")
        for matrices in found.values():
            if [m.layer for m in matrices] != list(range(len(matrices))):
                raise self._error("lacks one of its LSTM layers")
        cells: dict[str, tuple[CellParts, ...]] = {
            direction: tuple(self._cell(m) for m in found[direction])
            for direction in ("forward", "backward")
            if direction in found
        }
        first = cells["forward"][0]
        for direction, stack in cells.items():
            takes = shape_of(first.wi)[1]
            for layer, cell in enumerate(stack):
                if (shape_of(cell.wi)[1], shape_of(cell.wh)) != (takes, shape_of(first.wh)):
                    raise self._error(
                        f"has shapes {shape_of(cell.wi)} and {shape_of(cell.wh)} in the {direction}"
                        f" LSTM of layer {layer}, which do not go with the others"
                    )
                takes = cell.state
        return cells

    def characters(self) -> CharacterParts:
        """Return what embeds words by their characters.

        Raises
        ------
        LayoutError
            A tensor is missing, or shapes don't go together.
        """
        embedding = self._weight("char_embed")
        d = shape_of(embedding)[1]
        convolutions = tuple(self._convolution(k, d) for k in range(self._count("CNN/W_cnn_{}")))
        if not convolutions:
            raise self._error("has a char_embed and no CNN/W_cnn_0")
        n_filters = sum(len(bias) for _, bias in convolutions)
        highways = tuple(
            (
                self._linear(f"CNN_high_{k}", "carry", (n_filters, n_filters)),
                self._linear(f"CNN_high_{k}", "transform", (n_filters, n_filters)),
            )
            for k in range(self._count("CNN_high_{}/W_carry"))
        )
        projection = None
        if "CNN_proj/W_proj" in self._shapes:
            projection = self._linear("CNN_proj", "proj", (None, n_filters))
        return CharacterParts(embedding, convolutions, highways, projection)

    def tokens(self) -> Weight:
        """Return the embedding of whole tokens (n, P), without padding.

        Raises
        ------
        LayoutError
            There is none.
        """
        if "embedding" not in self._shapes:
            raise LayoutError(
                "has neither char_embed nor embedding in it",
                path=self._opened.facts.path,
                hint="give the file of the token embeddings as embeddings=",
            )
        return self._weight("embedding")

    def _cell(self, matrix: GateMatrix) -> CellParts:
        layer, direction = matrix.layer, matrix.direction
        scope, _, leaf = matrix.source.rpartition("/")

        def single(role: str) -> Weight:
            return self._opened.weight(
                self._opened.matrix(role, layer=layer, direction=direction)
            ).float()

        wi, wh = (reordered(single(role), matrix.layout.gates, GATES) for role in ("Wi", "Wh"))
        H = shape_of(wh)[0] // len(GATES)
        name = f"{scope}/{'B' if leaf == 'W_0' else 'bias'}"
        bias = dense(reordered(self._vector(name, 4 * H), matrix.layout.gates, GATES))
        bias[H : 2 * H] += matrix.layout.forget_bias
        projected = any(
            (m.role, m.layer, m.direction) == ("P", layer, direction)
            for m in self._opened.facts.matrices
        )
        return CellParts(wi, wh, bias, single("P") if projected else None)

    def _convolution(self, k: int, d: int) -> tuple[Tensor, Tensor]:
        name = f"CNN/W_cnn_{k}"
        stored = self._opened.tensor(name).float()
        if stored.ndim != 4 or stored.shape[0] != 1 or stored.shape[2] != d:
            raise self._error(
                f"shape {tuple(stored.shape)} is of no convolution of {d} values", name
            )
        weight = stored[0].permute(2, 1, 0).contiguous()  # (filters, d, width)
        return weight, self._vector(f"CNN/b_cnn_{k}", len(weight))

    def _linear(self, scope: str, name: str, shape: tuple[int | None, int]) -> LinearParts:
        matrix = self._matrix(f"{scope}/W_{name}")
        # TensorFlow's x W, always; a manifest says so of the matrices of cells only
        matrix = replace(matrix, layout=replace(matrix.layout, transposed=True))
        W = self._opened.weight(matrix).float()
        m, n = shape_of(W)
        if n != shape[1] or m != (shape[0] or m):
            raise self._error(
                f"shape ({n}, {m}) does not go with the {shape[1]} filters", f"{scope}/W_{name}"
            )
        return LinearParts(W, self._vector(f"{scope}/b_{name}", m))

    def _vector(self, name: str, size: int) -> Tensor:
        vector = self._opened.tensor(name).float()
        if tuple(vector.shape) != (size,):
            raise self._error(f"shape {tuple(vector.shape)} is not ({size},)", name)
        return vector

    def _weight(self, name: str) -> Weight:
        return self._opened.weight(self._matrix(name)).float()

    def _matrix(self, name: str) -> GateMatrix:
        matrix = self._matrices.get(self._opened.facts.tied.get(name, name))
        if matrix is None:
            raise self._error("is missing, or is no matrix", name)
        return matrix

    def _count(self, template: str) -> int:
        k = 0
        while template.format(k) in self._shapes:
            k += 1
        return k

    def _error(self, message: str, tensor: str | None = None) -> LayoutError:
        return LayoutError(message, path=self._opened.facts.path, tensor=tensor)


def check_options(
    options: ElmoOptions,
    cells: Mapping[str, Sequence[CellParts]],
    characters: CharacterParts | None,
    path: Path,
) -> None:
    """Check that options are those of a model.

    Parameters
    ----------
    cells, characters
        As `PartsReader` returns them; None where words are not embedded by characters.
    path : Path
        The model, for the message.

    Raises
    ------
    LayoutError
        They say something else than the weights.
    """
    first = cells["forward"][0]
    pairs: list[tuple[str, object, object]] = [
        ("lstm.n_layers", options.lstm.n_layers, len(cells["forward"])),
        ("lstm.dim", options.lstm.dim, first.hidden),
        ("lstm.projection_dim", options.lstm.projection_dim, first.state),
    ]
    if characters is not None:
        said = options.char_cnn
        shapes = [(w.shape[2], w.shape[0]) for w, _ in characters.convolutions]
        pairs += [
            ("char_cnn.filters", said and list(said.filters), shapes),
            ("char_cnn.n_highway", (said and said.n_highway) or 0, len(characters.highways)),
        ]
    for name, stated, held in pairs:
        if stated != held:
            raise LayoutError(
                f"has {held} for {name}, and the options say {stated}",
                path=path,
                hint="options= takes the options.json of this very model",
            )
