"""Which stored names are which matrices, family by family, and which only repeat others."""

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from indexes import Shapes, awd_lstm, awd_qrnn, by_key, elmo, index_of, recurrent, shapes_of
from torch import nn

from ckptshrink.gates import Part
from ckptshrink.io.detect import open_checkpoint
from ckptshrink.layouts import recognise

PREFIXES = ["", "0.", "module.", "0.module.", "model.encoder.", "a/b."]


# AWD-LSTM and fastai


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(("blocks", "cell"), [(4, "lstm"), (3, "gru")])
@pytest.mark.parametrize("raw", ["_raw", ""], ids=["weight drop", "wdrop 0"])
def test_awd_lstm_names(prefix: str, blocks: int, cell: str, raw: str) -> None:
    shapes = awd_lstm(prefix=prefix, blocks=blocks, raw=raw)
    found = recurrent(shapes)
    inner = f"{prefix}rnns.{{}}{'.module.' if raw else '.'}"
    assert found == [
        (inner.format(layer) + name, role, layer, "forward", cell)
        for layer in range(3)
        for name, role in (("weight_ih_l0", "Wi"), (f"weight_hh_l0{raw}", "Wh"))
    ]
    recognition = recognise(index_of(shapes))
    assert recognition.family == "awd-lstm"
    roles = {m.source: m.role for m in recognition.matrices}
    assert roles[f"{prefix}encoder.weight"] == "embedding"
    assert roles[f"{prefix}decoder.weight"] == "softmax"


def test_masked_copy_beside_raw_is_a_copy() -> None:
    shapes = awd_lstm()
    plain = {f"rnns.{i}.module.weight_hh_l0": f"rnns.{i}.module.weight_hh_l0_raw" for i in range(3)}
    # stored before and after the raw weight
    shapes = {next(iter(plain)): shapes[plain[next(iter(plain))]], **shapes}
    shapes |= {name: shapes[raw] for name, raw in plain.items()}
    recognition = recognise(index_of(shapes))
    assert recognition.copies == plain
    sources = {m.source for m in recognition.matrices}
    assert sources.isdisjoint(plain)
    assert sources.issuperset(plain.values())
    assert not recognition.unrecognised


def test_copies_of_the_reader_are_kept() -> None:
    shapes = awd_lstm() | {"rnns.0.module.weight_hh_l0": (48, 12), "seen": (48, 12)}
    raw = "rnns.0.module.weight_hh_l0_raw"
    copies = {"rnns.0.module.weight_hh_l0": raw, "seen": "rnns.0.module.weight_hh_l0"}
    recognition = recognise(index_of(shapes, copies=copies))
    assert recognition.copies == {"rnns.0.module.weight_hh_l0": raw, "seen": raw}
    assert {"rnns.0.module.weight_hh_l0", "seen"}.isdisjoint(m.source for m in recognition.matrices)


@pytest.mark.parametrize("raw_first", [True, False])
def test_raw_weight_that_shares_its_storage(raw_first: bool) -> None:
    """After an evaluation, torch registers the raw weight a second time under the plain name."""
    plain, raw = "rnns.0.module.weight_hh_l0", "rnns.0.module.weight_hh_l0_raw"
    owner, alias = (raw, plain) if raw_first else (plain, raw)
    shapes = {"rnns.0.module.weight_ih_l0": (48, 8), owner: (48, 12), alias: (48, 12)}
    recognition = recognise(index_of(shapes, shares={alias: owner}))
    assert [(m.source, m.role) for m in recognition.matrices][1:] == [(owner, "Wh")]
    assert recognition.aliases == {alias: owner}
    assert not recognition.copies
    assert not recognition.unrecognised


