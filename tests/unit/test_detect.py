import gzip
import io
import json
import os
import pickle
import random
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ckptshrink.errors import CheckpointError, CorruptCheckpointError, UnknownFormatError
from ckptshrink.io.detect import detect_format, open_checkpoint


def as_hdf5(path: Path, **how: int) -> None:
    with h5py.File(path, "w", **how) as file:
        file["w"] = np.zeros((2, 2), "f4")


def as_torch(path: Path, zipped: bool = True) -> None:
    torch.save({"w": torch.zeros(2, 2)}, path, _use_new_zipfile_serialization=zipped)


def as_shards(folder: Path) -> None:
    folder.mkdir()
    save_file({"w": torch.zeros(2)}, folder / "one.safetensors")
    index = {"metadata": {}, "weight_map": {"w": "one.safetensors"}}
    (folder / "any.safetensors.index.json").write_text(json.dumps(index))


FORMATS: dict[str, tuple[Callable[[Path], object], str]] = {
    "hdf5": (as_hdf5, "hdf5"),
    "hdf5 after a user block": (lambda p: as_hdf5(p, userblock_size=512), "hdf5"),
    "hdf5 after a long user block": (lambda p: as_hdf5(p, userblock_size=8192), "hdf5"),
    "torch zip": (as_torch, "torch-zip"),
    "torch legacy": (lambda p: as_torch(p, zipped=False), "torch-legacy"),
    "safetensors": (lambda p: save_file({"w": torch.zeros(2)}, p), "safetensors"),
    "shards": (as_shards, "safetensors"),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("suffix", ["", ".hdf5", ".pt", ".safetensors", ".json"])
def test_the_content_decides_and_not_the_suffix(tmp_path: Path, name: str, suffix: str) -> None:
    make, expected = FORMATS[name]
    path = tmp_path / f"checkpoint{suffix}"
    make(path)
    with closing(open_checkpoint(path)) as reader:
        assert reader.checkpoint.format == expected
        assert list(reader.checkpoint.tensors) == ["w"]


def test_an_index_of_shards_is_a_checkpoint(tmp_path: Path) -> None:
    as_shards(tmp_path / "folder")
    path = tmp_path / "folder" / "any.safetensors.index.json"
    with closing(open_checkpoint(path)) as reader:
        assert reader.checkpoint.root == tmp_path / "folder"


def test_every_fixture_is_opened(fixtures: Path) -> None:
    opened = set()
    for line in (fixtures / "DIGESTS").read_text().splitlines():
        name = line.split("  ", 1)[1]
        if name.startswith("transformers/") and not name.endswith((".bin", "safetensors")):
            continue  # what lies beside the weights of a model
        if name.endswith("options.json"):
            with pytest.raises(UnknownFormatError, match="JSON text") as caught:
                open_checkpoint(fixtures / name)
            assert caught.value.hint == "give the .hdf5 file that these options belong to"
            continue
        with closing(open_checkpoint(fixtures / name)) as reader:
            opened.add(reader.checkpoint.format)
    torch_formats = {"torch-zip", "torch-legacy", "torch-tar", "torchscript"}
    # shards are opened by their index, which is not among these
    assert opened == {"hdf5", "keras", "safetensors", "allennlp-archive"} | torch_formats


def zipped(names: list[str]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return out.getvalue()


def tarred(name: str, content: bytes = b"content") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def hdf5_bytes() -> bytes:
    out = io.BytesIO()
    with h5py.File(out, "w") as file:
        file["w"] = np.zeros(2)
    return out.getvalue()


NPZ = io.BytesIO()
np.savez(NPZ, a=np.zeros(2))
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n"

UNKNOWN: dict[str, tuple[bytes, str, str | None]] = {
    "Git LFS": (LFS, "pointer that Git LFS left", "git lfs pull"),
    "gzip": (gzip.compress(hdf5_bytes()), "packed by gzip", "gunzip"),
    "tar.gz": (gzip.compress(tarred("a/best.th")), "a tar archive without weights.th", "a/best.th"),
    "bzip2": (b"BZh91AY&SY" + bytes(100), "packed by bzip2", "unpack it"),
    "xz": (b"\xfd7zXZ\0" + bytes(100), "packed by xz", "unpack it"),
    "zstandard": (b"\x28\xb5\x2f\xfd" + bytes(100), "packed by zstandard", "unpack it"),
    "7-Zip": (b"7z\xbc\xaf\x27\x1c" + bytes(100), "a 7-Zip archive", "unpack it"),
    "RAR": (b"Rar!\x1a\x07" + bytes(100), "a RAR archive", "unpack it"),
    "tar": (tarred("README"), "a tar archive without weights.th", "tar xf"),
    "tar of HDF5": (tarred("w.hdf5", hdf5_bytes()), "a tar archive", "tar xf"),
    "zip": (zipped(["a/b.txt"]), "zip archive without a torch pickle", "unpack it"),
    "empty zip": (zipped([]), "zip archive without a torch pickle", "unpack it"),
    "npz": (NPZ.getvalue(), "an npz archive", "state dict"),
    "npy": (b"\x93NUMPY\1\0" + bytes(100), "a NumPy array", "state dict"),
    "GGUF": (b"GGUF\3\0\0\0" + bytes(100), "a GGUF file", None),
    "PDF": (b"%PDF-1.7\n" + bytes(100), "a PDF document", None),
    "HTML": (b"\n <!DOCTYPE HTML><title>404</title>", "a web page", "get the file itself"),
    "XML": (b"<?xml version='1.0'?><Error/>", "a web page", "get the file itself"),
    "JSON": (b'{"a": 1}', "JSON text", None),
    "JSON list": (b"[1, 2]", "JSON text", None),
    "options": (b'{"lstm": {"dim": 4096}}', "JSON text", "the .hdf5 file"),
    "text": (b"Access denied\n", "no known format: it begins with b'Access denie'", "known are"),
    "one byte": (b"x", "no known format", "known are"),
    "zeros": (bytes(5000), "no known format", "known are"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_no_checkpoint_is_named_with_what_to_do(tmp_path: Path, name: str) -> None:
    content, words, hint = UNKNOWN[name]
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(UnknownFormatError) as caught:
        open_checkpoint(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.path == str(path)
    assert (caught.value.hint is None) == (hint is None)
    assert (hint or "") in (caught.value.hint or "")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_of_any_protocol_goes_to_the_inert_reader(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "x.pkl"
    for value in ({"a": [1, 2]}, [1], {}, []):
        path.write_bytes(pickle.dumps(value, protocol))
        assert detect_format(path) == "torch"


def test_a_zip_cut_short_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    as_torch(path)
    data = path.read_bytes()
    for n in range(4, len(data), 50):
        path.write_bytes(data[:n])
        with pytest.raises(CorruptCheckpointError, match="begins as a zip archive") as caught:
            open_checkpoint(path)
        assert caught.value.hint is not None
        assert "cut short" in caught.value.hint


def test_an_empty_file_and_no_file(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with pytest.raises(CheckpointError, match="there is no such file"):
        open_checkpoint(path)
    path.touch()
    with pytest.raises(CorruptCheckpointError, match="is empty") as caught:
        open_checkpoint(path)
    assert caught.value.hint is not None


def test_what_is_no_plain_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for path, words in (
        (tmp_path / "pipe", "a named pipe"),
        (Path("/dev/zero"), "a character device"),
        (tmp_path / "loop", "can't be read|no such file"),
        (tmp_path / "a\0b", "can't be a path|no such file"),
    ):
        with pytest.raises(CheckpointError, match=words):
            open_checkpoint(path)


def test_a_folder_of_ckptshrink_is_not_a_checkpoint(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "manifest.json").write_text('{"schema_version": 1, "plan_digest": "0"}')
    with pytest.raises(UnknownFormatError, match="what ckptshrink made of") as caught:
        open_checkpoint(tmp_path)
    assert "ckptshrink restore" in (caught.value.hint or "")
    # a manifest of somebody else's is none of ours
    (tmp_path / "manifest.json").write_text('{"name": "a web app"}')
    with closing(open_checkpoint(tmp_path)) as reader:
        assert list(reader.checkpoint.tensors) == ["w"]


def test_a_folder_of_other_files_says_which_one_to_name(tmp_path: Path) -> None:
    with pytest.raises(UnknownFormatError, match="is an empty folder"):
        open_checkpoint(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty.pt").touch()
    with pytest.raises(UnknownFormatError, match="is a folder") as caught:
        open_checkpoint(tmp_path)
    assert caught.value.hint is None
    as_hdf5(tmp_path / "elmo.hdf5")
    as_torch(tmp_path / "model.pt")
    with pytest.raises(UnknownFormatError, match="is a folder") as caught:
        open_checkpoint(tmp_path)
    assert caught.value.hint == (
        f"name the file: {tmp_path / 'elmo.hdf5'}, {tmp_path / 'model.pt'}"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open anything")
def test_permission_denied_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "secret"
    as_shards(folder)
    folder.chmod(0)
    for path in (folder, folder / "one.safetensors"):
        with pytest.raises(CheckpointError, match="permission denied"):
            open_checkpoint(path)
    folder.chmod(0o755)


def test_noise_is_refused_in_one_line(tmp_path: Path) -> None:
    random_ = random.Random(7)
    path = tmp_path / "x"
    starts = [b"", b"PK\3\4", b"\x80\2", b"\x89HDF\r\n\x1a\n", b"{", b"(", bytes([40, *bytes(7)])]
    for _ in range(400):
        noise = random_.randbytes(random_.choice([1, 8, 9, 100, 1000]))
        path.write_bytes(random_.choice(starts) + noise)
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(path).close()
        assert "\n" not in str(caught.value)
