import json
import math
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from ckptshrink.errors import ManifestMismatchError, OutputError, UnknownFormatError
from ckptshrink.io.checkpoint import Reader
from ckptshrink.io.safetensors_file import (
    open_safetensors,
    plan_file,
    plan_shards,
    write_like,
    write_new,
)
from ckptshrink.io.safetensors_header import plan_in_order
from ckptshrink.tensors import TensorRef, nbytes_of

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NAMES = TEXTS.filter(lambda name: name not in {"", "__metadata__"})
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
ENTRIES = st.dictionaries(NAMES, st.tuples(SHAPES, st.sampled_from(list(DTYPES))), max_size=8)


class Folder:
    """Collects what is written, by file."""

    def __init__(self) -> None:
        self.files: dict[str, bytearray] = {}

    def __call__(self, name: str) -> "Folder._File":
        assert name not in self.files
        self.files[name] = bytearray()
        return Folder._File(self.files[name])

    class _File:
        def __init__(self, data: bytearray) -> None:
            self._data = data

        def write(self, data: memoryview) -> None:
            assert data.nbytes, "an empty view can't be cast, and none should be written"
            self._data += memoryview(data).cast("B")


def filled(entries: dict[str, tuple[tuple[int, ...], str]]) -> dict[str, bytes]:
    """Return payloads whose bytes are valid in every dtype, booleans included."""
    return {
        name: bytes(i % 2 for i in range(nbytes_of(shape, dtype)))
        for name, (shape, dtype) in entries.items()
    }


