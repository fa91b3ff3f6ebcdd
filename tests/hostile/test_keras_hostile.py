"""Keras files, damaged or made to mislead: refused in one line, at once, nothing half-read."""

import copy
import io
import json
import struct
import sys
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckptshrink.errors import CheckpointError, CorruptCheckpointError, UnsafeCheckpointError
from ckptshrink.io import hdf5_texts, hdf5_walk
from ckptshrink.io.detect import open_checkpoint
from ckptshrink.io.files import SourceFile
from ckptshrink.io.hdf5_library import open_view
from ckptshrink.layouts import recognise

sys.path.append(str(Path(__file__).resolve().parents[2] / "fixtures"))

import keras_models

ARCHIVE = keras_models.keras3_archive()


def read_all(path: Path) -> None:
    with closing(open_checkpoint(path)) as reader:
        recognise(reader.checkpoint)
        for name in reader.checkpoint.tensors:
            reader.read(name)


def refused(path: Path, content: bytes, error: type[CheckpointError], words: str) -> None:
    path.write_bytes(content)
    start = time.process_time()  # the library's own process limits its own
    with pytest.raises(error, match=words) as caught:
        read_all(path)
    assert time.process_time() - start < 5
    assert "\n" not in str(caught.value)
    assert caught.value.path == str(path)


