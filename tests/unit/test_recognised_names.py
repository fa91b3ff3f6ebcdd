"""What names tell outside known cells: roles, what looks recurrent, what is no part of a model."""

import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from indexes import Shapes, awd_lstm, by_key, index_of, shapes_of
from torch import nn

from ckptshrink.gates import GateMatrix
from ckptshrink.layouts import recognise

LOOKS_RECURRENT = [
    "lstm/kernel:0",
    "bidirectional/forward_lstm/lstm_cell/recurrent_kernel:0",
    "model_weights/cu_dnnlstm_1/cu_dnnlstm_1/kernel:0",
    "layers/lstm/cell/vars/1",
    "LSTMCell_0/hf/kernel",
    "params.OptimizedLSTMCell_0.ii.kernel",
    "GRUCell_0/hn/kernel",
    "lstm/linear/w",
    "encoder.forward_layer_0.input_linearity.0.weight",
    "elmo.backward_layer_1.state_linearity.weight.U",
    "elmo.backward_layer_1.state_projection.kernel",
    "model/lstm_0/lstm_cell/kernel",
    "model/lstm_1/flstm_cell/second_gemm/kernel",
    "model/lstm_1/glstm_cell/group0/kernel",
    "RNN_0/RNN/LSTMCell/W_F",
    "lstm0_l0_i2h_weight",
    "rnn.cells.0.hh.weight",
    "lstm.weight_hh_l0_v",
    "lstm.parametrizations.weight_hh_l0.original1",
    "rnn.weight_hh_l0.U",
    "encoder.lstm.weight",
    "BiLSTM.W",
    "my_gru.w2",
    "RNNs.weight",
    "decoder.rnn_1",
    "cell.W_hh",
]

HARMLESS = [
    "rnn.fc.weight",
    "rnn_fc.weight",
    "lstm_out.weight",
    "lstmOut.weight",
    "gru_norm.weight",
    "lstm.dropout.weight",
    "proj_lstm.weight",
    "lstm2tag.weight",
    "rnn_to_hidden.weight",
    "rnn.3.weight",
    "lstm_h0",
    "lstm.bias",
    "congruent.weight",
    "learning.weight",
    "grunt.weight",
    "transformer.h.0.attn.c_attn.weight",
    "bert.encoder.layer.0.intermediate.dense.weight",
    "conv1.weight_v",
    "kernel",
    "cell.fc.weight",
]


@pytest.mark.parametrize("name", LOOKS_RECURRENT)
@pytest.mark.parametrize("shape", [(8, 8), (2, 3, 4)])
def test_recurrent_looking_names_are_seen(name: str, shape: tuple[int, ...]) -> None:
    recognition = recognise(index_of({"fc.weight": (3, 3), name: shape}), strict=False)
    assert [n for n, _ in recognition.unrecognised] == [name]
    assert all(why for _, why in recognition.unrecognised)
    assert [m.source for m in recognition.matrices] == ["fc.weight"]


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_names_are_not_refused(name: str) -> None:
    assert not recognise(index_of({name: (8, 8)})).unrecognised


@pytest.mark.parametrize("name", LOOKS_RECURRENT)
def test_only_floating_matrices_look_recurrent(name: str) -> None:
    assert not recognise(index_of({name: (8,)})).unrecognised
    assert not recognise(index_of({name: (8, 8)}, dtype="I64")).unrecognised


def test_what_lies_beside_claimed_weights_is_harmless() -> None:
    shapes = {f"lstm.{name}": shape for name, shape in shapes_of(nn.LSTM(3, 4)).items()}
    assert not recognise(index_of(shapes | {"lstm.gain": (4, 4)})).unrecognised
    assert recognise(index_of(shapes | {"other.lstm.gain": (4, 4)})).unrecognised
    assert recognise(index_of(shapes | {"lstm.weight_hh_extra": (4, 4)})).unrecognised


def test_an_alias_that_looks_recurrent_tells_on_its_owner() -> None:
    shapes: Shapes = {"shared": (8, 8), "lstm.weight": (8, 8)}
    recognition = recognise(index_of(shapes, shares={"lstm.weight": "shared"}))
    ((name, why),) = recognition.unrecognised
    assert name == "shared"
    assert "lstm.weight" in why
    assert not recognition.matrices