def fastai(version: int, prefix: str = "0.") -> Shapes:
    """Return the tensors of fastai's language model, _raw on the wrapper."""
    shapes: Shapes = {
        f"{prefix}encoder.weight": (50, 8),
        f"{prefix}encoder_dp.emb.weight": (50, 8),
    }
    for layer, (n_in, hidden) in enumerate([(8, 12), (12, 8)]):
        stem = f"{prefix}rnns.{layer}."
        shapes[f"{stem}weight_hh_l0_raw"] = (4 * hidden, hidden)
        shapes[f"{stem}module.weight_ih_l0"] = (4 * hidden, n_in)
        if version == 1:
            shapes[f"{stem}module.weight_hh_l0"] = (4 * hidden, hidden)
        shapes[f"{stem}module.bias_ih_l0"] = (4 * hidden,)
        shapes[f"{stem}module.bias_hh_l0"] = (4 * hidden,)
    shapes["1.decoder.weight"] = (50, 8)
    return shapes


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("prefix", ["0.", "0.module.", "model.0."])
def test_fastai_names(version: int, prefix: str) -> None:
    recognition = recognise(index_of(fastai(version, prefix)))
    assert recognition.family == "fastai"
    assert [(m.source, m.role, m.layer) for m in recognition.matrices] == [
        (f"{prefix}encoder.weight", "embedding", None),
        (f"{prefix}rnns.0.weight_hh_l0_raw", "Wh", 0),
        (f"{prefix}rnns.0.module.weight_ih_l0", "Wi", 0),
        (f"{prefix}rnns.1.weight_hh_l0_raw", "Wh", 1),
        (f"{prefix}rnns.1.module.weight_ih_l0", "Wi", 1),
        ("1.decoder.weight", "softmax", None),
    ]
    copies = {f"{prefix}encoder_dp.emb.weight": f"{prefix}encoder.weight"}
    if version == 1:
        for layer in (0, 1):
            stem = f"{prefix}rnns.{layer}."
            copies[f"{stem}module.weight_hh_l0"] = f"{stem}weight_hh_l0_raw"
    assert recognition.copies == copies
    assert not recognition.unrecognised


def test_ulmfit_of_fastai_0_7() -> None:
    shapes = awd_lstm(prefix="0.") | {"0.encoder_with_dropout.embed.weight": (50, 8)}
    recognition = recognise(index_of(shapes))
    assert recognition.copies == {"0.encoder_with_dropout.embed.weight": "0.encoder.weight"}
    assert sum(m.role == "embedding" for m in recognition.matrices) == 1


def test_bidirectional_fastai_has_a_raw_weight_forward_only() -> None:
    shapes = fastai(2)
    for layer, (n_in, hidden) in enumerate([(8, 12), (12, 8)]):
        stem = f"0.rnns.{layer}.module."
        shapes[f"{stem}weight_ih_l0_reverse"] = (4 * hidden, n_in)
        shapes[f"{stem}weight_hh_l0_reverse"] = (4 * hidden, hidden)
    directions = [(layer, direction) for _, _, layer, direction, _ in recurrent(shapes)]
    for layer in (0, 1):
        assert directions.count((layer, "forward")) == 2
        assert directions.count((layer, "backward")) == 2


def test_qrnn_names() -> None:
    shapes = awd_qrnn() | {"rnns.0.prevX": (1, 2, 8)}
    recognition = recognise(index_of(shapes))
    assert recognition.family == "awd-qrnn"
    assert list(recognition.dropped) == ["rnns.0.prevX"]
    assert recurrent(shapes) == [
        (f"rnns.{layer}.linear.module.weight_raw", "Wi", layer, "forward", "qrnn")
        for layer in range(3)
    ]


def test_fastai_qrnn_in_two_directions() -> None:
    shapes: Shapes = {"0.encoder.weight": (50, 8)}
    for layer in (0, 1):
        stem = f"0.rnns.{layer}."
        shapes[f"{stem}layers.0.linear.weight_raw"] = (36, 16)
        shapes[f"{stem}layers.0.linear.module.weight"] = (36, 16)
        shapes[f"{stem}layers.0.linear.module.bias"] = (36,)
        shapes[f"{stem}layers_bwd.0.linear.weight"] = (36, 16)
        shapes[f"{stem}layers_bwd.0.linear.bias"] = (36,)
    assert [entry[1:] for entry in recurrent(shapes)] == [
        ("Wi", layer, direction, "qrnn")
        for layer in (0, 1)
        for direction in ("forward", "backward")
    ]
    assert len(recognise(index_of(shapes)).copies) == 2


def test_a_linear_in_a_list_called_rnns_is_no_qrnn() -> None:
    recognition = recognise(index_of({"rnns.0.linear.weight": (10, 7)}))
    assert [m.role for m in recognition.matrices] == ["linear"]


# modules of torch


