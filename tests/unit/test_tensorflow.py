"""TensorFlow's checkpoints are refused by name, with the line that converts them."""

import os
import shlex
from pathlib import Path

import pytest

from ckptshrink.errors import CheckpointError, UnknownFormatError
from ckptshrink.io.detect import open_checkpoint

TABLE = bytes(40) + bytes.fromhex("57fb808b247547db")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder as tf.train.Saver leaves it."""
    (tmp_path / "model.ckpt-7.index").write_bytes(TABLE)
    (tmp_path / "model.ckpt-7.data-00000-of-00001").write_bytes(os.urandom(64))
    (tmp_path / "model.ckpt-7.meta").write_bytes(b"\x0a\x80\x01graph")
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-7"\n')
    (tmp_path / "old.ckpt").write_bytes(b"values" + TABLE)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "what", "prefix"),
    [
        ("", "folder with a TensorFlow checkpoint", ""),
        ("model.ckpt-7", "prefix of a TensorFlow checkpoint", "model.ckpt-7"),
        ("model.ckpt-7.index", "table of a TensorFlow checkpoint", "model.ckpt-7"),
        ("model.ckpt-7.data-00000-of-00001", "values of a TensorFlow checkpoint", "model.ckpt-7"),
        ("model.ckpt-7.meta", "graph of a TensorFlow checkpoint", "model.ckpt-7"),
        ("checkpoint", "latest TensorFlow checkpoint", ""),
        ("old.ckpt", "table of a TensorFlow checkpoint", "old.ckpt"),
    ],
)
def test_each_file_of_it_is_named(folder: Path, name: str, what: str, prefix: str) -> None:
    with pytest.raises(UnknownFormatError, match=what) as caught:
        open_checkpoint(folder / name)
    hint = str(caught.value.hint)
    assert f"load_checkpoint('{folder / prefix}')" in hint
    command = shlex.split(hint.partition(": ")[2])
    assert command[:2] == ["python", "-c"]
    compile(command[2], "the line", "exec")


@pytest.mark.parametrize("name", ["a'b", 'a"b', "a$(x)", "a`x`", "a\nb", "a\\b"])
def test_a_name_does_not_get_out_of_the_quotes(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.index").write_bytes(TABLE)
    with pytest.raises(UnknownFormatError) as caught:
        open_checkpoint(tmp_path / f"{name}.index")
    assert "load_checkpoint('PREFIX')" in str(caught.value.hint)


def test_other_files_are_not_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / "x.meta").write_bytes(b"\x0a\x80\x01graph")
    (tmp_path / "y.index").write_bytes(TABLE[:-1])
    for name in ("x.meta", "y.index", "z", "y"):
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(tmp_path / name)
        assert "TensorFlow" not in str(caught.value)