def as_tensor(data: bytes, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    if not data:
        return torch.empty(shape, dtype=DTYPES[dtype])
    return torch.frombuffer(bytearray(data), dtype=DTYPES[dtype]).reshape(shape)


def as_bytes(tensor: torch.Tensor) -> bytes:
    flat = tensor.contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b""


def write_files(folder: Path, files: dict[str, bytearray]) -> Path:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def singles(fixtures: Path) -> list[Path]:
    return [p for p in sorted((fixtures / "safetensors").iterdir()) if p.is_file()]


def check_read(reader: Reader, expected: dict[str, torch.Tensor]) -> None:
    assert set(reader.checkpoint.tensors) == set(expected)
    for name, ref in reader.checkpoint.tensors.items():
        data = reader.read(name)
        assert data.flags.writeable
        assert data.tobytes() == as_bytes(expected[name])
        assert data.tobytes() == b"".join(bytes(chunk) for chunk in reader.chunks(name))
        assert ref.shape == tuple(expected[name].shape)
        assert DTYPES[ref.dtype] == expected[name].dtype
        assert ref.nbytes == data.nbytes


def test_fixtures_are_read_as_the_library_reads_them(fixtures: Path) -> None:
    paths = singles(fixtures)
    assert {"lstm.safetensors", "lstm_float16.safetensors"} <= {path.name for path in paths}
    for path in paths:
        with closing(open_safetensors(path)) as reader:
            check_read(reader, load_file(path))
            assert reader.checkpoint.root == path
            assert reader.checkpoint.files == (path,)
            assert reader.checkpoint.format == "safetensors"
            assert reader.checkpoint.nbytes == path.stat().st_size


@pytest.mark.parametrize("by_folder", [True, False])
def test_shards_are_read_as_the_library_reads_them(fixtures: Path, by_folder: bool) -> None:
    folder = fixtures / "safetensors" / "sharded"
    index = folder / "model.safetensors.index.json"
    expected: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        expected |= load_file(path)
    with closing(open_safetensors(folder if by_folder else index)) as reader:
        check_read(reader, expected)
        assert reader.checkpoint.root == folder
        assert reader.checkpoint.files == (*sorted(folder.glob("*.safetensors")), index)
        weight_map = json.loads(index.read_text())["weight_map"]
        assert {n: ref.file for n, ref in reader.checkpoint.tensors.items()} == weight_map


def test_a_folder_with_one_file_is_that_file(fixtures: Path, tmp_path: Path) -> None:
    data = (fixtures / "safetensors" / "lstm.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data)
    (tmp_path / "adapter.safetensors").write_bytes(data)
    with closing(open_safetensors(tmp_path)) as reader:
        assert reader.checkpoint.root == tmp_path / "model.safetensors"


def test_a_folder_with_none_or_several_indexes_is_not_guessed_at(tmp_path: Path) -> None:
    with pytest.raises(UnknownFormatError, match="a folder with 0 files"):
        open_safetensors(tmp_path)
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors.index.json").write_text("{}")
    with pytest.raises(UnknownFormatError, match="a folder with 2 files") as caught:
        open_safetensors(tmp_path)
    assert caught.value.hint == "name one of: a.safetensors.index.json, b.safetensors.index.json"


def test_the_hub_cache_with_its_links_into_blobs_is_read(fixtures: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted((fixtures / "safetensors" / "sharded").iterdir())):
        (blobs / str(number)).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    with closing(open_safetensors(snapshot)) as reader:
        assert len(reader.checkpoint.tensors) == 11


def test_tensors_come_in_stored_order_whatever_the_order_of_the_header(tmp_path: Path) -> None:
    table = {
        "second": {"dtype": "U8", "shape": [2], "data_offsets": [3, 5]},
        "first": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
    }
    text = json.dumps(table).encode()
    path = tmp_path / "x"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes([1, 2, 3, 4, 5]))
    with closing(open_safetensors(path)) as reader:
        assert list(reader.checkpoint.tensors) == ["first", "second"]
        assert bytes(reader.read("second")) == b"\4\5"


@given(ENTRIES)
@settings(max_examples=150, deadline=None)
def test_a_planned_file_is_byte_for_byte_the_library_s(
    entries: dict[str, tuple[tuple[int, ...], str]],
) -> None:
    payloads = filled(entries)
    plan = plan_file([(name, shape, dtype) for name, (shape, dtype) in entries.items()])
    written = plan.header + b"".join(payloads[name] for name in plan.order)
    tensors = {name: as_tensor(payloads[name], *entry) for name, entry in entries.items()}
    assert written == save(tensors, {"format": "pt"})
    assert plan.nbytes == len(written)
    assert len(plan.header) % 8 == 0


@given(ENTRIES)
@settings(max_examples=50, deadline=None)
def test_without_metadata_the_file_is_the_library_s_too(
    entries: dict[str, tuple[tuple[int, ...], str]],
) -> None:
    payloads = filled(entries)
    plan = plan_file([(n, shape, dtype) for n, (shape, dtype) in entries.items()], None)
    tensors = {name: as_tensor(payloads[name], *entry) for name, entry in entries.items()}
    assert plan.header + b"".join(payloads[name] for name in plan.order) == save(tensors)


@pytest.mark.parametrize(
    ("name", "dtype", "words"),
    [
        ("", "F32", "named ''"),
        ("__metadata__", "F32", "named '__metadata__'"),
        ("\ud800", "F32", "not UTF-8"),
        ("w", "F4", "dtype 'F4'"),
    ],
)
def test_what_the_format_can_t_hold_is_refused(name: str, dtype: str, words: str) -> None:
    for plan in (plan_file, lambda entries: plan_shards(entries, 10)):
        with pytest.raises(OutputError, match=words):
            plan([(name, (2,), dtype)])
    with pytest.raises(OutputError, match="twice"):
        plan_file([("w", (2,), "F32"), ("w", (2,), "F16")])
    with pytest.raises(OutputError, match="twice"):
        plan_shards([("w", (2,), "F32"), ("w", (2,), "F32")], 1)


def test_a_header_over_the_limit_is_refused() -> None:
    with pytest.raises(OutputError, match="100,000,000 is the most"):
        plan_in_order([("w", (1,), "U8")], {"format": "x" * 100_000_000})


@given(
    st.lists(st.tuples(SHAPES, st.sampled_from(["F32", "F16", "I8"])), min_size=1, max_size=12),
    st.integers(1, 300),
)
@settings(max_examples=100, deadline=None)
def test_shards_hold_everything_once_and_no_more_than_asked(
    entries: list[tuple[tuple[int, ...], str]], max_bytes: int
) -> None:
    named = [(f"t{i:02d}", shape, dtype) for i, (shape, dtype) in enumerate(entries)]
    plan = plan_shards(named, max_bytes)
    assert [entry for file in plan.files for entry in file.entries] == named
    sizes = [sum(nbytes_of(s, d) for _, s, d in file.entries) for file in plan.files]
    for size, file in zip(sizes, plan.files, strict=True):
        assert size <= max_bytes or len(file.entries) == 1
    # taken in order, two neighbours never fit into one
    firsts = [nbytes_of(*file.entries[0][1:]) for file in plan.files]
    for size, first in zip(sizes, firsts[1:], strict=False):
        assert size + first > max_bytes
    if len(plan.files) == 1:
        assert plan.files[0].name == "model.safetensors"
        assert plan.index is None
        return
    n = len(plan.files)
    assert plan.index is not None
    assert [file.name for file in plan.files] == [
        f"model-{i:05d}-of-{n:05d}.safetensors" for i in range(1, n + 1)
    ]
    index = json.loads(plan.index)
    assert index["metadata"] == {"total_size": sum(sizes)}
    assert index["weight_map"] == {e[0]: file.name for file in plan.files for e in file.entries}
    assert plan.index == (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()


@pytest.mark.parametrize("name", ["lstm", "lstm_float16", "lstm_bfloat16"])
def test_a_file_written_anew_from_its_record_is_the_file(fixtures: Path, name: str) -> None:
    path = fixtures / "safetensors" / f"{name}.safetensors"
    out = Folder()
    with closing(open_safetensors(path)) as reader:
        record = json.loads(json.dumps(reader.checkpoint.container, allow_nan=False))
        write_new(record, reader.checkpoint.tensors, reader.chunks, out)
    assert out.files == {path.name: path.read_bytes()}


def test_shards_written_anew_from_their_record_are_the_shards(fixtures: Path) -> None:
    folder = fixtures / "safetensors" / "sharded"
    out = Folder()
    with closing(open_safetensors(folder)) as reader:
        record = json.loads(json.dumps(reader.checkpoint.container, allow_nan=False))
        write_new(record, reader.checkpoint.tensors, reader.chunks, out)
    assert out.files == {path.name: path.read_bytes() for path in folder.iterdir()}


@given(ENTRIES, st.none() | st.dictionaries(TEXTS, TEXTS, max_size=3))
@settings(max_examples=60, deadline=None)
def test_any_order_and_metadata_come_back(
    tmp_path_factory: pytest.TempPathFactory,
    entries: dict[str, tuple[tuple[int, ...], str]],
    metadata: dict[str, str] | None,
) -> None:
    payloads = filled(entries)
    named = [(n, shape, dtype) for n, (shape, dtype) in entries.items()]
    plan = plan_in_order(named, metadata)  # not sorted by dtype: other writers do as they like
    path = tmp_path_factory.mktemp("any") / "x.safetensors"
    path.write_bytes(plan.header + b"".join(payloads[name] for name in plan.order))
    out = Folder()
    with closing(open_safetensors(path)) as reader:
        nonempty = [n for n, shape, _ in named if math.prod(shape)]
        assert [n for n in reader.checkpoint.tensors if n in nonempty] == nonempty
        assert reader.checkpoint.container["metadata"] == {"x.safetensors": metadata}
        write_new(reader.checkpoint.container, reader.checkpoint.tensors, reader.chunks, out)
        path.unlink()
        write_files(path.parent, out.files)
        with closing(open_safetensors(path)) as second:
            assert second.checkpoint.tensors == reader.checkpoint.tensors
            for name in reader.checkpoint.tensors:
                assert second.read(name).tobytes() == payloads[name]


def test_a_copy_differs_in_the_replaced_payloads_alone(fixtures: Path, tmp_path: Path) -> None:
    folder = fixtures / "safetensors" / "sharded"
    out = Folder()
    asked: list[str] = []

    def replacement(name: str, nbytes: int) -> Callable[[], Any]:
        def make() -> Any:
            asked.append(name)
            return np.full(nbytes, 7, np.uint8)

        return make

    with closing(open_safetensors(folder)) as reader:
        refs = reader.checkpoint.tensors
        names = ["rnn.weight_hh_l1", "encoder.weight"]
        write_like(reader, {n: replacement(n, refs[n].nbytes) for n in names}, out)
        assert asked == ["encoder.weight", "rnn.weight_hh_l1"]
        with closing(open_safetensors(write_files(tmp_path, out.files))) as copy:
            assert copy.checkpoint.tensors == refs
            for name in refs:
                same = copy.read(name).tobytes() == reader.read(name).tobytes()
                assert same == (name not in names)
            assert not np.any(copy.read("encoder.weight") != 7)
    index = "model.safetensors.index.json"
    assert out.files[index] == (folder / index).read_bytes()


def test_a_copy_keeps_a_header_that_this_program_would_not_write(tmp_path: Path) -> None:
    table = {
        "__metadata__": {"b": "1", "a": "2"},
        "y": {"shape": [2], "dtype": "U8", "data_offsets": [1, 3]},
        "x": {"dtype": "U8", "data_offsets": [0, 1], "shape": []},
    }
    text = json.dumps(table, indent=3).encode() + b" \n  "
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"abc")
    out = Folder()
    with closing(open_safetensors(path)) as reader:
        write_like(reader, {"x": lambda: np.frombuffer(b"Z", np.uint8)}, out)
    assert out.files["odd.safetensors"] == path.read_bytes()[:-3] + b"Zbc"


def test_a_payload_of_the_wrong_size_or_name_is_refused(fixtures: Path) -> None:
    path = fixtures / "safetensors" / "lstm_bfloat16.safetensors"
    with closing(open_safetensors(path)) as reader:
        checkpoint = reader.checkpoint
        with pytest.raises(OutputError, match="not in the source"):
            write_like(reader, {"nothing": lambda: np.zeros(2, np.uint8)}, Folder())
        with pytest.raises(OutputError, match="got 3 bytes for 512"):
            write_like(reader, {"bias_hh_l0": lambda: np.zeros(3, np.uint8)}, Folder())
        with pytest.raises(OutputError, match="got 1 bytes for 512"):
            write_new(
                checkpoint.container, checkpoint.tensors, lambda _: [memoryview(b"1")], Folder()
            )


@pytest.mark.parametrize(
    "container",
    [
        {},
        {"shards": None, "metadata": {}, "index": None},
        {"shards": {"x": ["gone"]}, "metadata": {"x": None}, "index": None},
        {"shards": {"x": ["w"]}, "metadata": {}, "index": None},
        {"shards": {"x": [["w"]]}, "metadata": {"x": None}, "index": None},
        {"shards": {"x": ["w"]}, "metadata": {"x": 5}, "index": None},
        {"shards": {"x": ["w"]}, "metadata": {"x": None}, "index": {"file": "i"}},
        {"shards": {"x": ["w"]}, "metadata": {"x": None}, "index": {"file": "i", "metadata": 1}},
        {"shards": {"x": ["w"]}, "metadata": {"x": None}},
    ],
)
def test_a_record_that_was_tampered_with_is_one_line(container: dict[str, Any]) -> None:
    tensors = {"w": TensorRef("w", (1,), "U8", 1, "x")}
    with pytest.raises(ManifestMismatchError, match="does not fit its tensors") as caught:
        write_new(container, tensors, lambda _: [memoryview(b"1")], Folder())
    assert "\n" not in str(caught.value)
