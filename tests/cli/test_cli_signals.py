"""Ending a run by a signal: its status, and nothing half-written left behind."""

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import Write


@pytest.fixture
def long_job(write: Write, tmp_path: Path) -> Path:
    """Return a checkpoint whose exact factorization takes several seconds, tensor by tensor."""
    rng = np.random.default_rng(0)
    tensors = {f"fc{i}.weight": rng.standard_normal((500, 400)) for i in range(60)}
    return write(tmp_path / "long.safetensors", tensors)


def wait_for(found: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_a_signal_ends_a_run_and_leaves_nothing(
    number: signal.Signals, status: int, command: list[str], long_job: Path, tmp_path: Path
) -> None:
    before = long_job.read_bytes()
    job = ["--target", "all", "--rank", "9", "--exact", "-o", str(tmp_path / "o")]
    args = ["compress", str(long_job), *job]
    process = subprocess.Popen(
        [*command, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # under nohup the tests themselves ignore SIGHUP, and so would this process
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    wait_for(lambda: list(tmp_path.glob(".o.part-*")), 60)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert out == ""
    assert err.strip().startswith("ckptshrink: ")
    assert "Traceback" not in err
    assert sorted(tmp_path.iterdir()) == [long_job]
    assert long_job.read_bytes() == before


_LOST = """
import os, sys, time
from ckptshrink_cli import main
class Removed:
    def __del__(self):
        os.kill(os.getpid(), int(sys.argv[1]))
        time.sleep(0.01)
def run(args):
    Removed()
    time.sleep(20)
    return 0
main.main.main = lambda *args, **kwargs: run(args)
main.entry()
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_comes_in_a_finalizer_is_not_lost(
    number: signal.Signals, status: int, command: list[str]
) -> None:
    done = subprocess.run(
        [command[0], "-c", _LOST, str(int(number))], capture_output=True, text=True, timeout=60,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # see above
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
