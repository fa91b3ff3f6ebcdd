"""What is written loads in torch, with ``weights_only``, and differs only where it was asked to."""

import io
import math
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_gold
from numpy.typing import NDArray

from ckptshrink.digest import CHUNK
from ckptshrink.errors import CorruptCheckpointError, ManifestMismatchError, OutputError
from ckptshrink.io import torch_zip_writer
from ckptshrink.io.torch_file import TorchReader, open_torch
from ckptshrink.io.torch_write import write_like, write_new
from ckptshrink.io.torch_zip_writer import ZipWriter
from ckptshrink.tensors import TensorRef

NAMES = torch_gold.torch_models().NAMES


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torch")
    torch_gold.torch_models().make(folder)
    return folder


class Pipe:
    """An output that can only be written to, as a staged file is."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> int:
        self.parts.append(bytes(data))
        return len(data)

    def value(self) -> bytes:
        return b"".join(self.parts)


def saved(value: Any, folder: Path, *, legacy: bool = False) -> TorchReader:
    path = folder / "saved.pt"
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return open_torch(path)


def rewritten(reader: TorchReader) -> tuple[bytes, tuple[str, ...]]:
    out = Pipe()
    checkpoint = reader.checkpoint
    left_out = write_new(checkpoint.container, checkpoint.tensors, reader.chunks, out)
    return out.value(), left_out


def loaded(data: bytes, **options: Any) -> Any:
    return torch.load(io.BytesIO(data), **{"weights_only": True, **options})


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert torch_gold.bytes_of(found) == torch_gold.bytes_of(expected)
        assert found.shape == expected.shape
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected or (math.isnan(found) and math.isnan(expected))


def flip(payload: NDArray[np.uint8]) -> Callable[[], NDArray[np.uint8]]:
    return lambda: payload ^ np.uint8(0x10)


def given(payload: bytes) -> Callable[[], NDArray[np.uint8]]:
    return lambda: np.frombuffer(payload, np.uint8)


# New files.


@pytest.mark.parametrize("name", NAMES)
def test_state_dicts_come_back_and_modules_as_state_dicts(checkpoints: Path, name: str) -> None:
    saved_value = torch_gold.load(checkpoints / name)
    reader = open_torch(checkpoints / name)
    data, left_out = rewritten(reader)
    found = loaded(data)
    classes = {"fastai_v2.zip.pt": ("opt.hypers: fastcore.foundation.L",)}
    assert left_out == classes.get(name, ())
    if isinstance(saved_value, list):
        model, criterion = saved_value[0].state_dict(), saved_value[1].state_dict()
        assert_same(found, [model, criterion] if criterion else model)
    elif isinstance(saved_value, torch.nn.Module):
        assert_same(found, saved_value.state_dict())
    elif "opt" in saved_value:
        # A dict that has tensors of its own becomes ordered, and these were built by hand.
        saved_value["model"] = OrderedDict(saved_value["model"])
        saved_value["opt"]["state"][0] = OrderedDict(saved_value["opt"]["state"][0])
        saved_value["opt"].pop("hypers", None)
        assert_same(found, saved_value)
    elif "callbacks" in saved_value:
        for holder in (saved_value["callbacks"], saved_value["optimizer_states"][0]["state"]):
            holder.update({key: OrderedDict(value) for key, value in holder.items()})
        assert_same(found, saved_value)
    else:
        assert_same(found, saved_value)


def test_tied_tensors_share_one_storage(checkpoints: Path) -> None:
    data, _ = rewritten(open_torch(checkpoints / "awd_lstm_state.legacy.pt"))
    found = loaded(data)
    assert found["decoder.weight"].data_ptr() == found["encoder.weight"].data_ptr()
    names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    assert sum(name.startswith("archive/data/") for name in names) == len(found) - 1


def test_every_dtype_and_plain_value_comes_back(tmp_path: Path) -> None:
    dtypes = [
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
        torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.uint16,
        torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2,
    ]  # fmt: skip
    values = torch.arange(6).reshape(2, 3)
    state = OrderedDict((str(dtype), values.to(dtype)) for dtype in dtypes)
    state |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "t": values.t()}
    value: dict[Any, Any] = {
        "model": state, "nothing": {}, "list": [], "tuple": (), "none": None, "yes": True,
        "inf": math.inf, "nan": math.nan, "pi": 3.14, "big": 2**100, "small": -(2**31) - 1,
        "int": -5, 3: "three", 2.5: "half", None: 0, "text": "é\n" * 100, "nested": [({},)],
    }  # fmt: skip
    data, left_out = rewritten(saved(value, tmp_path))
    assert left_out == ()
    assert_same(loaded(data), value)
    assert_same(loaded(data, weights_only=False), value)


def test_what_has_a_class_is_left_out_and_said(tmp_path: Path) -> None:
    value = {"w": torch.zeros(1), "args": np.float64(3), "list": [1, {2}, 3], "n": 2**2100}
    data, left_out = rewritten(saved(value, tmp_path))
    assert [line.partition(":")[0] for line in left_out] == ["args", "list.1", "n"]
    expected = OrderedDict({"w": torch.zeros(1), "list": [1, None, 3]})
    assert_same(loaded(data), expected)


def test_the_file_is_aligned_deterministic_and_plain(checkpoints: Path, tmp_path: Path) -> None:
    data, _ = rewritten(open_torch(checkpoints / "lstm_state.zip.pt"))
    again, _ = rewritten(open_torch(checkpoints / "lstm_state.zip.pt"))
    assert data == again
    path = tmp_path / "new.pt"
    path.write_bytes(data)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist()[0] == "archive/data.pkl"
        assert {i.compress_type for i in archive.infolist()} == {zipfile.ZIP_STORED}
    container: Any = open_torch(path).container
    assert all(entry.start % 64 == 0 for entry in container.index.entries.values())
    assert_same(torch.load(path, weights_only=True, mmap=True), loaded(data))
    reread, _ = rewritten(open_torch(path))
    assert reread == data


def test_payloads_are_streamed(tmp_path: Path) -> None:
    ref = TensorRef("w", (3, CHUNK), "U8", 3 * CHUNK, "x")
    asked = []

    def payload(name: str) -> Iterator[memoryview]:
        asked.append(name)
        for i in range(3):
            yield memoryview(bytes([i]) * CHUNK)

    out = Pipe()
    write_new({"structure": {"tensor": "w"}}, {"w": ref}, payload, out)
    assert asked == ["w"]
    assert max(map(len, out.parts)) == CHUNK
    assert loaded(out.value())[:, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "structure",
    [
        None,
        [],
        {},
        {"dict": [], "list": []},
        {"tensor": 3},
        {"tensor": "missing"},
        {"dict": [["a"]]},
        {"dict": [[3, {"value": 1}]]},
        {"dict": [[{"list": []}, {"value": 1}]]},
        {"dict": [["a", 1]]},
        {"list": {"value": 1}},
        {"value": {"a": 1}},
        {"value": "\udcff"},
        {"float": "1.5"},
        {"set": []},
    ],
)
def test_a_malformed_record_is_refused(structure: Any) -> None:
    with pytest.raises(ManifestMismatchError):
        write_new({"structure": structure}, {}, lambda _: iter(()), Pipe())


def test_a_bottomless_record_is_refused() -> None:
    node: dict[str, Any] = {"value": 1}
    for _ in range(5000):
        node = {"list": [node]}
    with pytest.raises(ManifestMismatchError):
        write_new({"structure": node}, {}, lambda _: iter(()), Pipe())


def test_a_payload_of_another_size_is_refused() -> None:
    ref = TensorRef("w", (4,), "F32", 16, "x")
    with pytest.raises(OutputError, match="got 3 bytes for 16"):
        write_new(
            {"structure": {"tensor": "w"}}, {"w": ref}, lambda _: iter([memoryview(b"abc")]), Pipe()
        )


def test_a_tie_to_another_shape_gets_its_own_storage() -> None:
    refs = {
        "a": TensorRef("a", (2, 2), "U8", 4, "x"),
        "b": TensorRef("b", (4,), "U8", 4, "x", shares_with="a"),
        "c": TensorRef("c", (4,), "U8", 4, "x", shares_with="gone"),
    }
    structure = {"dict": [[name, {"tensor": name}] for name in refs]}
    out = Pipe()
    payloads = {"a": b"abcd", "b": b"efgh", "c": b"ijkl"}
    write_new({"structure": structure}, refs, lambda n: iter([memoryview(payloads[n])]), out)
    found = loaded(out.value())
    assert {n: bytes(t.flatten().tolist()) for n, t in found.items()} == payloads


# Copies.


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_with_nothing_exchanged_is_the_file(checkpoints: Path, name: str) -> None:
    out = Pipe()
    write_like(open_torch(checkpoints / name), {}, out)
    assert out.value() == (checkpoints / name).read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_only_what_is_exchanged_differs(checkpoints: Path, tmp_path: Path, name: str) -> None:
    reader = open_torch(checkpoints / name)
    tensors = reader.checkpoint.tensors
    chosen = [n for n, ref in tensors.items() if len(ref.shape) == 2 and ref.shares_with is None]
    out = Pipe()
    write_like(reader, {n: flip(reader.read(n)) for n in chosen}, out)
    path = tmp_path / name
    path.write_bytes(out.value())
    assert path.stat().st_size == (checkpoints / name).stat().st_size
    before = torch_gold.tensors_of(torch_gold.load(checkpoints / name))
    after = torch_gold.tensors_of(torch_gold.load(path))
    assert list(after) == list(before)
    for n, tensor in after.items():
        old = np.frombuffer(torch_gold.bytes_of(before[n]), np.uint8)
        owner = tensors[n].shares_with or n if n in tensors else n
        expected = old ^ np.uint8(0x10) if owner in chosen else old
        assert torch_gold.bytes_of(tensor) == expected.tobytes(), n
    assert open_torch(path).checkpoint.container == reader.checkpoint.container


@pytest.mark.parametrize("legacy", [False, True])
def test_views_of_one_storage_are_exchanged_in_place(tmp_path: Path, legacy: bool) -> None:
    base = torch.arange(48.0).reshape(6, 8)
    state = {"whole": base, "column": base[:, 2], "t": base[2:4, 4:].t(), "apart": torch.ones(2)}
    reader = saved(state, tmp_path, legacy=legacy)
    new = {"column": torch.full((6,), -1.0), "t": torch.arange(8.0).reshape(4, 2) + 100}
    out = Pipe()
    write_like(reader, {n: given(torch_gold.bytes_of(t)) for n, t in new.items()}, out)
    found = loaded(out.value())
    base[:, 2] = new["column"]
    base[2:4, 4:] = new["t"].t()
    assert_same(found, dict(state))
    assert found["column"].untyped_storage().data_ptr() == found["whole"].data_ptr()


@pytest.mark.parametrize("legacy", [False, True])
def test_values_that_contradict_each_other_are_refused(tmp_path: Path, legacy: bool) -> None:
    base = torch.arange(6.0)
    state = {"whole": base, "head": base[:3], "same": base, "wide": torch.zeros(1).expand(4)}
    reader = saved(state, tmp_path, legacy=legacy)
    same = {n: given(reader.read(n).tobytes()) for n in state}
    out = Pipe()
    write_like(reader, same, out)
    assert_same(loaded(out.value()), dict(state))
    for names in (("whole", "head"), ("same", "whole")):
        replaced = {names[0]: same[names[0]], names[1]: flip(reader.read(names[1]))}
        with pytest.raises(OutputError, match="shares memory"):
            write_like(reader, replaced, Pipe())
    uneven = np.arange(16, dtype=np.uint8)
    with pytest.raises(OutputError, match="shares memory") as raised:
        write_like(reader, {"wide": lambda: uneven}, Pipe())
    assert raised.value.tensor == "wide"


def test_bad_requests_are_refused(tmp_path: Path) -> None:
    reader = saved({"w": torch.zeros(4)}, tmp_path)
    with pytest.raises(OutputError, match="not in the source"):
        write_like(reader, {"v": lambda: np.zeros(16, np.uint8)}, Pipe())
    with pytest.raises(OutputError, match="got 15 bytes for 16"):
        write_like(reader, {"w": lambda: np.zeros(15, np.uint8)}, Pipe())


def test_a_broken_storage_is_not_copied(tmp_path: Path) -> None:
    reader = saved({"a": torch.zeros(100), "b": torch.ones(100)}, tmp_path)
    path = tmp_path / "saved.pt"
    data = path.read_bytes().replace(b"\0\0\x80?" * 100, b"\0\0\x80?" * 99 + b"\0\1\x80?")
    path.write_bytes(data)
    with pytest.raises(CorruptCheckpointError, match="checksum"):
        write_like(reader, {"a": flip(reader.read("a"))}, Pipe())


def test_a_deflated_source_becomes_a_stored_one(tmp_path: Path) -> None:
    state = {"w": torch.arange(1000.0), "v": torch.ones(3)}
    torch.save(state, tmp_path / "saved.pt")
    with zipfile.ZipFile(tmp_path / "saved.pt") as source:
        entries = [(i.filename, source.read(i)) for i in source.infolist()]
    with zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as target:
        for entry in entries:
            target.writestr(*entry)
    out = Pipe()
    write_like(open_torch(tmp_path / "packed.pt"), {}, out)
    assert out.value() == (tmp_path / "saved.pt").read_bytes()


# The zip writer.


def test_sizes_and_offsets_beyond_32_bits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The zip64 fields are written as for a large file, with the limit moved to 1,000 bytes."""
    monkeypatch.setattr(torch_zip_writer, "_MASK32", 1000)
    out = Pipe()
    archive = ZipWriter(out)
    archive.add(b"archive/data/0", 5000, [b"x" * 5000])
    archive.add(b"archive/version", 2, [b"3\n"])
    archive.close()
    value = out.value()
    sizes = (5000).to_bytes(8, "little") * 2
    zip64 = b"\x01\x00\x10\x00"
    limit = (1000).to_bytes(4, "little")
    assert value[18:26] == limit * 2  # the local header defers to its zip64 field
    assert value[44:64] == zip64 + bytes(16)
    at = value.index(b"PK\x07\x08") + 8
    assert value[at : at + 16] == sizes  # eight bytes each, as the field announces
    at = value.index(b"PK\x01\x02")
    assert value[at + 20 : at + 28] == limit * 2
    assert value[at + 46 + 14 :][:20] == zip64 + sizes
