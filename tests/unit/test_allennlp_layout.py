"""AllenNLP's LSTMs by their names: an ELMo inside of a task's model, augmented LSTMs, wrappers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from indexes import Shapes, index_of, recurrent

from ckptshrink.errors import LayoutError
from ckptshrink.layouts import recognise

IN_BCN = "_elmo._elmo_lstm._elmo_lstm."
IN_ESIM = "_text_field_embedder.token_embedder_elmo._elmo._elmo_lstm._elmo_lstm."


def bilm(prefix: str, d: int, p: int, n_layers: int = 2) -> Shapes:
    """Return the tensors of an ``ElmoLstm``."""
    shapes: Shapes = {}
    for layer in range(n_layers):
        for direction in ("forward", "backward"):
            cell = f"{prefix}{direction}_layer_{layer}."
            shapes[f"{cell}input_linearity.weight"] = (4 * d, p)
            shapes[f"{cell}state_linearity.weight"] = (4 * d, p)
            shapes[f"{cell}state_linearity.bias"] = (4 * d,)
            shapes[f"{cell}state_projection.weight"] = (p, d)
    return shapes


def augmented(prefix: str, n: int, h: int, *, highway: bool) -> Shapes:
    """Return the tensors of an ``AugmentedLSTMCell``."""
    return {
        f"{prefix}input_linearity.weight": ((6 if highway else 4) * h, n),
        f"{prefix}state_linearity.weight": ((5 if highway else 4) * h, h),
        f"{prefix}state_linearity.bias": ((5 if highway else 4) * h,),
    }


@pytest.mark.parametrize("prefix", ["", IN_BCN, IN_ESIM, "module.a."])
def test_the_bilm_of_an_elmo(prefix: str) -> None:
    shapes = bilm(prefix, 8, 4)
    cells = [(layer, d) for layer in (0, 1) for d in ("forward", "backward")]
    assert recurrent(shapes) == [
        (f"{prefix}{d}_layer_{layer}.{name}.weight", role, layer, d, "lstm")
        for layer, d in cells
        for name, role in (
            ("input_linearity", "Wi"),
            ("state_linearity", "Wh"),
            ("state_projection", "P"),
        )
    ]
    found = recognise(index_of(shapes))
    assert found.family == "allennlp"
    gates = {m.role: m.layout for m in found.matrices}
    assert gates["Wi"] == gates["Wh"]
    assert (gates["Wi"].gates, gates["Wi"].axis, gates["Wi"].transposed) == ("ifjo", 0, False)
    assert gates["Wi"].forget_bias == 0  # the stored bias has it
    assert gates["P"].gates == ""


def test_what_else_an_elmo_has() -> None:
    around = "_elmo._elmo_lstm._token_embedder."
    shapes = bilm(IN_BCN, 8, 4) | {
        f"{around}_char_embedding_weights": (262, 16),
        f"{around}char_conv_0.weight": (6, 16, 1),
        f"{around}_highways._layers.0.weight": (12, 6),
        f"{around}_projection.weight": (4, 6),
        "_elmo.scalar_mix_0.gamma": (1,),
    }
    found = recognise(index_of(shapes))
    roles = {m.source.removeprefix(around): m.role for m in found.matrices if m.layer is None}
    assert roles == {
        "_char_embedding_weights": "embedding",
        "_highways._layers.0.weight": "linear",
        "_projection.weight": "linear",
    }
    assert not found.unrecognised


@pytest.mark.parametrize("highway", [True, False])
@pytest.mark.parametrize("cell", ["", "cell."], ids=["0.x", "2.x"])
def test_stacks_of_augmented_lstms(cell: str, highway: bool) -> None:
    shapes: Shapes = {}
    places = {
        "enc.forward_layer_1.": (1, "forward"),
        "enc.backward_layer_1.": (1, "backward"),
        "bi.forward_layers.0.": (0, "forward"),
        "bi.backward_layers.0.": (0, "backward"),
        "alternating.layer_0.": (0, "forward"),
        "alternating.layer_1.": (1, "backward"),
        "alternating.layer_12.": (12, "forward"),
        "one._module.": (0, "forward"),
    }
    for prefix in places:
        shapes |= augmented(prefix + cell, 6, 4, highway=highway)
    found = recognise(index_of(shapes))
    assert not found.unrecognised
    assert len(found.matrices) == 2 * len(places)
    for matrix in found.matrices:
        prefix = matrix.source.partition(f"{cell}input_" if matrix.role == "Wi" else f"{cell}state")
        assert (matrix.layer, matrix.direction) == places[prefix[0]]
        order = {"Wi": "ifjohx", "Wh": "ifjoh"}[matrix.role] if highway else "ifjo"
        assert matrix.layout.gates == order
        assert [s for s, _ in matrix.blocks("per-gate")] == [f".{gate}" for gate in order]


def test_wrapped_modules_of_torch_are_of_the_family() -> None:
    shapes: Shapes = {
        "_encoder._module.weight_ih_l0": (16, 3),
        "_encoder._module.weight_hh_l0": (16, 4),
    }
    found = recognise(index_of(shapes))
    assert found.family == "allennlp"
    assert [(m.role, m.layout.gates) for m in found.matrices] == [("Wi", "ifgo"), ("Wh", "ifgo")]
    # privacy engines put _module around everything, too
    bare = {name.removeprefix("_encoder."): shape for name, shape in shapes.items()}
    assert recognise(index_of(bare)).family == "torch-rnn"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"input_linearity": 24, "state_linearity": 16}, "differ in size"),  # 6 and 4
        ({"input_linearity": 20, "state_linearity": 20}, "differ in size"),  # 5 and 5
        ({"input_linearity": 12, "state_linearity": 12}, "of no known cell"),
        ({"input_linearity": 16}, "has no recurrent weight"),
        ({"state_linearity": 16}, "has no input weight"),
    ],
)
def test_impossible_shapes_are_refused(rows: dict[str, int], words: str) -> None:
    shapes: Shapes = {f"layer_0.{name}.weight": (n, 4) for name, n in rows.items()}
    with pytest.raises(LayoutError, match=words):
        recognise(index_of(shapes))
    lenient = recognise(index_of(shapes), strict=False)
    assert {name for name, _ in lenient.unrecognised} == set(shapes)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_a_cell_is_claimed_exactly_when_its_rows_fit(a: int, b: int, n: int, h: int) -> None:
    shapes: Shapes = {
        "x.input_linearity.weight": (a * h, n),
        "x.state_linearity.weight": (b * h, h),
    }
    found = recognise(index_of(shapes), strict=False)
    assert bool(found.matrices) == ((a, b) in {(4, 4), (6, 5)})
    assert len(found.matrices) + len(found.unrecognised) == 2
