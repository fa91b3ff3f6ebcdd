"""Keras checkpoints: which weights are which, and files that come back as they were."""

import io
import json
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from indexes import Shapes, index_of
from numpy.typing import NDArray

from ckptshrink.errors import CheckpointError, LayoutError, ManifestMismatchError, OutputError
from ckptshrink.io import hdf5_file
from ckptshrink.io.detect import open_checkpoint
from ckptshrink.io.files import SourceFile
from ckptshrink.io.hdf5_file import open_hdf5
from ckptshrink.io.keras_config import cells_in
from ckptshrink.io.keras_file import open_keras, write_like, write_new
from ckptshrink.io.torch_zip import ZipIndex
from ckptshrink.layouts import recognise

sys.path.append(str(Path(__file__).resolve().parents[2] / "fixtures"))

import keras_models

Row = tuple[str, str, int | None, str | None, str, str]


def rows(shapes: Shapes) -> list[Row]:
    """Return source, role, layer, direction, cell and gates of every gate matrix."""
    found = recognise(index_of(shapes))
    assert not found.unrecognised
    assert found.family == "keras"
    gated = [m for m in found.matrices if m.layer is not None]
    assert all(m.layout.transposed and m.layout.axis == 1 for m in gated)
    return [
        (m.source, m.role, m.layer, m.direction, m.cell, m.layout.gates)  # type: ignore[misc]
        for m in gated
    ]


def cell(prefix: str, n: int, u: int, gates: int, suffix: str = ":0") -> Shapes:
    return {
        f"{prefix}kernel{suffix}": (n, gates * u),
        f"{prefix}recurrent_kernel{suffix}": (u, gates * u),
        f"{prefix}bias{suffix}": (gates * u,),
    }


def variables(path: str, n: int, u: int, gates: int) -> Shapes:
    return {
        f"{path}/vars/0": (n, gates * u),
        f"{path}/vars/1": (u, gates * u),
        f"{path}/vars/2": (gates * u,),
    }


# Prefix of a layer's weights, as writers have named them since Keras 2.0.
NAMED = [
    "lstm_1/lstm_1/",  # Keras 2.2
    "lstm/lstm/lstm_cell/",  # tf.keras 2.4 and later
    "lstm/sequential/lstm/lstm_cell/",  # .h5 of Keras 3
    "model_weights/encoder/encoder/lstm_cell_3/",
    "rnn/rnn/stacked_rnn_cells/lstm_cell/",
]


@pytest.mark.parametrize("prefix", NAMED)
@pytest.mark.parametrize(
    ("gates", "kind", "order"), [(4, "lstm", "ifco"), (3, "gru", "zrh"), (1, "rnn", "")]
)
def test_named_weights(prefix: str, gates: int, kind: str, order: str) -> None:
    for suffix in (":0", ""):
        shapes = cell(prefix, 6, 5, gates, suffix)
        assert rows(shapes) == [
            (f"{prefix}kernel{suffix}", "Wi", 0, "forward", kind, order),
            (f"{prefix}recurrent_kernel{suffix}", "Wh", 0, "forward", kind, order),
        ]


@pytest.mark.parametrize(
    "path",
    [
        "layers/lstm/cell",
        "_layer_checkpoint_dependencies/lstm/cell",
        "layers/functional/layers/lstm_2/cell",
        "encoder/rnn/cell",
        "layers/rnn/cell/cells/lstm_cell_1",
        "decoder_cell",
    ],
)
@pytest.mark.parametrize(
    ("gates", "kind", "order"), [(4, "lstm", "ifco"), (3, "gru", "zrh"), (1, "rnn", "")]
)
def test_numbered_weights(path: str, gates: int, kind: str, order: str) -> None:
    assert rows(variables(path, 6, 5, gates)) == [
        (f"{path}/vars/0", "Wi", 0, "forward", kind, order),
        (f"{path}/vars/1", "Wh", 0, "forward", kind, order),
    ]


