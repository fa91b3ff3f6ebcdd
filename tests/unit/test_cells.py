"""Cells from shapes: gates, parts of joint tensors, and shapes that can be no cell."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from indexes import Shapes, index_of, shapes_of
from torch import nn

from ckptshrink.errors import LayoutError
from ckptshrink.gates import Part
from ckptshrink.layouts import recognise


def test_what_torch_says_of_the_gates() -> None:
    """Rows of gate k are those that torch's cell takes as its k-th chunk: i, f, g, o."""
    torch.manual_seed(0)
    cell = nn.LSTMCell(3, 4)
    of_input, of_hidden = recognise(index_of(shapes_of(cell))).matrices
    x, h, c = torch.randn(1, 3), torch.randn(1, 4), torch.randn(1, 4)
    z = {}
    for (suffix, part), _ in zip(of_input.blocks("per-gate"), range(4), strict=True):
        assert part is not None
        rows = slice(part.start, part.stop)
        z[suffix] = (
            x @ cell.weight_ih[rows].T + h @ cell.weight_hh[rows].T
            + cell.bias_ih[rows] + cell.bias_hh[rows]
        )  # fmt: skip
    new_c = z[".f"].sigmoid() * c + z[".i"].sigmoid() * z[".g"].tanh()
    new_h = z[".o"].sigmoid() * new_c.tanh()
    assert torch.allclose(new_h, cell(x, (h, c))[0], atol=1e-6)
    assert of_hidden.layout == of_input.layout


@given(
    n_inputs=st.integers(1, 9),
    projection=st.integers(1, 9),
    dim=st.integers(1, 9),
    n_layers=st.integers(1, 12),
)
def test_parts_of_a_joint_tensor_tile_it(
    n_inputs: int, projection: int, dim: int, n_layers: int
) -> None:
    shapes: Shapes = {}
    for layer in range(n_layers):
        stacked = f"MultiRNNCell/Cell{layer}/" if n_layers > 1 else ""
        shapes[f"RNN_0/RNN/{stacked}LSTMCell/W_0"] = (n_inputs + projection, 4 * dim)
        shapes[f"RNN_0/RNN/{stacked}LSTMCell/W_P_0"] = (dim, projection)
    matrices = recognise(index_of(shapes)).matrices
    assert len(matrices) == 3 * n_layers
    for i in range(0, len(matrices), 3):
        of_input, of_hidden, projecting = matrices[i : i + 3]
        assert of_input.part == Part(0, 0, n_inputs)
        assert of_hidden.part == Part(0, n_inputs, n_inputs + projection)
        assert of_input.layer == of_hidden.layer == projecting.layer
        blocks = [part for _, part in of_hidden.blocks("per-gate")]
        assert blocks == [Part(1, i * dim, (i + 1) * dim) for i in range(4)]


BAD: list[tuple[Shapes, str, list[str]]] = [
    ({"a.weight_ih_l0": (48, 8)}, "a.weight_ih_l0", ["recurrent", "(48, 8)"]),
    ({"a.weight_hh_l0": (48, 12)}, "a.weight_hh_l0", ["input", "(48, 12)"]),
    ({"a.weight_hr_l0": (5, 12)}, "a.weight_hr_l0", ["(5, 12)"]),
    (
        {"a.weight_ih_l0": (44, 8), "a.weight_hh_l0": (48, 12)},
        "a.weight_hh_l0",
        ["(48, 12)", "(44, 8)", "a.weight_ih_l0"],
    ),
    (
        {"a.weight_ih_l0": (50, 8), "a.weight_hh_l0": (50, 12)},
        "a.weight_hh_l0",
        ["(50, 12)", "48 (lstm)", "36 (gru)"],
    ),
    (
        {"a.weight_ih": (8, 48), "a.weight_hh": (12, 48)},
        "a.weight_hh",
        ["(12, 48)", "(8, 48)"],
    ),
    (
        {"a.weight_ih": (8, 32), "a.weight_hh": (8, 32)},
        "a.weight_hh",
        ["(8, 32)", "hidden size 32"],
    ),
    ({"a.weight_ih_l0": (0, 8), "a.weight_hh_l0": (0, 0)}, "a.weight_hh_l0", ["(0, 0)"]),
    (
        {"weight_ih_l0": (48, 8), "weight_hh_l0": (48, 5), "weight_hr_l0": (6, 12)},
        "weight_hr_l0",
        ["(6, 12)", "(48, 5)"],
    ),
    (
        {"weight_ih_l0": (48, 8), "weight_hh_l0": (48, 5), "weight_hr_l0": (5, 13)},
        "weight_hh_l0",
        ["(48, 5)", "52 (lstm)"],
    ),
    (
        {"rnns.0.linear.module.weight_raw": (32, 8)},
        "rnns.0.linear.module.weight_raw",
        ["(32, 8)", "qrnn"],
    ),
    ({"RNN_0/RNN/LSTMCell/W_0": (20, 66)}, "RNN_0/RNN/LSTMCell/W_0", ["(20, 66)"]),
    ({"RNN_0/RNN/LSTMCell/W_0": (16, 64)}, "RNN_0/RNN/LSTMCell/W_0", ["(16, 64)", "input"]),
    ({"RNN_0/RNN/LSTMCell/W_P_0": (16, 4)}, "RNN_0/RNN/LSTMCell/W_P_0", ["gate"]),
    (
        {"RNN_0/RNN/LSTMCell/W_0": (20, 64), "RNN_0/RNN/LSTMCell/W_P_0": (17, 4)},
        "RNN_0/RNN/LSTMCell/W_0",
        ["(20, 64)", "68 (lstm)"],
    ),
]


@pytest.mark.parametrize(("shapes", "tensor", "words"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_impossible_shapes(shapes: Shapes, tensor: str, words: list[str]) -> None:
    checkpoint = index_of(shapes | {"fc.weight": (3, 3)})
    with pytest.raises(LayoutError) as caught:
        recognise(checkpoint)
    assert caught.value.tensor == tensor
    assert caught.value.path == "model"
    assert all(word in caught.value.message for word in words)
    loose = recognise(checkpoint, strict=False)
    assert dict(loose.unrecognised).keys() == shapes.keys()
    assert [m.source for m in loose.matrices] == ["fc.weight"]
    assert all(tensor in why and words[0] in why for _, why in loose.unrecognised)


def test_a_weight_of_another_dtype_is_a_missing_partner() -> None:
    shapes = {name: shape for name, shape in shapes_of(nn.LSTM(3, 4)).items() if "weight" in name}
    with pytest.raises(LayoutError, match="no input weight"):
        recognise(index_of(shapes, dtypes={"weight_ih_l0": "I8"}))
