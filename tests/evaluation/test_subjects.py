"""What is known of a model before it is evaluated: its hash, its bytes, its parameters."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_gold
from torch import nn

from ckptshrink.errors import CheckpointError, ManifestMismatchError
from ckptshrink.evaluation.subjects import biases_of, subject_of
from ckptshrink.manifest import read_manifest
from ckptshrink.payload import Compute
from ckptshrink.planning.request import Request, Size, parse_target
from ckptshrink.rewrite import compress


def shrunk(path: Path, out: Path, targets: str = "all", rank: int = 2) -> Path:
    request = Request((parse_target(targets),), size=Size(rank=rank))
    compress(path, out, request, compute=Compute("cpu", 1))
    return out


MODELS = {
    # all parameters, those of recurrent layers; counted by the shapes that the scripts give them
    "torch/awd_lstm.zip.pt": (16_632 + 34, 14_592),
    "torch/awd_lstm_masked.legacy.pt": (16_632, 14_592),
    "torch/awd_gru.zip.pt": (12_984, 10_944),
    "torch/awd_qrnn.zip.pt": (8_640, 6_600),
    "torch/fastai_v1.zip.pt": (16_632, 14_592),
    "torch/word_language_model.zip.pt": (17_048, 11_648),
    "torch/lstm_state.zip.pt": (16_576, 16_576),
    "torch/lstm_cells.zip.pt": (9_152, 9_152),
    "safetensors/sharded": (92_360, 66_560),
    "elmo/elmo.hdf5": (175_664, 149_504),
}


def lstm_size(*layers: tuple[int, int], gates: int = 4) -> int:
    """Return the parameters of layers of (inputs, hidden), with two biases each."""
    return sum(gates * hidden * (inputs + hidden + 2) for inputs, hidden in layers)


def test_the_counts_below_are_those_of_the_layers() -> None:
    assert lstm_size((16, 28), (28, 28), (28, 16)) == 14_592
    assert lstm_size((16, 28), (28, 28), (28, 16), gates=3) == 10_944
    assert 120 * 16 + 120 + 14_592 == 16_632
    assert 3 * 28 * (2 * 16 + 1) + 3 * 28 * (28 + 1) + 3 * 16 * (28 + 1) == 6_600


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_counted_once_and_by_scope(
    fixtures: Path, tmp_path: Path, name: str
) -> None:
    path = fixtures / name
    subject = subject_of(path)
    assert (subject.n_params, subject.n_params_lstm) == MODELS[name]
    artefact = subject_of(shrunk(path, tmp_path / "small"))
    manifest = read_manifest(tmp_path / "small")
    assert manifest.totals.n_params_before == subject.n_params
    assert artefact.source_sha256 == subject.sha256 == manifest.source.sha256
    assert artefact.n_params < subject.n_params
    assert artefact.n_params_lstm < subject.n_params_lstm
    assert (subject.kind, artefact.kind) == ("source", "artefact")
    assert manifest.totals.nbytes_before == subject.nbytes
    on_disk = sum(file.stat().st_size for file in (tmp_path / "small").iterdir())
    assert artefact.nbytes == on_disk
    # what is left of the recurrent layers is what other layers did not lose
    kept = subject_of(shrunk(path, tmp_path / "kept", "Wi" if "qrnn" in name else "Wh"))
    lost = subject.n_params - kept.n_params
    assert subject.n_params_lstm - kept.n_params_lstm == lost > 0


def test_parameters_of_a_real_checkpoint_are_those_that_torch_counts(shared_data: Path) -> None:
    path = shared_data / "awd_lstm" / "whole_module_torch1.2.pt"
    subject = subject_of(path)
    assert subject.n_params_lstm == lstm_size((40, 96), (96, 96), (96, 40))
    assert subject.n_params == subject.n_params_lstm + 500 * 40 + 500
    assert subject.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert subject.nbytes == path.stat().st_size


def test_a_model_without_recurrent_layers_has_none_to_count(tmp_path: Path) -> None:
    torch.save(nn.Linear(4, 3).state_dict(), tmp_path / "m.pt")
    subject = subject_of(tmp_path / "m.pt")
    assert (subject.n_params, subject.n_params_lstm) == (15, None)


def test_the_biases_of_a_model_of_ones_own_are_found(tmp_path: Path) -> None:
    model = nn.ModuleDict(
        {"embed": nn.Embedding(9, 4), "lstm": nn.LSTM(4, 5), "tag": nn.Linear(5, 3)}
    )
    for name, own in (("m.pt", model), ("parallel.pt", nn.DataParallel(model))):
        torch.save(own.state_dict(), tmp_path / name)
        assert subject_of(tmp_path / name).n_params_lstm == lstm_size((4, 5))


def test_the_biases_of_every_wrapper_are_found() -> None:
    for weight, bias in (
        ("rnns.0.module.weight_ih_l0", "rnns.0.module.bias_ih_l0"),
        ("0.rnns.0.weight_hh_l0_raw", "0.rnns.0.module.bias_hh_l0"),
        ("rnns.0.linear.module.weight_raw", "rnns.0.linear.module.bias"),
        ("0.rnns.0.layers.0.linear.weight_raw", "0.rnns.0.layers.0.linear.module.bias"),
        ("RNN_0/RNN/MultiRNNCell/Cell0/LSTMCell/W_0", "RNN_0/RNN/MultiRNNCell/Cell0/LSTMCell/B"),
        ("weight_hh_l1_reverse", "bias_hh_l1_reverse"),
        ("cell.weight_ih", "cell.bias_ih"),
    ):
        others = ["decoder.bias", "rnns.0.module.weight_hh_l0", "norm.bias", "CNN/b_cnn_0"]
        assert biases_of([weight], [bias, *others]) == {bias}


# -- names -----------------------------------------------------------------------------------------


def test_a_model_is_called_by_its_file_or_as_one_likes(
    fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fixtures / "torch" / "awd_gru.zip.pt"
    assert subject_of(path).name == "awd_gru.zip.pt"
    assert subject_of(path, name="first").name == "first"
    assert subject_of(path, name="a\x1b[2J").name == "a\\x1b[2J"
    shrunk(path, tmp_path / "small", "Wh")
    monkeypatch.chdir(tmp_path / "small")
    assert subject_of(Path()).name == "small"


# -- artefacts that are not whole ------------------------------------------------------------------


@pytest.mark.parametrize("how", ["bit", "cut", "gone", "folder", "grown"])
def test_an_artefact_whose_weights_are_not_those_of_its_manifest_is_refused(
    fixtures: Path, tmp_path: Path, how: str
) -> None:
    out = shrunk(fixtures / "torch" / "awd_gru.zip.pt", tmp_path / "small", "Wh")
    file = out / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    if how == "bit":
        file.write_bytes(content)
    elif how == "cut":
        file.write_bytes(content[:-8])
    elif how == "grown":
        file.write_bytes(content + b"\0")
    else:
        file.unlink()
        if how == "folder":
            file.mkdir()
    with pytest.raises(
        ManifestMismatchError, match=r"model\.safetensors is not the file"
    ) as caught:
        subject_of(out)
    assert str(caught.value).startswith(str(out))
    assert "verify" in str(caught.value.hint)


def test_a_changed_manifest_is_refused_and_files_beside_are_not(
    fixtures: Path, tmp_path: Path
) -> None:
    out = shrunk(fixtures / "torch" / "awd_gru.zip.pt", tmp_path / "small", "Wh")
    (out / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    before = subject_of(out)
    manifest = out / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"nbytes_after": ', b'"nbytes_after": 1'))
    with pytest.raises(ManifestMismatchError, match="was changed since"):
        subject_of(out)
    assert before.nbytes > 0


# -- files that have no reader ---------------------------------------------------------------------


def test_a_file_without_a_reader_will_do_where_any_will(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"onnx")
    with pytest.raises(CheckpointError):
        subject_of(path)
    subject = subject_of(path, any_file=True)
    assert (subject.kind, subject.nbytes) == ("file", 4)
    assert (subject.n_params, subject.n_params_lstm) == (None, None)
    assert subject.sha256 == hashlib.sha256(b"onnx").hexdigest()


def test_a_folder_without_a_reader_is_hashed_with_the_names_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "saved_model"
    (folder / "variables").mkdir(parents=True)
    (folder / "graph.pb").write_bytes(b"one")
    (folder / "variables" / "data").write_bytes(b"two")
    first = subject_of(folder, any_file=True)
    assert (first.kind, first.nbytes) == ("file", 6)
    copied = tmp_path / "copy"
    shutil.copytree(folder, copied)
    assert subject_of(copied, any_file=True).sha256 == first.sha256
    (copied / "graph.pb").rename(copied / "other.pb")
    assert subject_of(copied, any_file=True).sha256 != first.sha256
    (copied / "other.pb").unlink()
    (copied / "variables" / "data").unlink()
    with pytest.raises(CheckpointError, match="is a folder without a file"):
        subject_of(copied, any_file=True)
    (copied / os.fsdecode(b"\xff.bin")).write_bytes(b"x")
    assert subject_of(copied, any_file=True).nbytes == 1


@pytest.mark.parametrize("any_file", [False, True])
def test_what_is_no_file_is_refused_and_does_not_hang(tmp_path: Path, any_file: bool) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    for path in (tmp_path / "pipe", tmp_path / "none", tmp_path / "dangling", Path("/dev/zero")):
        with pytest.raises(CheckpointError) as caught:
            subject_of(path, any_file=any_file)
        assert "\n" not in str(caught.value)


def test_the_gold_reader_counts_the_same(fixtures: Path) -> None:
    """The state dict of a fixture, as torch itself loads it, has as many parameters."""
    for name in ("word_language_model.zip.pt", "gru_state.legacy.pt"):
        found: dict[str, Any] = torch_gold.tensors_of(torch_gold.load(fixtures / "torch" / name))
        total = sum(v.numel() for n, v in found.items() if "_flat_weights" not in n)
        assert subject_of(fixtures / "torch" / name).n_params == total
