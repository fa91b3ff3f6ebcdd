"""Running the command line, in this process and in one of its own; a small checkpoint to run on."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import Done, Shrink, Tensors, Write

from ckptshrink_cli.main import run


@pytest.fixture
def shrink(capsys: pytest.CaptureFixture[str]) -> Shrink:
    """Run the command line in this process; torch is imported once for all tests."""

    def call(*args: object) -> Done:
        capsys.readouterr()
        status = run([str(arg) for arg in args])
        return Done(status, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def command() -> list[str]:
    """Return how the command line is started as a process."""
    return [sys.executable, "-m", "ckptshrink_cli"]


@pytest.fixture
def program(command: list[str]) -> Shrink:
    """Run the command line as a process of its own."""

    def call(
        *args: object, cwd: Path | None = None, env: Mapping[str, str] | None = None, **more: Any
    ) -> Done:
        done = subprocess.run(
            [*command, *map(str, args)],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            check=False,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=100,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more},
        )
        return Done(done.returncode, done.stdout or "", done.stderr or "")

    return call


@pytest.fixture(scope="session")
def write() -> Write:
    """Write a safetensors file; by hand, so that names may be as hostile as they like."""

    def call(path: Path, tensors: Tensors) -> Path:
        entries, payload = {}, b""
        for name, array in tensors.items():
            start, payload = len(payload), payload + array.astype("<f4").tobytes()
            offsets = [start, len(payload)]
            entries[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": offsets}
        header = json.dumps(entries).encode()
        header += b" " * (-len(header) % 8)
        path.write_bytes(struct.pack("<Q", len(header)) + header + payload)
        return path

    return call


@pytest.fixture(scope="session")
def lstm_tensors() -> Tensors:
    """Return the state dict of an nn.LSTM whose recurrent weight has a decaying spectrum."""
    rng = np.random.default_rng(0)
    hidden, inputs = 24, 16
    wide = rng.standard_normal((4 * hidden, hidden)) * 0.7 ** np.arange(hidden)
    return {
        "rnn.weight_ih_l0": rng.standard_normal((4 * hidden, inputs)),
        "rnn.weight_hh_l0": wide @ rng.standard_normal((hidden, hidden)),
        "rnn.bias_ih_l0": rng.standard_normal(4 * hidden),
        "rnn.bias_hh_l0": rng.standard_normal(4 * hidden),
    }


@pytest.fixture
def lstm(tmp_path: Path, write: Write, lstm_tensors: Tensors) -> Path:
    """Return a safetensors file with one LSTM layer."""
    return write(tmp_path / "lstm.safetensors", lstm_tensors)


@pytest.fixture
def artefact(lstm: Path, shrink: Shrink) -> Path:
    """Return an artefact made from `lstm`."""
    out = lstm.parent / "small"
    done = shrink("compress", lstm, "--target", "Wh", "--rank", 4, "-o", out)
    assert done.status == 0, done.err
    return out


@pytest.fixture
def unwritable(tmp_path: Path) -> Path:
    """Return a folder in which nothing can be made: /proc for root, who may write anywhere."""
    if os.geteuid() == 0:
        return Path("/proc")
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    return folder
