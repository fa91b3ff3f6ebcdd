"""The small checkpoints of `fixtures`: made again to the same bytes, and fit for what they show."""

import hashlib
import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from ckptshrink.io.hdf5_file import open_hdf5

REPO = Path(__file__).resolve().parents[2]
CELL = "RNN_{}/RNN/MultiRNNCell/Cell{}/LSTMCell"


def test_they_are_what_the_scripts_make(fixtures: Path) -> None:
    done = subprocess.run(
        [sys.executable, fixtures / "make_fixtures.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_digests_list_every_file_in_order(fixtures: Path) -> None:
    lines = (fixtures / "DIGESTS").read_text().splitlines()
    recorded = {name: sha for sha, name in (line.split("  ", 1) for line in lines)}
    assert list(recorded) == sorted(recorded)
    assert len(recorded) == len(lines)
    for name, sha in recorded.items():
        assert hashlib.sha256((fixtures / name).read_bytes()).hexdigest() == sha
    others = {"tasks", "trained"}  # written by hand, and trained
    kept = {
        p
        for p in fixtures.rglob("*")
        if p.is_file()
        and p.suffix not in {".py", ".pyc"}
        and p.relative_to(fixtures).parts[0] not in others
    }
    assert kept == {fixtures / name for name in recorded} | {fixtures / "DIGESTS"}
    assert sum(path.stat().st_size for path in kept) < 6_000_000


def test_another_file_fails_the_check(fixtures: Path, tmp_path: Path) -> None:
    for path in fixtures.rglob("*"):
        if path.is_file() and path.suffix != ".pyc":
            target = tmp_path / path.relative_to(fixtures)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    changed = tmp_path / "elmo" / "elmo.hdf5"
    changed.write_bytes(changed.read_bytes() + b"\0")
    (tmp_path / "elmo" / "options.json").unlink()
    done = subprocess.run(
        [sys.executable, tmp_path / "make_fixtures.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )
    assert done.returncode == 1
    assert [line for line in done.stdout.splitlines() if not line.startswith("torch is")] == [
        "elmo/elmo.hdf5: the file here is not the one in DIGESTS",
        "elmo/options.json: the file here is not the one in DIGESTS",
    ]


def weights(path: Path) -> dict[str, NDArray[Any]]:
    with h5py.File(path, "r") as file, closing(open_hdf5(path)) as reader:
        return {name: file[name][()] for name in reader.checkpoint.tensors}


def test_the_elmo_has_the_layout_of_bilm_tf(fixtures: Path) -> None:
    options = json.loads((fixtures / "elmo" / "options.json").read_text())
    lstm, chars = options["lstm"], options["char_cnn"]
    assert lstm == {
        "use_skip_connections": True,
        "projection_dim": 32,
        "cell_clip": 3,
        "proj_clip": 3,
        "dim": 128,
        "n_layers": 2,
    }
    assert set(chars) == {
        "activation",
        "filters",
        "n_highway",
        "embedding",
        "n_characters",
        "max_characters_per_token",
    }
    assert chars["n_characters"] == 262
    p, d, c = lstm["projection_dim"], lstm["dim"], chars["embedding"]["dim"]
    f = sum(n for _, n in chars["filters"])
    expected: dict[str, tuple[int, ...]] = {"char_embed": (261, c)}
    for k, (width, n) in enumerate(chars["filters"]):
        expected |= {f"CNN/W_cnn_{k}": (1, width, c, n), f"CNN/b_cnn_{k}": (n,)}
    for k in range(chars["n_highway"]):
        expected |= {f"CNN_high_{k}/W_{kind}": (f, f) for kind in ("carry", "transform")}
        expected |= {f"CNN_high_{k}/b_{kind}": (f,) for kind in ("carry", "transform")}
    expected |= {"CNN_proj/W_proj": (f, p), "CNN_proj/b_proj": (p,)}
    for direction in (0, 1):
        for layer in range(lstm["n_layers"]):
            cell = CELL.format(direction, layer)
            expected |= {f"{cell}/W_0": (2 * p, 4 * d), f"{cell}/B": (4 * d,)}
            expected |= {f"{cell}/W_P_0": (d, p)}
    found = weights(fixtures / "elmo" / "elmo.hdf5")
    assert {name: x.shape for name, x in found.items()} == expected
    assert {x.dtype for x in found.values()} == {np.dtype("f4")}


def test_names_are_those_of_a_published_elmo(fixtures: Path, shared_data: Path) -> None:
    ours = weights(fixtures / "elmo" / "elmo.hdf5")
    theirs = weights(shared_data / "elmo_allennlp" / "lm_weights.hdf5")
    # theirs has one more filter width
    assert set(ours) == {name for name in theirs if not name.endswith("cnn_4")}
    for name in ours:
        assert ours[name].ndim == theirs[name].ndim


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("direction", [0, 1])
def test_gate_matrices_have_a_spectrum_as_if_trained(
    fixtures: Path, direction: int, layer: int
) -> None:
    packed = weights(fixtures / "elmo" / "elmo.hdf5")[CELL.format(direction, layer) + "/W_0"]
    for W, decay in ((packed[:32], 0.6), (packed[32:], 0.8)):
        S = np.linalg.svd(W.astype("f8"), compute_uv=False)
        # a power law in the leading half, where the white noise below it hardly shows
        k = np.arange(1, 17)
        slope = np.polyfit(np.log(k), np.log(S[:16]), 1)[0]
        assert abs(-slope - decay) < 0.08
        # rank 8 of 32 keeps most of the energy and far from all
        assert 0.70 < np.sum(S[:8] ** 2) / np.sum(S**2) < 0.95
        assert 0.05 < W.std() < 0.15
        assert np.linalg.matrix_rank(W) == 32


def test_the_packed_elmo_holds_the_token_elmo(fixtures: Path) -> None:
    plain = weights(fixtures / "elmo" / "tokens" / "elmo_tokens_weights.hdf5")
    packed = weights(fixtures / "elmo" / "packed" / "elmo_packed.hdf5")
    assert plain.keys() == packed.keys()
    for name in plain:
        assert np.array_equal(plain[name], packed[name])
    with h5py.File(fixtures / "elmo" / "packed" / "elmo_packed.hdf5", "r") as file:
        assert all(
            file[name].compression == "gzip" and file[name].shuffle and file[name].chunks
            for name in packed
        )


def test_safetensors_are_what_the_library_writes(fixtures: Path, tmp_path: Path) -> None:
    files = sorted((fixtures / "safetensors").rglob("*.safetensors"))
    assert len(files) == 6
    dtypes = set()
    for path in files:
        tensors = load_file(path)
        save_file(tensors, tmp_path / "x", {"format": "pt"})
        assert (tmp_path / "x").read_bytes() == path.read_bytes()
        dtypes |= {tensor.dtype for tensor in tensors.values()}
    assert dtypes == {torch.float32, torch.float16, torch.bfloat16}


@pytest.mark.parametrize(
    ("file", "module"),
    [
        ("lstm.safetensors", torch.nn.LSTM(64, 64, 2)),
        ("lstm_float16.safetensors", torch.nn.LSTM(32, 64, bidirectional=True)),
        ("lstm_bfloat16.safetensors", torch.nn.LSTM(32, 64, proj_size=16)),
    ],
)
def test_state_dicts_load_into_torch_modules(
    fixtures: Path, file: str, module: torch.nn.LSTM
) -> None:
    tensors = load_file(fixtures / "safetensors" / file)
    prefix = next(name for name in tensors if "weight_ih" in name).rpartition("weight_ih")[0]
    mine = {n.removeprefix(prefix): x for n, x in tensors.items() if "_l" in n}
    module.load_state_dict(mine, strict=True)