@pytest.mark.parametrize(
    ("forward", "backward", "make"),
    [
        ("bi/bi/forward_lstm/lstm_cell_1/", "bi/bi/backward_lstm/lstm_cell_2/", cell),
        ("bi/bi/forward_gru_1/", "bi/bi/backward_gru_1/", cell),
        ("layers/bi/forward_layer/cell", "layers/bi/backward_layer/cell", variables),
    ],
)
def test_directions_are_one_layer(
    forward: str, backward: str, make: Callable[[str, int, int, int], Shapes]
) -> None:
    shapes = {**make(forward, 6, 5, 4), **make(backward, 6, 5, 4)}
    assert [(row[2], row[3]) for row in rows(shapes)] == [
        (0, "forward"), (0, "forward"), (0, "backward"), (0, "backward"),
    ]  # fmt: skip


def test_stacked_cells_of_two_directions() -> None:
    shapes: Shapes = {}
    for half in ("backward", "forward"):
        stack = f"layers/bidirectional/{half}_layer/cell/cells/"
        shapes |= variables(f"{stack}lstm_cell", 6, 5, 4) | variables(f"{stack}gru_cell", 5, 4, 3)
    shapes |= variables("layers/lstm/cell", 8, 5, 4)
    layers = [(row[2], row[3], row[4]) for row in rows(shapes) if row[1] == "Wh"]
    assert layers == [
        (0, "backward", "lstm"), (1, "backward", "gru"),
        (0, "forward", "lstm"), (1, "forward", "gru"), (2, "forward", "lstm"),
    ]  # fmt: skip


def test_cells_of_one_scope() -> None:
    # TensorFlow numbers what has the same name
    shapes = {**cell("rnn/rnn/", 6, 5, 4), **cell("rnn/rnn/", 5, 4, 3, "_1:0")}
    assert [(row[2], row[4]) for row in rows(shapes)] == [
        (0, "lstm"), (0, "lstm"), (1, "gru"), (1, "gru"),
    ]  # fmt: skip


def test_a_bias_for_each_product_is_no_matrix() -> None:
    for shapes in (cell("gru/gru/gru_cell/", 6, 5, 3), variables("layers/gru/cell", 6, 5, 3)):
        *_, bias = shapes
        shapes[bias] = (2, 15)
        assert len(rows(shapes)) == 2
        assert len(recognise(index_of(shapes)).matrices) == 2
        shapes[bias] = (3, 15)
        with pytest.raises(LayoutError, match=r"a bias for each of its products is \(2, 15\)"):
            recognise(index_of(shapes))


def test_weights_of_keras_1() -> None:
    shapes = {f"lstm_1/lstm_1_{part}_{g}": (6, 6) for g in "icfo" for part in "WU"}
    shapes |= {"gru_1/gru_1_W:0": (6, 12), "gru_1/gru_1_U:0": (4, 12), "dense_1/dense_1_W": (4, 3)}
    found = rows(shapes)
    assert [(row[1], row[2], row[4], row[5]) for row in found[:4]] == [
        ("Wi", 0, "lstm", "i"), ("Wh", 0, "lstm", "i"),
        ("Wi", 0, "lstm", "c"), ("Wh", 0, "lstm", "c"),
    ]  # fmt: skip
    assert [(row[1], row[2], row[4], row[5]) for row in found[8:]] == [
        ("Wi", 1, "gru", "zrh"), ("Wh", 1, "gru", "zrh"),
    ]  # fmt: skip


def test_roles_outside_cells() -> None:
    shapes = {
        **variables("layers/lstm/cell", 6, 5, 4),
        "layers/embedding_1/vars/0": (9, 6),
        "layers/dense/vars/0": (5, 3),
        "layers/time_distributed/layer/vars/0": (5, 3),
        "layers/layer_normalization/vars/0": (5,),
    }
    roles = {m.source: (m.role, m.layout.transposed) for m in recognise(index_of(shapes)).matrices}
    assert roles["layers/embedding_1/vars/0"] == ("embedding", False)
    assert roles["layers/dense/vars/0"] == ("linear", True)
    assert roles["layers/time_distributed/layer/vars/0"] == ("linear", True)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"conv_lstm2d/conv_lstm2d/kernel:0": (3, 3, 2, 8)}, "ConvLSTM"),
        ({"layers/conv_lstm1d/cell/vars/1": (3, 2, 8)}, "ConvLSTM"),
        ({"lstm/lstm_cell/kernel:0": (3, 8)}, "recurrent cell"),
        ({"layers/x/cell/vars/0": (3, 8)}, "Keras cell"),
        ({"decoder/vars/0": (3, 20), "decoder/vars/1": (5, 20)}, "nothing says that it is one"),
        ({"a/b/kernel:0": (3, 35), "a/b/recurrent_kernel:0": (5, 35)}, "is of no known cell"),
    ],
)
def test_what_fits_no_cell_is_reported(shapes: Shapes, words: str) -> None:
    found = recognise(index_of(shapes), strict=False)
    assert {name for name, _ in found.unrecognised} == set(shapes)
    assert any(words in why for _, why in found.unrecognised)
    assert not found.matrices


