"""Safetensors files, damaged or made to mislead: one line each, and never a wrong tensor."""

import json
import os
import random
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize

from ckptshrink.errors import (
    CheckpointError,
    CorruptCheckpointError,
    UnknownFormatError,
    UnsafeCheckpointError,
)
from ckptshrink.io import safetensors_header
from ckptshrink.io.safetensors_file import open_safetensors


def stored(header: str | bytes, data: bytes = b"") -> bytes:
    text = header.encode() if isinstance(header, str) else header
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> str:
    fields = {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}
    return json.dumps(fields)


def opened(folder: Path, content: bytes) -> dict[str, bytes]:
    path = folder / "x.safetensors"
    path.write_bytes(content)
    with closing(open_safetensors(path)) as reader:
        return {name: reader.read(name).tobytes() for name in reader.checkpoint.tensors}


MALFORMED: dict[str, tuple[bytes, str]] = {
    "length field alone": (bytes(8), "neither safetensors nor an index"),
    "seven bytes": (bytes(7), "neither safetensors nor an index"),
    "header longer than the file": (stored("{}")[:9], "1 follow"),
    "header over the limit": ((10**8 + 1).to_bytes(8, "little") + b"{" * 20, "neither safetensors"),
    "leading space": (stored(" {}"), "does not start with '{'"),
    "trailing text": (stored("{} x"), "Extra data"),
    "trailing NUL": (stored("{}\0"), "Extra data"),
    "second object": (stored("{}{}"), "Extra data"),
    "not UTF-8": (stored(b'{"\xff": {}}'), "utf-8"),
    "lone surrogate": (stored(f'{{"\\ud800": {entry()}}}', bytes(8)), "surrogate"),
    "surrogate in metadata": (stored('{"__metadata__": {"a": "\\udfff"}}'), "surrogate"),
    "control character": (stored(f'{{"a\nb": {entry()}}}', bytes(8)), "control character"),
    "duplicate tensor": (stored(f'{{"w": {entry()}, "w": {entry()}}}', bytes(8)), "twice"),
    "duplicate by escape": (stored(f'{{"w": {entry()}, "\\u0077": {entry()}}}', bytes(8)), "twice"),
    "duplicate metadata": (stored('{"__metadata__": {}, "__metadata__": {}}'), "twice"),
    "duplicate metadata key": (stored('{"__metadata__": {"a": "1", "a": "2"}}'), "twice"),
    "duplicate field": (
        stored('{"w": {"dtype": "U8", "dtype": "I8", "shape": [1], "data_offsets": [0, 1]}}', b"a"),
        "twice",
    ),
    "unknown field": (stored(f'{{"w": {entry(strides=[1])}}}', bytes(8)), "exactly the fields"),
    "missing field": (stored('{"w": {"dtype": "F32", "shape": [2]}}', bytes(8)), "exactly"),
    "entry is a list": (stored('{"w": ["F32", [2], [0, 8]]}', bytes(8)), "exactly the fields"),
    "empty name": (stored(f'{{"": {entry()}}}', bytes(8)), "empty name"),
    "unknown dtype": (stored(f'{{"w": {entry("F33")}}}', bytes(8)), "unknown dtype 'F33'"),
    "dtype is a number": (stored(f'{{"w": {entry(32)}}}', bytes(8)), "unknown dtype 32"),
    "dtype is a list": (stored(f'{{"w": {entry(["F32"])}}}', bytes(8)), "unknown dtype"),
    "shape is a number": (stored(f'{{"w": {entry(shape=2)}}}', bytes(8)), "list of sizes"),
    "shape of text": (stored(f'{{"w": {entry(shape="ab")}}}', bytes(8)), "list of sizes"),
    "shape of floats": (stored(f'{{"w": {entry(shape=[2.0])}}}', bytes(8)), "list of sizes"),
    "shape of booleans": (stored(f'{{"w": {entry(shape=[True, 2])}}}', bytes(8)), "list of sizes"),
    "negative shape": (stored(f'{{"w": {entry(shape=[-1, -2])}}}', bytes(8)), "list of sizes"),
    "negative zero": (
        stored('{"w": {"dtype": "U8", "shape": [-0], "data_offsets": [0, 0]}}'),
        "'-0' is no size",
    ),
    "shape beside the span": (stored(f'{{"w": {entry(shape=[3])}}}', bytes(8)), "takes 12 bytes"),
    "shape that wraps 64 bits": (
        stored(f'{{"w": {entry("U8", [2**32, 2**32], [0, 0])}}}'),
        "too large",
    ),
    "empty and too large": (stored(f'{{"w": {entry(shape=[0, 2**62], offsets=[0, 0])}}}'), "large"),
    "shape of 10,000 digits": (
        stored('{"w": {"dtype": "U8", "shape": [' + "9" * 10_000 + '], "data_offsets": [0, 1]}}'),
        "no size",
    ),
    "offsets of three": (stored(f'{{"w": {entry(offsets=[0, 8, 8])}}}', bytes(8)), "no range"),
    "offsets reversed": (stored(f'{{"w": {entry(offsets=[8, 0])}}}', bytes(8)), "no range"),
    "offsets of text": (stored(f'{{"w": {entry(offsets=["0", "8"])}}}', bytes(8)), "no range"),
    "offsets of floats": (
        stored('{"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1e0]}}', b"a"),
        "no range",
    ),
    "past the end": (stored(f'{{"w": {entry()}}}', bytes(7)), "the file at"),
    "bytes after the last": (stored(f'{{"w": {entry()}}}', bytes(9)), "the file at"),
    "bytes and no tensor": (stored("{}", b"PK\3\4"), "the file at"),
    "a hole": (stored(f'{{"w": {entry(offsets=[4, 12])}}}', bytes(12)), "a hole"),
    "an overlap": (
        stored(f'{{"a": {entry()}, "b": {entry(offsets=[4, 12])}}}', bytes(12)),
        "an overlap",
    ),
    "the same bytes twice": (stored(f'{{"a": {entry()}, "b": {entry()}}}', bytes(8)), "an overlap"),
    "metadata of numbers": (stored('{"__metadata__": {"a": 1}}'), "text to text"),
    "metadata is a list": (stored('{"__metadata__": ["a"]}'), "text to text"),
    "NaN": (stored('{"__metadata__": NaN}'), "NaN is not JSON"),
    "an infinity": (stored('{"w": 1e999}'), "out of range"),
    "nested too deeply": (stored('{"w": ' + "[" * 200_000), "nested too deeply"),
    "objects nested too deeply": (stored('{"w":' * 200_000), "nested too deeply"),
    "a list": (stored("[]"), "neither safetensors nor an index"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_every_malformed_header_is_named(tmp_path: Path, name: str) -> None:
    content, words = MALFORMED[name]
    with pytest.raises((CorruptCheckpointError, UnknownFormatError)) as caught:
        opened(tmp_path, content)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.path == str(tmp_path / "x.safetensors")


def test_an_empty_header_is_a_checkpoint_without_tensors(tmp_path: Path) -> None:
    assert opened(tmp_path, stored("{}      ")) == {}


def test_names_are_shown_without_their_control_characters(tmp_path: Path) -> None:
    content = stored(json.dumps({"\x1b[31m\0../../etc": {"dtype": "F33"}}))
    with pytest.raises(CorruptCheckpointError) as caught:
        opened(tmp_path, content)
    assert str(caught.value).startswith("\\x1b[31m\\x00../../etc [")


def test_more_tensors_than_there_is_memory_for_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safetensors_header, "MAX_TENSORS", 3)
    empty = entry("U8", [0], [0, 0])
    four = ", ".join(f'"{name}": {empty}' for name in "abcd")
    with pytest.raises(UnsafeCheckpointError, match="more than 3 tensors"):
        opened(tmp_path, stored(f"{{{four}}}"))


def test_every_prefix_is_refused(fixtures: Path, tmp_path: Path) -> None:
    content = (fixtures / "safetensors" / "lstm_bfloat16.safetensors").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for n in [*range(header + 20), *range(header + 20, len(content), 997), len(content) - 1]:
        with pytest.raises(CheckpointError):
            opened(tmp_path, content[:n])


def library_reads(content: bytes) -> dict[str, bytes] | None:
    try:
        return {name: bytes(tensor["data"]) for name, tensor in deserialize(content)}  # type: ignore[no-untyped-call]
    except (SafetensorError, OverflowError, ValueError):
        return None


def test_mutants_are_refused_or_read_as_the_library_reads_them(
    fixtures: Path, tmp_path: Path
) -> None:
    content = (fixtures / "safetensors" / "lstm_bfloat16.safetensors").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    random_ = random.Random(20240607)
    accepted = 0
    for _ in range(500):
        mutant = bytearray(content)
        for _ in range(random_.choice([1, 1, 2, 4])):
            place = random_.randrange(header)
            kind = random_.randrange(4)
            if kind == 0:
                mutant[place] ^= 1 << random_.randrange(8)
            elif kind == 1:
                mutant[place] = random_.choice(b'0123456789",:[]{} \\u-e.')
            elif kind == 2:
                del mutant[place]
            else:
                start = random_.randrange(header)
                mutant[place:place] = mutant[start : start + random_.randrange(1, 40)]
        try:
            ours = opened(tmp_path, bytes(mutant))
        except CheckpointError as error:
            assert "\n" not in str(error)
            continue
        accepted += 1
        assert ours == library_reads(bytes(mutant))
    assert accepted > 10


SIZES = st.integers(0, 6) | st.sampled_from([-1, 2**31, 2**63, 2**64, True, 1.0, "1", None])
FIELDS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["U8", "I8", "F16", "BOOL", "F4", "f32", 1]),
        "shape": st.lists(SIZES, max_size=3) | SIZES,
        "data_offsets": st.lists(SIZES, min_size=2, max_size=2),
    }
)
ENTRIES = st.lists(st.tuples(st.sampled_from(["a", "b", "", "__metadata__"]), FIELDS), max_size=3)