def archive_of(members: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", method) as archive:
        warnings.simplefilter("ignore")  # of names that come twice
        for name, content in members:
            archive.writestr(name, content)
    return out.getvalue()


CONFIG = json.dumps(keras_models.keras3_config()).encode()
WEIGHTS = keras_models.keras3_weights()


ARCHIVES: dict[str, tuple[bytes, type[CheckpointError], str]] = {
    "no weights": (
        archive_of([("metadata.json", b"{}"), ("config.json", CONFIG)]),
        CorruptCheckpointError, "without its model.weights.h5",
    ),
    "no config": (
        archive_of([("metadata.json", b"{}"), ("model.weights.h5", WEIGHTS)]),
        CorruptCheckpointError, "without its config.json",
    ),
    "weights twice": (
        archive_of([("config.json", CONFIG), *[("model.weights.h5", WEIGHTS)] * 2]),
        UnsafeCheckpointError, "two entries called 'model.weights.h5'",
    ),
    "leads elsewhere": (
        archive_of([("config.json", CONFIG), ("model.weights.h5", WEIGHTS), ("../x", b"")]),
        UnsafeCheckpointError, "an entry called",
    ),
    "bomb": (
        archive_of(
            [("config.json", CONFIG), ("model.weights.h5", bytes(100 << 20))], zipfile.ZIP_DEFLATED
        ),
        UnsafeCheckpointError, "inflates from",
    ),
    "weights are none": (
        archive_of([("config.json", CONFIG), ("model.weights.h5", b"x" * 3000)]),
        CorruptCheckpointError, "HDF5",
    ),
    "weights cut short": (
        archive_of([("config.json", CONFIG), ("model.weights.h5", WEIGHTS[:-2000])]),
        CorruptCheckpointError, "HDF5|ends after|announced",
    ),
    "config is no JSON": (
        archive_of([("config.json", b"{"), ("model.weights.h5", WEIGHTS)]),
        CorruptCheckpointError, "config.json is not valid",
    ),
    "config is a list": (
        archive_of([("config.json", b"[]"), ("model.weights.h5", WEIGHTS)]),
        CorruptCheckpointError, "not a JSON object",
    ),
    "config is of no model": (
        archive_of([("config.json", b"{}"), ("model.weights.h5", WEIGHTS)]),
        CorruptCheckpointError, "names no class",
    ),
    "config is deep": (
        archive_of([("config.json", b'{"a":' * 90_000), ("model.weights.h5", WEIGHTS)]),
        CorruptCheckpointError, "nested too deeply|not valid",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_are_refused(name: str, tmp_path: Path) -> None:
    refused(tmp_path / "m.keras", *ARCHIVES[name])


def contradicting(change: Callable[[list[Any]], None]) -> bytes:
    config = copy.deepcopy(keras_models.keras3_config())
    change(config["config"]["layers"])
    return keras_models.keras3_archive(config=config)


def test_a_config_of_other_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.keras"

    def as_lstm(layers: list[Any]) -> None:
        layers[3]["config"]["units"] = 12

    def other_class(layers: list[Any]) -> None:
        layers[3]["class_name"] = "LSTM"

    def other_half(layers: list[Any]) -> None:
        layers[2]["config"]["backward_layer"]["config"]["units"] = 8

    refused(
        path, contradicting(as_lstm), CorruptCheckpointError,
        r"GRU 'gru' of 12 units, whose recurrent kernel is \(12, 36\), and here it is \(16, 48\)",
    )  # fmt: skip
    words = "LSTM 'gru', and there are no weights at layers/lstm/cell"
    refused(path, contradicting(other_class), CorruptCheckpointError, words)
    words = r"backward_layer/cell/vars/1.*LSTM 'backward_lstm' of 8 units"
    refused(path, contradicting(other_half), CorruptCheckpointError, words)


def test_nothing_that_a_config_names_is_run(tmp_path: Path) -> None:
    def with_lambda(layers: list[Any]) -> None:
        code = {"class_name": "__lambda__", "config": {"value": ["4wEAAAA=", None, None]}}
        layers.append({"module": "os", "class_name": "system", "config": {"function": code}})
        layers[-1]["registered_name"] = "os>system"

    path = tmp_path / "m.keras"
    path.write_bytes(contradicting(with_lambda))
    events: list[str] = []
    watched = [True]

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if watched[0] and event in {"import", "os.system", "exec", "marshal.loads"}:
            events.append(f"{event} {args}")

    read_all(path)  # imports what reading needs
    sys.addaudithook(hook)
    read_all(path)
    watched[0] = False
    assert events == []


@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_archives_cut_or_changed_anywhere(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    at = data.draw(st.integers(0, len(ARCHIVE) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(ARCHIVE[:at])
        with pytest.raises(CheckpointError):
            read_all(path)
    else:
        changed = bytearray(ARCHIVE)
        changed[at] ^= data.draw(st.integers(1, 255))
        path.write_bytes(changed)
        try:
            read_all(path)
        except CheckpointError as error:
            assert "\n" not in str(error)


def test_a_changed_byte_of_the_weights_is_seen(tmp_path: Path) -> None:
    at = ARCHIVE.index(np.float32(0.01).tobytes())
    changed = bytearray(ARCHIVE)
    changed[at] ^= 1
    words = "another checksum than its content"
    refused(tmp_path / "m.keras", bytes(changed), CorruptCheckpointError, words)


def keras2(**attributes: Any) -> bytes:
    out = io.BytesIO()
    with h5py.File(out, "w") as file:
        group = file.create_group("lstm")
        group["lstm/kernel:0"] = np.zeros((6, 20), "f4")
        group["lstm/recurrent_kernel:0"] = np.zeros((5, 20), "f4")
        file.attrs["layer_names"] = attributes.pop("layer_names", ["lstm"])
        names = ["lstm/kernel:0", "lstm/recurrent_kernel:0"]
        group.attrs["weight_names"] = attributes.pop("weight_names", names)
        for name, value in attributes.items():
            file.attrs[name] = value
    return out.getvalue()


def model_config(kind: str, units: int) -> str:
    layer = {"class_name": kind, "config": {"name": "lstm", "units": units}}
    return json.dumps({"class_name": "Sequential", "config": {"name": "s", "layers": [layer]}})


LIES: dict[str, tuple[bytes, str]] = {
    "layer": (keras2(layer_names=["lstm", "gru"]), "layer_names lists 'gru'.* no such group"),
    "weight": (
        keras2(weight_names=["lstm/kernel:0", "lstm/bias:0"]),
        "weight_names lists 'lstm: lstm/bias:0'.* no such dataset",
    ),
    "leads out": (keras2(layer_names=["../../etc"]), "lists '../../etc'"),
    "a number": (keras2(layer_names=3), "layer_names is no list"),
    "numbers": (keras2(layer_names=[1.5]), "lists '1.5'"),
    "config of a GRU": (keras2(model_config=model_config("GRU", 5)), "GRU 'lstm' of 5 units"),
    "config of 4 units": (keras2(model_config=model_config("LSTM", 4)), "LSTM 'lstm' of 4 units"),
    "config is no JSON": (keras2(model_config="{"), "model_config is no JSON"),
}


@pytest.mark.parametrize("name", LIES)
def test_attributes_that_lie(name: str, tmp_path: Path) -> None:
    content, words = LIES[name]
    refused(tmp_path / "w.h5", content, CorruptCheckpointError, words)


def test_a_config_that_fits_is_no_lie(tmp_path: Path) -> None:
    (tmp_path / "w.h5").write_bytes(keras2(model_config=model_config("LSTM", 5)))
    read_all(tmp_path / "w.h5")


def test_datasets_that_no_layer_lists_are_noted(tmp_path: Path) -> None:
    (tmp_path / "w.h5").write_bytes(keras2(weight_names=["lstm/kernel:0"]))
    with closing(open_checkpoint(tmp_path / "w.h5")) as reader:
        notes = reader.checkpoint.notes
    assert notes == ("lstm/lstm/recurrent_kernel:0: no layer lists it (1 such tensors)",)


def with_text() -> tuple[bytearray, int, int]:
    """Return a file with one text, where its reference is, and where its heap is."""
    out = io.BytesIO()
    with h5py.File(out, "w") as file:
        file["w"] = np.zeros(2, "f4")
        file.attrs["text"] = "needle" * 20
    content = bytearray(out.getvalue())
    heap = content.index(b"GCOL")
    reference = content.index(struct.pack("<LQL", 120, heap, 1))
    return content, reference, heap


@pytest.mark.parametrize(
    ("place", "packed", "error", "words"),
    [
        (
            "reference",
            struct.pack("<L", 0xFFFF_FFFF),
            CorruptCheckpointError,
            "takes 4,294,967,295",
        ),
        ("reference", struct.pack("<L", 121), CorruptCheckpointError, "takes 121 bytes"),
        ("address", struct.pack("<Q", 1 << 50), CorruptCheckpointError, "announced"),
        ("address", struct.pack("<Q", 8), CorruptCheckpointError, "no heap"),
        ("number", struct.pack("<L", 7), CorruptCheckpointError, "its place in the heap 0"),
        ("heap size", struct.pack("<Q", 1 << 60), CorruptCheckpointError, "no heap"),
        ("object size", struct.pack("<Q", 1 << 60), CorruptCheckpointError, "ends after the heap"),
        (
            "object size",
            struct.pack("<Q", 100),
            CorruptCheckpointError,
            "of a heap ends after|its place in the heap",
        ),
    ],
)
def test_texts_outside_their_heap(
    place: str, packed: bytes, error: type[CheckpointError], words: str, tmp_path: Path
) -> None:
    content, reference, heap = with_text()
    at = {
        "reference": reference, "address": reference + 4, "number": reference + 12,
        "heap size": heap + 8, "object size": heap + 24,
    }[place]  # fmt: skip
    content[at : at + len(packed)] = packed
    refused(tmp_path / "w.h5", bytes(content), error, words)


def test_texts_out_of_proportion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5_texts, "_MAX_TEXT", 100)
    content, _, _ = with_text()
    path = tmp_path / "w.h5"
    path.write_bytes(content)
    # in this process, whose limit is the one that is changed
    with (
        closing(SourceFile(path)) as file,
        open_view(file) as h5,
        pytest.raises(UnsafeCheckpointError, match="over 100 bytes of text"),
    ):
        hdf5_walk.walk(h5, file)


@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_headers_changed_anywhere(data: st.DataObject, tmp_path: Path) -> None:
    content, reference, heap = with_text()
    # the object header with the attribute, and the heap
    at = data.draw(
        st.one_of(st.integers(reference - 90, reference + 16), st.integers(heap, heap + 40))
    )
    content[at] = data.draw(st.integers(0, 255))
    path = tmp_path / "w.h5"
    path.write_bytes(content)
    start = time.process_time()
    try:
        read_all(path)
    except CheckpointError as error:
        assert "\n" not in str(error)
    assert time.process_time() - start < 5


def test_a_deflated_member_that_inflates_beyond_its_size(tmp_path: Path) -> None:
    content = bytearray(
        archive_of(
            [("config.json", CONFIG), ("model.weights.h5", bytes(5000))], zipfile.ZIP_DEFLATED
        )
    )
    crc = zlib.crc32(bytes(5000)).to_bytes(4, "little")
    for _ in range(2):  # the local header and the directory
        at = content.index(crc)
        content[at : at + 4] = zlib.crc32(bytes(3000)).to_bytes(4, "little")
        size = content.index((5000).to_bytes(4, "little"), at)
        content[size : size + 4] = (3000).to_bytes(4, "little")
    words = "inflates beyond its size"
    refused(tmp_path / "m.keras", bytes(content), CorruptCheckpointError, words)
