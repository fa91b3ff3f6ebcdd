"""Worker processes: a call whose process dies ends alone, and the next one has another."""

import errno
import faulthandler
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from multiprocessing import forkserver, util
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from ckptshrink.errors import WorkerLostError
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


def test_a_fork_server_that_is_killed_before_it_has_forked_is_replaced(
    executor: LocalExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, killed = ForkServerProcess.start, list[int]()

    def start_badly(process: ForkServerProcess) -> None:
        if not killed:
            forkserver.ensure_running()
            killed.append(forkserver._forkserver._forkserver_pid)  # type: ignore[attr-defined]
            os.kill(killed[0], signal.SIGSTOP)  # so that it is asked for a worker, and makes none
            threading.Timer(0.2, os.kill, (killed[0], signal.SIGKILL)).start()
        start(process)

    monkeypatch.setattr(ForkServerProcess, "start", start_badly)
    future = executor.submit(pow, 2, 6)
    if isinstance(future.exception(timeout=60), WorkerLostError):  # seen on a busy machine: the
        future = executor.submit(pow, 2, 6)  # worker was there; a batch tries such a job again
    assert future.result(timeout=60) == 64
    assert killed


def test_a_fork_server_that_is_killed_leaves_what_the_next_one_needs(
    executor: LocalExecutor,
) -> None:
    lost = [executor.submit(*sleep_long) for _ in range(2)]
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    os.kill(server, signal.SIGKILL)
    assert all("lost" in str(error_of(each)) for each in lost)
    time.sleep(2.0)  # its workers end, and had the folder of the batch in hand
    pids = {executor.submit(os.getpid).result(timeout=60) for _ in range(2)}
    assert server not in pids


def test_no_worker_that_can_be_started_is_the_calls_error(
    executor: LocalExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(process: ForkServerProcess) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(ForkServerProcess, "start", refused)
    assert "Cannot allocate memory" in str(error_of(executor.submit(pow, 2, 6)))
    monkeypatch.undo()
    assert executor.submit(pow, 2, 6).result(timeout=60) == 64


def test_work_that_is_under_way_ends_with_the_executor() -> None:
    executor = LocalExecutor(1)
    future = executor.submit(*sleep_long)
    time.sleep(0.5)
    started = time.monotonic()
    executor.shutdown(cancel_futures=True)
    assert time.monotonic() - started < 30
    assert isinstance(future.exception(timeout=5), WorkerLostError)


def test_workers_that_outlive_the_executor_leave_the_folder_to_its_process() -> None:
    executor = LocalExecutor(1)
    executor.submit(*sleep_long)
    time.sleep(0.5)
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    os.kill(server, signal.SIGKILL)  # it takes its worker a second to see that
    executor.shutdown(cancel_futures=True)
    del executor
    time.sleep(2.5)
    assert Path(util.get_temp_dir()).is_dir()


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
    assert [path.name for path in tmp_path.iterdir()] == ["parent.py"]