@st.composite
def tilings(draw: st.DrawFn) -> list[tuple[str, dict[str, Any]]]:
    """Draw entries that tile a buffer, and then perhaps one that does not."""
    found: list[tuple[str, dict[str, Any]]] = []
    stop = 0
    for name in draw(st.permutations("abc")):
        shape = draw(st.lists(st.integers(0, 3), max_size=2))
        start, size = stop, 1
        for n in shape:
            size *= n
        stop += size
        found.append((name, {"dtype": "U8", "shape": shape, "data_offsets": [start, stop]}))
    return found + draw(st.just([]) | ENTRIES)


@given(tilings() | ENTRIES, st.integers(0, 12), st.sampled_from(["", " ", "\n", "x", "\0"]))
@settings(max_examples=400, deadline=None)
def test_what_is_accepted_the_library_accepts_with_equal_bytes(
    tmp_path_factory: pytest.TempPathFactory,
    entries: list[tuple[str, dict[str, Any]]],
    size: int,
    padding: str,
) -> None:
    text = ", ".join(f"{json.dumps(name)}: {json.dumps(fields)}" for name, fields in entries)
    content = stored(f"{{{text}}}{padding}", bytes(i % 2 for i in range(size)))
    try:
        ours = opened(tmp_path_factory.getbasetemp(), content)
    except CheckpointError:
        return
    assert ours == library_reads(content)