def test_other_layers_with_numbers_are_no_cells() -> None:
    shapes = {"layers/dense/vars/0": (3, 20), "layers/dense/vars/1": (20,)}
    shapes |= {"layers/lora/vars/0": (8, 6), "layers/lora/vars/1": (8, 4)}
    assert not recognise(index_of(shapes)).unrecognised


def test_the_order_of_the_model_numbers_the_layers(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.attrs["layer_names"] = ["z", "a"]
        for layer in ("a", "z"):  # groups are made by name
            group = file.create_group(layer)
            names = [f"{layer}/{leaf}" for leaf in cell("", 6, 5, 4)]
            group.attrs["weight_names"] = names
            for name, shape in zip(names, cell("", 6, 5, 4).values(), strict=True):
                group[name] = np.zeros(shape, "f4")
    with closing(open_hdf5(tmp_path / "w.h5")) as reader:
        found = recognise(reader.checkpoint)
    assert [(m.source.split("/")[0], m.layer) for m in found.matrices if m.role == "Wh"] == [
        ("z", 0), ("a", 1),
    ]  # fmt: skip


def test_cells_of_a_config() -> None:
    config = keras_models.keras3_config()
    found = [(c.path, c.top, c.class_name, c.recurrent_shape) for c in cells_in(config)]
    assert found == [
        ("layers/bidirectional/forward_layer/cell", "bidirectional", "LSTM", (16, 64)),
        ("layers/bidirectional/backward_layer/cell", "bidirectional", "LSTM", (16, 64)),
        ("layers/gru/cell", "gru", "GRU", (16, 48)),
    ]


def test_cells_of_nested_models_and_stacks() -> None:
    def node(kind: str, **config: Any) -> dict[str, Any]:
        return {"class_name": kind, "config": {"name": kind.lower(), **config}}

    stack = node("StackedRNNCells", cells=[node("LSTMCell", units=3), node("LSTMCell", units=4)])
    inner = node("Sequential", layers=[node("GRU", units=5), node("RNN", cell=stack)])
    outer = node(
        "Functional",
        layers=[
            node("SimpleRNN", units=2), node("SimpleRNN", units=3), inner,
            node("TimeDistributed", layer=node("LSTM", units=2)),
            {**node("LSTM", units=9), "module": "my.layers"},
        ],
    )  # fmt: skip
    assert [(c.path, c.recurrent_shape) for c in cells_in(outer)] == [
        ("layers/simple_rnn/cell", (2, 2)),
        ("layers/simple_rnn_1/cell", (3, 3)),
        ("layers/sequential/layers/gru/cell", (5, 15)),
        ("layers/sequential/layers/rnn/cell/cells/lstm_cell", (3, 12)),
        ("layers/sequential/layers/rnn/cell/cells/lstm_cell_1", (4, 16)),
        ("layers/time_distributed/layer/cell", (2, 8)),
    ]
    assert cells_in({"class_name": "MyModel", "config": {"layers": 3}}) == ()
    assert cells_in([1, {"config": None}]) == ()


def test_a_cell_of_ones_own_is_left_open(tmp_path: Path) -> None:
    config = keras_models.keras3_config()
    gru = config["config"]["layers"][3]
    own = {"class_name": "MyCell", "module": "mine", "config": {"name": "c", "units": 16}}
    gru.update(class_name="RNN", config={"name": "rnn", "cell": own})
    with h5py.File(io.BytesIO(keras_models.keras3_weights())) as old:
        out = io.BytesIO()
        with h5py.File(out, "w") as new:
            old.copy("layers", new)
            new.move("layers/gru", "layers/rnn")
    path = tmp_path / "own.keras"
    path.write_bytes(keras_models.keras3_archive(out.getvalue(), config))
    with closing(open_checkpoint(path)) as reader:
        found = recognise(reader.checkpoint, strict=False)
    assert [name for name, _ in found.unrecognised] == [
        "layers/rnn/cell/vars/0", "layers/rnn/cell/vars/1", "layers/rnn/cell/vars/2",
    ]  # fmt: skip
    assert all("MyCell is not one of Keras's" in why for _, why in found.unrecognised)


def by_h5py(content: bytes) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}
    with h5py.File(io.BytesIO(content)) as file:

        def visit(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                found[name] = item[()]

        file.visititems(visit)
    return found


@pytest.fixture(params=[zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "lm.keras"
    path.write_bytes(keras_models.keras3_archive(method=request.param))
    return path


def test_an_archive_is_read(archive: Path) -> None:
    expected = by_h5py(keras_models.keras3_weights())
    with closing(open_checkpoint(archive)) as reader:
        assert reader.checkpoint.format == "keras"
        assert set(reader.checkpoint.tensors) == set(expected)
        for name, value in expected.items():
            data = reader.read(name)
            assert data.flags.writeable
            assert data.tobytes() == value.tobytes()
            assert b"".join(bytes(chunk) for chunk in reader.chunks(name)) == value.tobytes()
        json.dumps(reader.checkpoint.container, allow_nan=False)
        assert recognise(reader.checkpoint).family == "keras"


def test_an_archive_is_copied_with_other_values(archive: Path, tmp_path: Path) -> None:
    name = "layers/gru/cell/vars/1"
    value = np.arange(16 * 48, dtype="f4")
    out = io.BytesIO()
    with closing(open_keras(archive)) as reader:
        write_like(reader, {name: lambda: value.view(np.uint8)}, tmp_path / "scratch", out)
        with pytest.raises(OutputError, match="not in the source"):
            write_like(reader, {"x": lambda: value.view(np.uint8)}, tmp_path / "s2", io.BytesIO())
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(out) as new:
        assert new.testzip() is None
        assert old.namelist() == new.namelist()
        assert old.read("config.json") == new.read("config.json")
        before = by_h5py(old.read("model.weights.h5"))
        after = by_h5py(new.read("model.weights.h5"))
    assert list(before) == list(after)
    assert after.pop(name).tobytes() == value.tobytes()
    assert all(after[n].tobytes() == before[n].tobytes() for n in after)


def test_an_archive_is_written_anew(archive: Path, tmp_path: Path) -> None:
    made = []
    with closing(open_keras(archive)) as reader:
        checkpoint = reader.checkpoint
        kept = {n: r for n, r in checkpoint.tensors.items() if not n.startswith("optimizer")}
        for number in range(2):
            out = io.BytesIO()
            scratch = tmp_path / f"scratch{number}"
            write_new(checkpoint.container, kept, reader.chunks, scratch, out)
            made.append(out.getvalue())
    assert made[0] == made[1]
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(io.BytesIO(made[0])) as new:
        assert old.namelist() == new.namelist()
        assert old.read("config.json") == new.read("config.json")
        weights = new.read("model.weights.h5")
    assert set(by_h5py(weights)) == set(kept)
    with h5py.File(io.BytesIO(weights)) as file:
        assert "optimizer" not in file
        assert file["layers/gru/cell/vars"].attrs["name"] == "gru_cell"
    (tmp_path / "again.keras").write_bytes(made[0])
    with closing(open_keras(tmp_path / "again.keras")) as reader:
        for name in kept:
            assert reader.read(name).size == kept[name].nbytes


def test_assets_are_kept_and_large_ones_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckptshrink.io.keras_file._MAX_KEPT", 10_000)
    out = io.BytesIO(keras_models.keras3_archive())
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr("assets/vocabulary.txt", "ä\nb\n")
        archive.writestr("assets/table.bin", b"\xff\x00")
        archive.writestr("assets/large.txt", "x" * 20_000)
    path = tmp_path / "a.keras"
    path.write_bytes(out.getvalue())
    again = io.BytesIO()
    with closing(open_keras(path)) as reader:
        assert any("assets/large.txt: 20,000 bytes" in note for note in reader.checkpoint.notes)
        checkpoint = reader.checkpoint
        write_new(checkpoint.container, checkpoint.tensors, reader.chunks, tmp_path / "s", again)
    with zipfile.ZipFile(again) as new:
        assert new.read("assets/vocabulary.txt").decode() == "ä\nb\n"
        assert new.read("assets/table.bin") == b"\xff\x00"
        assert "assets/large.txt" not in new.namelist()


@pytest.mark.parametrize(
    "members",
    [
        None,
        [],
        [{"name": "model.weights.h5"}, {"name": "model.weights.h5"}],
        [{"name": "config.json"}],
        [{"name": "model.weights.h5"}, {"name": "x", "base64": "*"}],
        [{"name": "model.weights.h5"}, {"name": "x", "text": 3}],
    ],
)
def test_a_record_that_is_none_is_refused(members: Any, tmp_path: Path) -> None:
    container = {"members": members, "weights": {"groups": [], "datasets": []}}
    with pytest.raises(ManifestMismatchError, match="none of a Keras archive"):
        write_new(container, {}, lambda _: [], tmp_path / "s", io.BytesIO())


def test_a_window_is_a_file_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(range(100)))
    with closing(SourceFile(path)) as file:
        part = file.window(10, 50).window(5, 20)
    with closing(part):
        assert part.size == 20
        assert part.read(0, 20).tobytes() == bytes(range(15, 35))
        assert b"".join(bytes(c) for c in part.chunks(1, 3)) == bytes([16, 17, 18])


def attribute_values(file: h5py.File) -> Iterator[tuple[str, str, Any]]:
    yield from (("", key, value) for key, value in file.attrs.items())
    names: list[str] = []
    file.visit(names.append)
    for name in names:
        yield from ((name, key, value) for key, value in file[name].attrs.items())


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("block", [0, 1024])
def test_texts_of_variable_length(tmp_path: Path, libver: str, block: int) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", libver=libver, userblock_size=block) as file:
        file["w"] = np.zeros(3, "f4")
        for item in (file, file["w"], file.create_group("g")):
            item.attrs["one"] = "ä" * 3000
            item.attrs["none"] = ""
            item.attrs["several"] = ["a", "", "c" * 5000]
            item.attrs["ascii"] = np.array([b"x", b"yz"], h5py.string_dtype("ascii"))
            item.attrs["empty"] = np.array([], h5py.string_dtype())
            item.attrs["numbers"] = []
    with closing(open_hdf5(path)) as reader, h5py.File(path) as file:
        assert reader.checkpoint.notes == ()
        records = {g["name"]: g["attributes"] for g in reader.checkpoint.container["groups"]}
        records |= {d["name"]: d["attributes"] for d in reader.checkpoint.container["datasets"]}
        read = {(n, a["name"]): a["value"] for n, attributes in records.items() for a in attributes}
        known = {
            (name, key): value if isinstance(value, str) else value.tolist()
            for name, key, value in attribute_values(file)
        }
    known = {
        key: [v.decode() if isinstance(v, bytes) else v for v in value]
        if isinstance(value, list) else value
        for key, value in known.items()
    }  # fmt: skip
    assert read == known


def test_many_attributes_of_a_new_file_are_noted(tmp_path: Path) -> None:
    # more than eight, and HDF5 keeps them in a heap that is not read
    with h5py.File(tmp_path / "x.h5", "w", libver="latest") as file:
        for number in range(20):
            file.attrs[f"a{number:02}"] = f"text {number}"
    with closing(open_hdf5(tmp_path / "x.h5")) as reader:
        assert len(reader.checkpoint.notes) == 20


def test_the_zip_of_keras_says_what_to_do(archive: Path) -> None:
    with closing(SourceFile(archive)) as file:
        error = ZipIndex(file, hint="do this").unsafe("is large")
    assert error.hint == "do this"


def test_bfloat16_as_keras_3_stores_it(tmp_path: Path) -> None:
    path, again = tmp_path / "b.h5", tmp_path / "again.h5"
    halves = (np.arange(24, dtype="f4").view("u4") >> 16).astype("<u2").reshape(4, 6)
    with h5py.File(path, "w") as file:
        file["vars/0"] = halves.view("V2")
        file["vars/0"].attrs["dtype"] = "bfloat16"
    with closing(open_hdf5(path)) as reader:
        checkpoint = reader.checkpoint
        assert checkpoint.tensors["vars/0"].dtype == "BF16"
        assert reader.read("vars/0").tobytes() == halves.tobytes()
        hdf5_file.write_new(checkpoint.container, checkpoint.tensors, reader.chunks, again)
    with h5py.File(again) as file:
        assert file["vars/0"].dtype == np.dtype("V2")
        assert file["vars/0"][()].tobytes() == halves.tobytes()
        assert file["vars/0"].attrs["dtype"] == "bfloat16"
    with h5py.File(path, "r+") as file:
        del file["vars/0"].attrs["dtype"]
    with pytest.raises(CheckpointError, match="holds opaque bytes"):
        open_hdf5(path)


def packed_bfloat16() -> tuple[bytes, bytes]:
    """Return weights of Keras 3 with one of bfloat16 that is packed, and its values."""
    halves = (np.arange(2000, dtype="f4").view("u4") >> 16).astype("<u2").reshape(40, 50)
    out = io.BytesIO(keras_models.keras3_weights())
    with h5py.File(out, "r+") as file:
        vars_ = file.create_group("layers/normal/vars")
        vars_.create_dataset("0", data=halves.view("V2"), chunks=(8, 50), compression=1)
        vars_["0"].attrs["dtype"] = "bfloat16"
        vars_["1"] = halves.view("V2")
        vars_["1"].attrs["dtype"] = "bfloat16"
    return out.getvalue(), halves.tobytes()


@pytest.mark.parametrize("form", ["h5", "stored", "deflated"])
def test_packed_bfloat16_is_read_and_written_by_the_librarys_process(
    form: str, tmp_path: Path
) -> None:
    weights, values = packed_bfloat16()
    path, again = tmp_path / "x", tmp_path / "again"
    if form == "h5":
        path.write_bytes(weights)
    else:
        method = zipfile.ZIP_STORED if form == "stored" else zipfile.ZIP_DEFLATED
        path.write_bytes(keras_models.keras3_archive(weights, method=method))
    names = ("layers/normal/vars/0", "layers/normal/vars/1")
    new = np.frombuffer(values, np.uint8)[::-1].copy()
    with closing(open_checkpoint(path)) as reader:
        for name in names:
            assert reader.checkpoint.tensors[name].dtype == "BF16"
            assert reader.read(name).tobytes() == values
        replaced = dict.fromkeys(names, lambda: new)
        if form == "h5":
            hdf5_file.write_like(reader, replaced, again)
        else:
            with again.open("wb") as out:
                write_like(reader, replaced, tmp_path / "scratch", out)
    with closing(open_checkpoint(again)) as reader:
        for name in names:
            assert reader.checkpoint.tensors[name].dtype == "BF16"
            assert reader.read(name).tobytes() == new.tobytes()


def test_two_archives_in_one_file_are_two_windows(tmp_path: Path) -> None:
    """The library's process sees the window, and nothing of what lies around it."""
    weights, values = packed_bfloat16()
    path = tmp_path / "x"
    path.write_bytes(b"x" * 77 + weights + keras_models.keras3_weights())
    with closing(SourceFile(path)) as whole:
        size = path.stat().st_size
        first = whole.window(77, len(weights))
        second = whole.window(77 + len(weights), size - 77 - len(weights))
        cut = whole.window(77, len(weights) - 1000)
    with (
        closing(hdf5_file.open_hdf5_in(first)) as one,
        closing(hdf5_file.open_hdf5_in(second)) as two,
    ):
        assert one.read("layers/normal/vars/0").tobytes() == values
        assert one.read("layers/normal/vars/1").tobytes() == values
        assert "layers/normal/vars/0" not in two.checkpoint.tensors
        assert two.read("layers/gru/cell/vars/1").tobytes() == (
            by_h5py(keras_models.keras3_weights())["layers/gru/cell/vars/1"].tobytes()
        )
    with pytest.raises(CheckpointError):
        hdf5_file.open_hdf5_in(cut)