# roles, aliases, drops


@pytest.mark.parametrize(
    ("name", "role", "transposed"),
    [
        ("model.embed_tokens.weight", "embedding", False),
        ("bert.embeddings.word_embeddings.weight", "embedding", False),
        ("text_field_embedder.token_embedder_tokens.weight", "embedding", False),
        ("transformer.wte.weight", "embedding", False),
        ("word_emb.weight", "embedding", False),
        ("char_embed", "embedding", False),
        ("embedding", "embedding", False),
        ("embed/embeddings:0", "embedding", False),
        ("decoder.weight", "softmax", False),
        ("lm_head.weight", "softmax", False),
        ("embed_out.weight", "softmax", False),
        ("softmax_w", "softmax", False),
        ("encoder.weight", "linear", False),
        ("embed_proj.weight", "linear", False),
        ("system.weight", "linear", False),
        ("remember.weight", "linear", False),
        ("dense/kernel:0", "linear", True),
        ("fc.weight", "linear", False),
    ],
)
def test_roles_by_common_names(name: str, role: str, transposed: bool) -> None:
    (matrix,) = recognise(index_of({name: (30, 20)})).matrices
    assert (matrix.role, matrix.layout.transposed, matrix.shape) == (role, transposed, (30, 20))


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [
        ("fc.bias", (1, 4), "F32"),
        ("norm.weight", (4, 4), "F32"),
        ("conv.weight", (4, 4, 3, 3), "F32"),
        ("ids", (4, 4), "I64"),
        ("scale", (), "F32"),
        ("packed", (4, 4), "U8"),
    ],
)
def test_what_is_no_matrix(name: str, shape: tuple[int, ...], dtype: str) -> None:
    assert not recognise(index_of({name: shape}, dtype=dtype)).matrices


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_every_factorable_dtype(dtype: str) -> None:
    assert len(recognise(index_of(awd_lstm(), dtype=dtype)).matrices) == 8


def test_softmax_stored_before_the_embedding_it_is_tied_to() -> None:
    shapes = awd_lstm()
    shapes = {"decoder.weight": shapes.pop("decoder.weight"), **shapes}
    shares = {"encoder.weight": "decoder.weight"}
    recognition = recognise(index_of(shapes, shares=shares))
    assert by_key(recognition)["decoder.weight"].role == "softmax"
    assert "encoder.weight" not in by_key(recognition)
    assert recognition.roles_of_aliases == {"encoder.weight": "embedding"}


def test_a_cell_used_twice_has_its_matrices_once() -> None:
    one = {f"one.{name}": shape for name, shape in shapes_of(nn.LSTM(3, 4)).items()}
    shares = {name.replace("one", "two"): name for name in one}
    shapes = one | {alias: one[name] for alias, name in shares.items()}
    recognition = recognise(index_of(shapes, shares=shares))
    assert [m.source for m in recognition.matrices] == ["one.weight_ih_l0", "one.weight_hh_l0"]
    assert recognition.roles_of_aliases == {"two.weight_ih_l0": "Wi", "two.weight_hh_l0": "Wh"}
    assert not recognition.unrecognised


@pytest.mark.parametrize(
    "name",
    [
        "optimizer.state.rnns.0.module.weight_hh_l0_raw.ax",
        "optimizer_state_dict.state.0.exp_avg",
        "optimizer_states.0.state.3.exp_avg",
        "optimizers.0.lstm.weight",
        "opt.state.0.grad_avg",
        "optim.state.0.momentum_buffer",
        "optimizer_weights/training/Adam/lstm/kernel/m:0",
        "model/lstm_0/lstm_cell/kernel/Adagrad",
    ],
)
def test_optimizer_state_is_dropped(name: str) -> None:
    recognition = recognise(index_of({name: (8, 8)}))
    assert list(recognition.dropped) == [name]
    assert not recognition.matrices
    assert not recognition.unrecognised


@pytest.mark.parametrize("name", ["opt.decoder.layers.0.fc1.weight", "model.optimizer_net.weight"])
def test_a_model_called_opt_is_kept(name: str) -> None:
    assert not recognise(index_of({name: (8, 8)})).dropped


