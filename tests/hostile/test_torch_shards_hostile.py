"""Indexes and shards that disagree, lead elsewhere, or are not what they are called."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ckptshrink.errors import CheckpointError, CorruptCheckpointError, UnsafeCheckpointError
from ckptshrink.io.detect import open_checkpoint

ONE, TWO = "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"


class Harm:
    """Pickled, it calls `os.mkdir` when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home = tmp_path / "model"
    home.mkdir()
    torch.save({"a": torch.ones(2, 2)}, home / ONE)
    torch.save({"b": torch.ones(2, 2)}, home / TWO)
    write(home, {"a": ONE, "b": TWO})
    return home


def write(folder: Path, weight_map: object) -> None:
    index = {"metadata": {"total_size": 32}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


MAPS: dict[str, tuple[object, type[CheckpointError], str]] = {
    "a missing shard": ({"a": ONE, "b": "gone.bin"}, CheckpointError, "no such file"),
    "a first shard that is missing": ({"a": "0.bin", "b": TWO}, CheckpointError, "no such file"),
    "a tensor of no shard": ({"a": ONE, "b": TWO, "c": TWO}, CorruptCheckpointError, "not hold it"),
    "a tensor of another shard": ({"a": TWO, "b": ONE}, CorruptCheckpointError, "not hold it"),
    "a tensor that it does not list": ({"a": ONE, "x": TWO}, CorruptCheckpointError, "hold"),
    "a parent folder": ({"a": "../x.bin", "b": TWO}, UnsafeCheckpointError, "no plain name"),
    "an absolute path": ({"a": "/etc/passwd"}, UnsafeCheckpointError, "no plain name"),
    "a path through a parent": ({"a": f"x/../{ONE}"}, UnsafeCheckpointError, "no plain name"),
    "the folder itself": ({"a": "."}, CheckpointError, "no plain name|is a folder"),
    "an empty name": ({"a": ""}, UnsafeCheckpointError, "no plain name"),
    "a NUL": ({"a": "x\0y"}, UnsafeCheckpointError, "no plain name"),
    "a number": ({"a": 3}, CorruptCheckpointError, "does not map text"),
    "a list": ([ONE], CheckpointError, "no index of shards"),
    "nothing": ({}, CheckpointError, "no index of shards"),
}


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("given_path", ["", "pytorch_model.bin.index.json"])
def test_an_index_that_lies_is_refused(folder: Path, kind: str, given_path: str) -> None:
    weight_map, error, words = MAPS[kind]
    write(folder, weight_map)
    with pytest.raises(error, match=words):
        open_checkpoint(folder / given_path)


def test_a_tensor_named_twice_by_the_index(folder: Path) -> None:
    text = f'{{"weight_map": {{"a": "{ONE}", "a": "{TWO}", "b": "{TWO}"}}}}'
    (folder / "pytorch_model.bin.index.json").write_text(text)
    with pytest.raises(CorruptCheckpointError, match="twice"):
        open_checkpoint(folder)


def test_a_tensor_that_two_shards_hold(folder: Path) -> None:
    torch.save({"a": torch.ones(2, 2), "b": torch.ones(2, 2)}, folder / TWO)
    with pytest.raises(CorruptCheckpointError, match="the index does not say so"):
        open_checkpoint(folder)


def test_a_shard_that_is_cut_short(folder: Path) -> None:
    data = (folder / TWO).read_bytes()
    for size in (0, 1, 30, len(data) // 2, len(data) - 1):
        (folder / TWO).write_bytes(data[:size])
        with pytest.raises(CheckpointError):
            open_checkpoint(folder)


@pytest.mark.parametrize("content", [b"PK\3\4", b"{}", b"<html>", b"\x80\2}.", b"\x08" + bytes(20)])
@pytest.mark.parametrize("shard", [ONE, TWO])
def test_a_shard_that_is_something_else(folder: Path, shard: str, content: bytes) -> None:
    (folder / shard).write_bytes(content)
    with pytest.raises(CheckpointError):
        open_checkpoint(folder)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_shard_that_is_no_file_of_the_folder(folder: Path, kind: str) -> None:
    (folder / TWO).rename(folder.parent / "elsewhere")
    if kind == "link":
        (folder / TWO).symlink_to("../elsewhere")
    elif kind == "pipe":
        os.mkfifo(folder / TWO)
    else:
        (folder / TWO).mkdir()
    with pytest.raises(CheckpointError, match=r"leads out|named pipe|is a folder"):
        open_checkpoint(folder)


def test_a_shard_runs_nothing(folder: Path) -> None:
    made = folder.parent / "made"
    torch.save({"b": torch.ones(2, 2), "c": Harm(made)}, folder / TWO)
    open_checkpoint(folder).close()
    assert not made.exists()


def test_no_file_stays_open_after_a_refusal(folder: Path) -> None:
    write(folder, {"a": ONE, "b": "gone.bin"})
    before = len(list(Path("/dev/fd").iterdir()))
    for _ in range(20):
        with pytest.raises(CheckpointError):
            open_checkpoint(folder)
    assert len(list(Path("/dev/fd").iterdir())) == before