@given(
    kind=st.sampled_from([nn.LSTM, nn.GRU, nn.RNN]),
    n_layers=st.integers(1, 3),
    two_ways=st.booleans(),
    hidden=st.integers(1, 6),
    projection=st.integers(0, 5),
    prefix=st.sampled_from([*PREFIXES, "rnn.", "lstm1.lstm."]),
)
@settings(max_examples=60, deadline=None)
def test_torch_modules(
    kind: type[nn.RNNBase],
    n_layers: int,
    two_ways: bool,
    hidden: int,
    projection: int,
    prefix: str,
) -> None:
    options = {}
    if kind is nn.LSTM and 0 < projection < hidden:
        options["proj_size"] = projection
    module = kind(4, hidden, n_layers, bidirectional=two_ways, **options)  # type: ignore[arg-type]
    shapes = {prefix + name: shape for name, shape in shapes_of(module).items()}
    found = {key: rest for key, *rest in recurrent(shapes)}
    roles = {"ih": "Wi", "hh": "Wh", "hr": "P"}
    cell = kind.__name__.lower()
    for layer in range(n_layers):
        for suffix, direction in (("", "forward"), ("_reverse", "backward"))[: 1 + two_ways]:
            for part, role in roles.items():
                entry = found.pop(f"{prefix}weight_{part}_l{layer}{suffix}", None)
                missing = part == "hr" and not options
                assert entry == (None if missing else [role, layer, direction, cell])
    assert not found
    gates = {"lstm": "ifgo", "gru": "rzn", "rnn": ""}[cell]
    for matrix in recognise(index_of(shapes)).matrices:
        assert matrix.layout.gates == ("" if matrix.role == "P" else gates)


def test_layers_of_a_sequential_are_counted_through() -> None:
    model = nn.Sequential(
        nn.Embedding(9, 4), nn.LSTM(4, 5, 2), nn.Dropout(), nn.LSTM(5, 6), nn.Linear(6, 7)
    )
    assert [(role, layer) for _, role, layer, _, _ in recurrent(shapes_of(model))] == [
        (role, layer) for layer in (0, 1, 2) for role in ("Wi", "Wh")
    ]


def test_cells_in_a_list() -> None:
    model = nn.Module()
    model.cells = nn.ModuleList([nn.LSTMCell(4, 5), nn.LSTMCell(5, 5), nn.GRUCell(5, 3)])
    assert [entry[1:] for entry in recurrent(shapes_of(model))] == [
        (role, layer, "forward", cell)
        for layer, cell in enumerate(("lstm", "lstm", "gru"))
        for role in ("Wi", "Wh")
    ]


def test_modules_in_modules_of_a_list() -> None:
    model = nn.Module()
    blocks = [nn.Sequential() for _ in range(3)]
    for block in blocks:
        block.add_module("lstm", nn.LSTM(4, 4))
    model.layers = nn.ModuleList(blocks)
    assert [layer for _, _, layer, _, _ in recurrent(shapes_of(model))] == [0, 0, 1, 1, 2, 2]


def test_word_language_model() -> None:
    model = nn.Module()
    model.encoder, model.rnn = nn.Embedding(20, 6), nn.GRU(6, 6, 2)
    model.decoder = nn.Linear(6, 20)
    recognition = recognise(index_of(shapes_of(model), shares={"decoder.weight": "encoder.weight"}))
    assert recognition.family == "torch-rnn"
    assert by_key(recognition)["encoder.weight"].role == "embedding"
    assert recognition.roles_of_aliases == {"decoder.weight": "softmax"}


def test_two_modules_of_one_name_are_two_cells() -> None:
    one, inner = nn.LSTM(3, 4), nn.LSTM(3, 4)
    one.add_module("module", inner)
    shapes = {f"x.{name}": shape for name, shape in shapes_of(one).items()}
    assert len(recurrent(shapes)) == 4


def test_flat_weights_are_copies_in_the_order_of_the_module() -> None:
    module = nn.LSTM(3, 4, 2, bidirectional=True, proj_size=2)
    shapes = {f"rnn.{name}": shape for name, shape in shapes_of(module).items()}
    expected = {}
    for i, name in enumerate(module._flat_weights_names):
        shapes[f"rnn._flat_weights.{i}"] = shapes[f"rnn.{name}"]
        expected[f"rnn._flat_weights.{i}"] = f"rnn.{name}"
    recognition = recognise(index_of(shapes))
    assert recognition.copies == expected
    assert not recognition.unrecognised


@pytest.mark.parametrize("before_raw", [".module.", "."], ids=["awd-lstm", "fastai"])
def test_flat_weights_stand_for_the_raw_weight(before_raw: str) -> None:
    shapes = awd_lstm(before_raw=before_raw)
    inner = "rnns.1.module."
    held = f"rnns.1{before_raw}weight_hh_l0_raw"
    names = [f"{inner}weight_ih_l0", held, f"{inner}bias_ih_l0", f"{inner}bias_hh_l0"]
    shapes |= {f"{inner}_flat_weights.{i}": shapes[name] for i, name in enumerate(names)}
    recognition = recognise(index_of(shapes))
    assert recognition.copies == {f"{inner}_flat_weights.{i}": name for i, name in enumerate(names)}


