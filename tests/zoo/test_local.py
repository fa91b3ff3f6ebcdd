"""Worker processes: a call whose process dies ends alone, and the next one has another."""

import faulthandler
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from ckptshrink.zoo.failures import WorkerLostError
from ckptshrink.zoo.local import LocalExecutor

sleep_long = (time.sleep, 60.0)


def end_by(number: int) -> None:
    sys.stderr.write("about to end\n")
    sys.stderr.flush()
    os.kill(os.getpid(), number)
    time.sleep(60)


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalExecutor]:
    # what is preloaded takes seconds to import and none of it is used here
    monkeypatch.setattr("ckptshrink.zoo.local._PRELOADED", ["ckptshrink.zoo.local"])
    executor = LocalExecutor(2)
    yield executor
    executor.shutdown(cancel_futures=True)


def error_of(future: "Future[Any]") -> WorkerLostError:
    error = future.exception(timeout=60)
    assert isinstance(error, WorkerLostError)
    return error


def test_results_and_errors_come_back(executor: LocalExecutor) -> None:
    assert executor.submit(pow, 2, 10).result(timeout=60) == 1024
    assert isinstance(executor.submit(pow, 0, -1).exception(timeout=60), ZeroDivisionError)
    pids = {executor.submit(os.getpid).result(timeout=60) for _ in range(4)}
    assert os.getpid() not in pids


def test_a_worker_that_is_killed_costs_its_own_call(executor: LocalExecutor) -> None:
    pid = executor.submit(os.getpid).result(timeout=60)
    lost = executor.submit(end_by, signal.SIGKILL)
    other = executor.submit(pow, 2, 3)
    error = error_of(lost)
    assert (str(error), error.crashed) == ("its worker was ended by SIGKILL", False)
    assert "about to end" in error.said
    assert other.result(timeout=60) == 8
    later = {executor.submit(os.getpid).result(timeout=60) for _ in range(6)}
    assert later - {pid}


def test_one_that_crashed_is_told_from_one_that_was_killed(executor: LocalExecutor) -> None:
    error = error_of(executor.submit(faulthandler._sigsegv))  # type: ignore[attr-defined]
    assert error.crashed
    assert "SIGSEGV" in str(error)
    assert "Segmentation fault" in error.said


def test_one_that_is_asked_to_end_cleans_up_and_is_lost(
    executor: LocalExecutor, tmp_path: Path
) -> None:
    error = error_of(executor.submit(end_by, signal.SIGTERM))
    assert "asked to end" in str(error)
    assert executor.submit(pow, 2, 2).result(timeout=60) == 4


def test_one_that_is_killed_while_it_waits_is_replaced(executor: LocalExecutor) -> None:
    pids = [executor.submit(os.getpid).result(timeout=60) for _ in range(3)]
    for pid in set(pids):
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.3)
    assert executor.submit(pow, 2, 5).result(timeout=60) == 32


def test_work_that_is_under_way_ends_with_the_executor() -> None:
    executor = LocalExecutor(1)
    future = executor.submit(*sleep_long)
    time.sleep(0.5)
    started = time.monotonic()
    executor.shutdown(cancel_futures=True)
    assert time.monotonic() - started < 30
    assert isinstance(future.exception(timeout=5), WorkerLostError)


SCRIPT = """
import os, sys, time
from ckptshrink.zoo import local
local._PRELOADED = ["ckptshrink.zoo.local"]
if __name__ == "__main__":
    executor = local.LocalExecutor(1)
    print(executor.submit(os.getpid).result(), flush=True)
    executor.submit(time.sleep, 60)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(SCRIPT)
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env=env
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{pid}").exists()
    assert not list(tmp_path.glob("ckptshrink-worker-*"))