def test_a_weight_that_an_optimizer_holds_too_is_kept() -> None:
    shapes: Shapes = {"optimizer.param.0": (8, 4), "fc.bias": (4,), "lm_head.weight": (8, 4)}
    recognition = recognise(index_of(shapes, shares={"lm_head.weight": "optimizer.param.0"}))
    assert not recognition.dropped
    assert [(m.source, m.role) for m in recognition.matrices] == [("optimizer.param.0", "softmax")]


# any names at all


NAMES = st.one_of(
    st.text(alphabet="abl0_./\x00\n²", max_size=20),
    st.from_regex(r"(rnns\.[0-9]\.)?(module\.)?weight_(ih|hh|hr)(_l[01])?(_reverse)?(_raw)?"),
    st.sampled_from([*LOOKS_RECURRENT, *HARMLESS, "_flat_weights.0", "encoder.weight"]),
)


@given(
    shapes=st.dictionaries(
        NAMES, st.lists(st.sampled_from([0, 1, 4, 12, 16]), max_size=3).map(tuple), max_size=12
    ),
    data=st.data(),
)
@settings(max_examples=200, deadline=None)
def test_every_tensor_has_one_fate(shapes: Shapes, data: st.DataObject) -> None:
    names = list(shapes)
    shares = {}
    for i, name in enumerate(names[1:], 1):
        same = [n for n in names[:i] if shapes[n] == shapes[name] and n not in shares]
        shared = data.draw(st.booleans(), label="shared")
        if same and shared:
            shares[name] = data.draw(st.sampled_from(same), label="owner")
    found = recognise(index_of(shapes, shares=shares), strict=False)
    sources = {m.source for m in found.matrices}
    fates = (sources, found.aliases.keys(), found.dropped.keys(), dict(found.unrecognised).keys())
    for i, one in enumerate(fates):
        for other in fates[i + 1 :]:
            assert one & other <= found.aliases.keys() & found.dropped.keys()
    assert found.copies.keys().isdisjoint(sources)
    assert all(winner in shapes for winner in found.copies.values())
    assert found.aliases == shares
    assert len({m.key for m in found.matrices}) == len(found.matrices)
    order = [names.index(m.source) for m in found.matrices]
    assert order == sorted(order)
    for matrix in found.matrices:
        _is_whole(matrix, shapes[matrix.source])


def _is_whole(matrix: GateMatrix, stored: tuple[int, ...]) -> None:
    if matrix.part is None:
        assert matrix.shape == stored
    assert matrix.layout.axis == int(matrix.layout.transposed)
    if matrix.role in {"Wi", "Wh"}:
        blocks = max(1, len(matrix.layout.gates))
        assert matrix.shape[matrix.layout.axis] % blocks == 0


HOSTILE = [
    "a." * 200_000 + "weight",
    "weight_ih_l" + "0" * 400_000,
    "9" * 400_000 + ".weight_hh_l0",
    "lstm" * 100_000 + "!",
    "i2h_" * 100_000,
    "_bias" * 100_000 + ".x",
    "embed" * 100_000,
    "A" * 400_000 + ".w",
    "/" * 400_000,
    "rnns.0." * 60_000 + "weight_ih_l0",
]


@pytest.mark.parametrize("name", HOSTILE, ids=[name[:8] for name in HOSTILE])
def test_hostile_names_take_no_time(name: str) -> None:
    start = time.perf_counter()
    recognise(index_of({name: (4, 4), f"{name}_reverse": (4, 4)}), strict=False)
    assert time.perf_counter() - start < 2


def test_many_tensors_take_linear_time() -> None:
    shapes = {
        f"model.layers.{i}.{leaf}": (8, 8)
        for i in range(2500)
        for leaf in ("q_proj.weight", "mlp.up.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0")
    }
    for name in list(shapes):
        if "weight_ih" in name or "weight_hh" in name:
            shapes[name] = (32, 8)
    start = time.perf_counter()
    assert len(recognise(index_of(shapes)).matrices) == 10_000
    assert time.perf_counter() - start < 3


def test_no_torch_is_imported() -> None:
    code = (
        "import sys; from pathlib import Path; import ckptshrink.layouts as layouts;"
        "from ckptshrink.io.checkpoint import Checkpoint;"
        "layouts.recognise(Checkpoint(Path('x'), 'hdf5', {}, ()));"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
