"""What ``check`` says of pickles and archives that would run code, and of sound ones."""

import functools
import importlib.util
import io
import json
import os
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import h5py
import numpy as np
import pytest
import torch

from ckptshrink.io.check import check_file, files_of
from ckptshrink.io.pickle_survey import survey
from ckptshrink_cli.main import run

REPO = Path(__file__).resolve().parent.parent.parent


@functools.cache
def hostile() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hostile", REPO / "benchmarks" / "hostile.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch MARK",)


def zipped(**entries: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name.replace("__", "/").replace("_DOT_", "."), data)
    return out.getvalue()


def npy(value: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([value], dtype=object), allow_pickle=True)
    return out.getvalue()


BAD = pickle.dumps([1, Runs()], 2)
UNSAFE: dict[str, bytes] = {
    **{f"protocol {n}": pickle.dumps([1, Runs()], n) for n in range(6)},
    "cut short after the call": BAD[:-3],
    "garbage after the call": BAD[:-2] + b"\xff\xfe",
    "dropped from the stack": b"cposix\nsystem\n(S'x'\ntR0N.",
    "behind a sound pickle": pickle.dumps({"a": 1}, 2) + BAD,
    "behind a hundred": pickle.dumps(1, 2) * 100 + BAD,
    "text first": b"I1\n0cos\nsystem\n(S'x'\ntR.",
    "in torch's place": zipped(a__data_DOT_pkl=BAD),
    "in an entry of any name": zipped(weights_DOT_bin=BAD),
    "in a storage": zipped(a__data_DOT_pkl=pickle.dumps({}, 2), a__data__0=BAD),
    "in an archive with junk before it": b"PK\x03\x04junk" + zipped(a__data_DOT_pkl=BAD),
    "in an archive that is cut short": zipped(x=b"x" * 99, a__data_DOT_pkl=BAD) + b"junk",
    "in an array of objects": npy(Runs()),
    "in an npz": zipped(w_DOT_npy=npy(Runs())),
    "an attribute of an attribute": b"\x80\x04\x8c\x05torch\x8c\x09nn.Module\x93)R.",
    "a zip behind a pickle": pickle.dumps({"a": 1}, 2) + zipped(a__data_DOT_pkl=BAD),
    "a program": zipped(a__data_DOT_pkl=b"N.", a__code__x_DOT_py=b"", a__constants_DOT_pkl=b"N."),
    "torch.load in torch.load": b"ctorch.storage\n_load_from_bytes\n(C\x01xtR.",
    "a gadget of numpy": b"cnumpy.f2py.crackfortran\ngetlincoef\n(S'x'\ntR.",
    "an unknown function": b"csome.library\nhelper\n(S'x'\ntR.",
    "an unknown class with arguments": b"csome.library\nHelper\n(S'x'\ntR.",
    "a method that is called": b"c__builtin__\ngetattr\n(cmodel\nNet\n)\x81S'run'\ntR(S'x'\ntR.",
    "a class of modules that is called too": (
        b"(cmodel\nNet\n)\x81}(S'_parameters'\n}S'_modules'\n}ubcmodel\nNet\n(S'x'\ntRt."
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSAFE)
def test_what_would_run_code_is_unsafe(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(UNSAFE[name])
    checked = check_file(path)
    assert any(finding.level == "unsafe" for finding in checked.findings)
    assert not checked.passed
    assert run(["check", str(path)]) == 1
    assert {p.name for p in tmp_path.iterdir()} == {"x.bin"}


def test_sound_files_pass(fixtures: Path, tmp_path: Path) -> None:
    for path in fixtures.rglob("*"):
        if path.suffix in {".pt", ".hdf5", ".safetensors", ".h5", ".keras", ".th", ".gz", ".bin"}:
            checked = check_file(path)
            assert checked.passed, path
            assert checked.format not in {"unknown", "pickle", "zip", "tar"}, path
    values = {"a": [1, 2.5, None, {1}], "w": np.zeros(3), "t": np.float32(3)}
    for protocol in range(6):
        path = tmp_path / "plain.pkl"
        path.write_bytes(pickle.dumps(values, protocol))
        assert check_file(path).passed
    lstm = torch.nn.LSTM(2, 3)
    optimizer = torch.optim.Adam(lstm.parameters())
    for new in (True, False):
        for value in (lstm, lstm.state_dict(), {"m": lstm, "o": optimizer.state_dict()}):
            torch.save(value, path, _use_new_zipfile_serialization=new)
            assert check_file(path).passed


@pytest.mark.parametrize("folder", ["bert", "bert_pruned", "gpt2", "t5"])
def test_a_folder_of_transformers_passes(
    folder: str, fixtures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["check", str(fixtures / "transformers" / folder), "--json"]) == 0
    formats = {
        Path(file["file"]).name: file["format"]
        for file in json.loads(capsys.readouterr().out)["files"]
    }
    assert formats == {
        "bert": {
            "model-00001-of-00002.safetensors": "safetensors",
            "model-00002-of-00002.safetensors": "safetensors",
            "model.safetensors.index.json": "safetensors",
        },
        "t5": {
            "pytorch_model-00001-of-00002.bin": "torch-zip",
            "pytorch_model-00002-of-00002.bin": "torch-zip",
            "pytorch_model.bin.index.json": "torch-shards",
        },
    }.get(folder, {"pytorch_model.bin": "torch-zip"})


def test_the_shards_of_an_index_are_looked_into(fixtures: Path, tmp_path: Path) -> None:
    for path in (fixtures / "transformers" / "t5").iterdir():
        shutil.copy(path, tmp_path)
    shard = tmp_path / "pytorch_model-00002-of-00002.bin"
    state = torch.load(shard, weights_only=True)
    torch.save({**state, "more": Runs()}, shard)
    checked = check_file(tmp_path / "pytorch_model.bin.index.json")
    assert checked.format == "torch-shards"
    assert [(f.level, f.where.partition(":")[0]) for f in checked.findings][:1] == [
        ("unsafe", shard.name)
    ]


def test_a_program_is_a_note(fixtures: Path) -> None:
    checked = check_file(fixtures / "torch" / "tagger.script.pt")
    assert checked.format == "torchscript"
    assert any("of which loading it can run parts" in f.what for f in checked.findings)
    assert {f.level for f in checked.findings} == {"note"}
    assert set(checked.names.values()) == {"expected"}


def tar(members: dict[str, bytes], mode: Literal["w", "w:gz"] = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def members_of(path: Path) -> dict[str, bytes]:
    found = {}
    with tarfile.open(path) as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is not None:
                found[member.name] = content.read()
    return found


LABELS = b"contradiction\nentailment\nneutral\n"


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_every_member_of_an_archive_is_looked_into(
    mode: Literal["w", "w:gz"], fixtures: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.tar.gz"
    sound = members_of(fixtures / "allennlp" / "tagger.tar.gz")
    hdf5 = (fixtures / "elmo" / "one_layer" / "lm_weights.hdf5").read_bytes()
    sound = {**sound, "fta/weights.hdf5": hdf5, "vocabulary/labels.txt": LABELS}
    path.write_bytes(tar(sound, mode))
    checked = check_file(path)
    assert (checked.format, checked.findings) == ("allennlp-archive", ())
    state = {"w": torch.zeros(2), "x": Runs()}
    new, legacy = io.BytesIO(), io.BytesIO()
    torch.save(state, new)
    torch.save(state, legacy, _use_new_zipfile_serialization=False)
    for name, content in {
        "weights.th": new.getvalue(),
        "weights.th ": b"",
        "vocabulary/labels.txt": BAD,
        "fta/vectors.npy": npy(Runs()),
        "inner.tar": tar({"weights.th": BAD}),
        "inner.tar.gz": tar({"weights.th": BAD}, "w:gz"),
        "storages": pickle.dumps(0, 2),
    }.items():
        path.write_bytes(tar({**sound, name.strip(): content or legacy.getvalue()}, mode))
        checked = check_file(path)
        assert any(f.level == "unsafe" for f in checked.findings), name
        assert {p.name for p in tmp_path.iterdir()} == {"model.tar.gz"}


CALL = b"cposix\nsystem\nX\x04\0\0\0true\x85R"


def with_location(storages: bytes) -> bytes:
    """Put a call in the place of a storage's location, the only text 'cpu' there is."""
    at = storages.index(b"X\x03\0\0\0cpu")
    return storages[:at] + CALL + storages[at + 8 :]


def test_every_pickle_of_a_tar_of_torch_is_looked_at(fixtures: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    sound = members_of(fixtures / "torch" / "gru_state.tar.pt")
    path.write_bytes(tar(sound))
    checked = check_file(path)
    assert (checked.format, checked.passed) == ("torch-tar", True)
    for name in ("sys_info", "pickle", "tensors", "storages"):
        changed = BAD if name != "storages" else with_location(sound[name])
        path.write_bytes(tar({**sound, name: changed}))
        checked = check_file(path)
        assert checked.names["posix.system"] == "dangerous", name
        assert ("unsafe", name) in {(f.level, f.where) for f in checked.findings}


def test_a_pickle_that_is_a_tar_archive_too(tmp_path: Path) -> None:
    header = bytearray(tar({"a" * 20: b"x" * 100})[:512])
    header[:7] = b"\x80\x02X" + (512 - 7).to_bytes(4, "little")  # all the rest is a text
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = tmp_path / "x.pkl"
    path.write_bytes(bytes(header) + b"." + bytes(1023))
    with tarfile.open(path) as archive:
        assert len(archive.getnames()) == 1
    assert any("is a tar archive too" in f.what for f in check_file(path).findings)


def test_names_are_told_apart_and_escaped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = survey(pickle.dumps({"a": Runs(), "w": torch.zeros(2)}, 2))
    assert found.names["posix.system"] == "dangerous"
    assert found.names["torch._utils._rebuild_tensor_v2"] == "expected"
    path = tmp_path / "x.pkl"
    path.write_bytes(b"cos\n\x1b[31msystem\x07\n(S'x'\ntR.")
    assert run(["check", str(path)]) == 1
    shown = capsys.readouterr().out
    assert "\\x1b[31msystem\\x07" in shown
    assert "\x1b" not in shown


def test_damage_and_layers_with_code_are_found(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file["w"] = np.zeros(3, "f4")
        file.attrs["model_config"] = '{"config": {"layers": [{"class_name": "Lambda"}]}}'
    assert any("Lambda layer" in f.what for f in check_file(path).findings)
    with h5py.File(path, "w") as file:
        file["w"] = h5py.ExternalLink("/etc/passwd", "/")
    assert [f.level for f in check_file(path).findings] == ["unsafe"]
    path = tmp_path / "m.pt"
    torch.save({"w": torch.arange(100.0)}, path)
    data = bytearray(path.read_bytes())
    at = data.index(np.arange(50, 60, dtype="f4").tobytes())
    data[at] ^= 1
    path.write_bytes(data)
    assert any("checksum" in f.what for f in check_file(path).findings)


def test_a_folder_is_searched_and_its_links_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "bad.pkl").write_bytes(BAD)
    inside = tmp_path / "inside"
    (inside / "deep").mkdir(parents=True)
    (inside / "deep" / "good.pkl").write_bytes(pickle.dumps([1], 2))
    (inside / "README.md").write_text("# Some text.\n\nchange nothing.\n")
    (inside / "out").symlink_to(outside)
    (inside / "bad.pkl").symlink_to(outside / "bad.pkl")
    assert [p.name for p in files_of(inside)] == ["README.md", "good.pkl"]
    assert run(["check", str(inside)]) == 0
    assert run(["check", str(inside), "--strict"]) == 1  # the note that it is no checkpoint
    (inside / "deep" / "bad.pkl").write_bytes(BAD)
    assert run(["check", str(inside)]) == 1
    assert run(["check", str(inside / "missing.pt")]) == 3
    assert run(["check", str(inside / "README.md")]) == 1
    assert "1 of no known format passed over" in capsys.readouterr().err


@pytest.mark.parametrize("seed", [1])
def test_a_slice_of_the_hostile_set(seed: int, tmp_path: Path) -> None:
    """The whole of it: python benchmarks/hostile.py --gadgets 100000 --mutants 1000000."""
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, REPO / "benchmarks" / "hostile.py", "--gadgets", "300", "--mutants",
         "300", "--check", "--seed", str(seed), "--folder", tmp_path],
        capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "300 files" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == set()


def test_every_gadget_is_unsafe_to_check(tmp_path: Path) -> None:
    path = tmp_path / "gadget.bin"
    import random

    rng = random.Random(3)
    names = [("os", "system"), ("subprocess", "Popen"), ("torch.hub", "load"), ("numpy", "load"),
             ("builtins", "eval"), ("pip", "main"), ("no.such", "thing")]  # fmt: skip
    for module, name in names:
        for form in hostile().FORMS:
            for kind in range(3):
                path.write_bytes(
                    hostile().in_container(hostile().gadget(module, name, form, rng), kind)
                )
                assert not check_file(path).passed, (module, name, form, kind)