def shards(folder: Path) -> dict[str, Any]:
    """Write two good shards and return their index, to be spoilt."""
    for file, name in (("one.safetensors", "a"), ("two.safetensors", "b")):
        (folder / file).write_bytes(stored(f'{{"{name}": {entry()}}}', bytes(8)))
    return {"metadata": {}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}


def spoilt(**weights: Any) -> Callable[[dict[str, Any]], None]:
    return lambda index: index["weight_map"].update(weights)


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (spoilt(a="../one.safetensors"), UnsafeCheckpointError, "no plain name inside"),
        (spoilt(a="/etc/passwd"), UnsafeCheckpointError, "no plain name inside"),
        (spoilt(a="sub/../../x"), UnsafeCheckpointError, "no plain name inside"),
        (spoilt(a=""), UnsafeCheckpointError, "no plain name inside"),
        (spoilt(a="./one.safetensors"), UnsafeCheckpointError, "no plain name inside"),
        (spoilt(a="one.safetensors\0"), UnsafeCheckpointError, "no plain name inside"),
        (spoilt(a="out"), UnsafeCheckpointError, "leads out of its folder"),
        (spoilt(a="loop"), CheckpointError, "leads nowhere|can't be read"),
        (spoilt(a="pipe"), CheckpointError, "a named pipe"),
        (spoilt(a="sub"), CheckpointError, "is a folder"),
        (spoilt(a="three.safetensors"), CheckpointError, "no such file"),
        (spoilt(a="model.safetensors.index.json"), CorruptCheckpointError, "header"),
        (spoilt(a="two.safetensors"), CorruptCheckpointError, "which does not hold it"),
        (spoilt(c="one.safetensors"), CorruptCheckpointError, "which does not hold it"),
        (spoilt(a=1), CorruptCheckpointError, "text to text"),
        (lambda i: i.update(weight_map=[]), UnknownFormatError, "no index of shards"),
        (lambda i: i.update(weight_map={}), UnknownFormatError, "no index of shards"),
        (lambda i: i.update(metadata=[1]), CorruptCheckpointError, "is no object"),
        (lambda i: i.update(metadata=float("nan")), CorruptCheckpointError, "NaN"),
    ],
)
def test_every_misleading_index_is_refused(
    tmp_path: Path,
    spoil: Callable[[dict[str, Any]], None],
    error: type[CheckpointError],
    words: str,
) -> None:
    folder = tmp_path / "checkpoint"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "outside.safetensors").write_bytes(stored(f'{{"a": {entry()}}}', bytes(8)))
    (folder / "out").symlink_to("../outside.safetensors")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")
    index = shards(folder)
    spoil(index)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(error, match=words) as caught:
        open_safetensors(folder)
    assert "\n" not in str(caught.value)