def test_a_flat_weight_that_repeats_nothing_is_seen() -> None:
    shapes = shapes_of(nn.LSTM(3, 4)) | {"_flat_weights.0": (5, 5), "_flat_weights.9": (16, 3)}
    found = dict(recognise(index_of(shapes)).unrecognised)
    assert sorted(found) == ["_flat_weights.0", "_flat_weights.9"]


# ELMo


def test_elmo_with_token_input() -> None:
    shapes = elmo(64, 16, characters=False)
    recognition = recognise(index_of(shapes))
    assert recognition.family == "elmo"
    assert len(recognition.matrices) == 12
    embedding = recognise(index_of({"embedding": (100, 16)}))
    assert [m.role for m in embedding.matrices] == ["embedding"]


def test_elmo_of_one_layer() -> None:
    found = recurrent(elmo(64, 16, n_layers=1))
    assert [entry[1:4] for entry in found] == [
        (role, 0, direction) for direction in ("forward", "backward") for role in ("Wi", "Wh", "P")
    ]


def test_elmo_without_projection() -> None:
    matrices = by_key(recognise(index_of(elmo(16, 16, n_layers=1))))
    name = "RNN_0/RNN/LSTMCell/W_0"
    assert matrices[f"{name}.Wi"].part == Part(0, 0, 16)
    assert matrices[f"{name}.Wh"].part == Part(0, 16, 32)


def test_elmo_whose_first_layer_has_another_input_size() -> None:
    shapes = elmo(64, 16)
    name = "RNN_0/RNN/MultiRNNCell/Cell0/LSTMCell/W_0"
    shapes[name] = (24 + 16, 256)
    matrices = by_key(recognise(index_of(shapes)))
    assert matrices[f"{name}.Wi"].shape == (24, 256)
    assert matrices[f"{name}.Wh"].part == Part(0, 24, 40)


def test_elmo_of_one_direction() -> None:
    """The dump then renames scopes and not leaves: it looks for /rnn/, and the name begins so."""
    shapes: Shapes = {}
    for layer in (0, 1):
        cell = f"rnn/MultiRNNCell/Cell{layer}/LSTMCell"
        shapes[f"{cell}/kernel"] = (32, 256)
        shapes[f"{cell}/bias"] = (256,)
        shapes[f"{cell}/projection/kernel"] = (64, 16)
    assert [entry[1:4] for entry in recurrent(shapes)] == [
        (role, layer, "forward") for layer in (0, 1) for role in ("Wi", "Wh", "P")
    ]


# files that other programs wrote


def test_the_authentic_awd_lstm(shared_data: Path) -> None:
    reader = open_checkpoint(shared_data / "awd_lstm" / "whole_module_torch1.2.pt")
    found = recognise(reader.checkpoint)
    reader.close()
    assert found.family == "awd-lstm"
    assert [(m.source, m.role, m.layer, m.shape) for m in found.matrices] == [
        ("encoder.weight", "embedding", None, (500, 40)),
        ("rnns.0.module.weight_ih_l0", "Wi", 0, (384, 40)),
        ("rnns.0.module.weight_hh_l0_raw", "Wh", 0, (384, 96)),
        ("rnns.1.module.weight_ih_l0", "Wi", 1, (384, 96)),
        ("rnns.1.module.weight_hh_l0_raw", "Wh", 1, (384, 96)),
        ("rnns.2.module.weight_ih_l0", "Wi", 2, (160, 96)),
        ("rnns.2.module.weight_hh_l0_raw", "Wh", 2, (160, 40)),
    ]
    assert found.roles_of_aliases == {"decoder.weight": "softmax"}
    plain = {f"rnns.{i}.module.weight_hh_l0" for i in range(3)}
    assert plain <= found.copies.keys() | found.aliases.keys()
    assert all(name.startswith("optimizer.") for name in found.dropped)
    assert len(found.dropped) == 14
    assert not found.unrecognised


@pytest.mark.parametrize("folder", ["elmo_allennlp", "elmo_bilm_tf"])
def test_the_authentic_elmos(shared_data: Path, folder: str) -> None:
    reader = open_checkpoint(shared_data / folder / "lm_weights.hdf5")
    found = recognise(reader.checkpoint)
    n_matrices = sum(len(ref.shape) == 2 for ref in reader.checkpoint.tensors.values())
    reader.close()
    assert found.family == "elmo"
    assert len(found.matrices) == n_matrices + 4
    roles = [m.role for m in found.matrices]
    assert {role: roles.count(role) for role in set(roles)} == {
        "Wi": 4, "Wh": 4, "P": 4, "linear": 5, "embedding": 1,
    }  # fmt: skip
    assert all(math.prod(m.shape) == 16 * 256 for m in found.matrices if m.role in {"Wi", "Wh"})
    assert not found.unrecognised