def test_a_file_that_the_index_does_not_name_is_no_part_of_the_checkpoint(tmp_path: Path) -> None:
    index = shards(tmp_path)
    del index["weight_map"]["b"]
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with closing(open_safetensors(tmp_path)) as reader:
        assert list(reader.checkpoint.tensors) == ["a"]


def test_a_tensor_that_only_a_shard_knows_of_is_refused(tmp_path: Path) -> None:
    index = shards(tmp_path)
    two = f'{{"b": {entry()}, "hidden": {entry(offsets=[8, 16])}}}'
    (tmp_path / "two.safetensors").write_bytes(stored(two, bytes(16)))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CorruptCheckpointError, match="the index does not say so") as caught:
        open_safetensors(tmp_path)
    assert caught.value.tensor == "hidden"


def test_links_that_lead_out_of_a_folder_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(stored("{}"))
    for name in ("model.safetensors", "x.safetensors.index.json"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).symlink_to(outside)
        with pytest.raises(UnsafeCheckpointError, match="leads out of its folder"):
            open_safetensors(folder)


def test_no_descriptor_is_left_open_by_a_refusal(tmp_path: Path) -> None:
    index = shards(tmp_path)
    (tmp_path / "two.safetensors").write_bytes(b"damaged")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with pytest.raises(CheckpointError):
            open_safetensors(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
