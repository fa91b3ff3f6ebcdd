"""A Dask cluster that was started by hand, as docs/cluster.md has it."""

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
from zoo_helpers import Zoo, lstm

from ckptshrink.errors import OutputError, PlanError
from ckptshrink.zoo import cluster
from ckptshrink.zoo.cluster import Address, DaskExecutor, Tls, address_of
from ckptshrink.zoo.local import LocalExecutor

FILE = "scheduler.json"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Start a scheduler and two workers; yield the folder with the scheduler's file."""
    folder = tmp_path_factory.mktemp("cluster")
    dask = [sys.executable, "-m", "dask"]
    common = ["--scheduler-file", FILE, "--no-dashboard"]
    # a free port for its pages too, which it has whether they are drawn or not
    scheduler = ["scheduler", *common, "--host", "127.0.0.1", "--port", "0"]
    worker = ["worker", *common, "--nthreads", "1", "--host", "127.0.0.1"]
    env = {**os.environ, "DASK_DISTRIBUTED__SCHEDULER__DASHBOARD__BOKEH_APPLICATION": "null"}
    started = []
    for number, args in enumerate((scheduler, worker, worker)):
        with (folder / f"{number}.log").open("w") as log:
            started.append(
                subprocess.Popen(
                    [*dask, *args],
                    cwd=folder,
                    stdout=log,
                    stderr=log,
                    env=env,
                    start_new_session=True,
                )
            )
        deadline = time.monotonic() + 60
        while number == 0 and not (folder / FILE).exists() and time.monotonic() < deadline:
            time.sleep(0.05)
    yield folder
    for process in reversed(started):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def address(place: Path) -> Address:
    return address_of(str(place / FILE))


def test_the_same_bytes_as_on_this_machine(zoo: Zoo, address: Address) -> None:
    (zoo.folder / "zoo" / "broken.safetensors").write_bytes(b"no")
    there = zoo.run(lambda: DaskExecutor(address, Tls(), str(zoo.out)), local=False)
    assert (there.totals.done, there.totals.failed) == (3, 1)
    assert zoo.run().names("started") == []
    far = zoo.out.rename(zoo.folder / "far")
    here = zoo.run(lambda: LocalExecutor(2))
    assert (here.totals.done, here.totals.failed) == (3, 1)
    made = sorted(p.relative_to(far) for p in far.rglob("*.shrunk/*"))
    assert len(made) == 9
    for path in made:
        assert (far / path).read_bytes() == (zoo.out / path).read_bytes()


def test_as_many_at_once_as_there_are_workers(place: Path, address: Address) -> None:
    executor = DaskExecutor(address, Tls(), str(place))
    deadline = time.monotonic() + 60
    while executor.workers < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert executor.workers == 2
    assert executor.submit(pow, 2, 5).result(timeout=60) == 32
    assert isinstance(executor.submit(pow, 0, -1).exception(timeout=60), ZeroDivisionError)
    executor.shutdown()


def test_workers_that_do_not_see_the_output_are_refused(place: Path, address: Address) -> None:
    with pytest.raises(OutputError, match="does not see the output"):
        DaskExecutor(address, Tls(), str(place / "none"))


def test_workers_of_another_version_are_refused(
    place: Path, address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "__version__", "99.0")
    with pytest.raises(PlanError, match=r"has ckptshrink .*, and this is 99\.0"):
        DaskExecutor(address, Tls(), str(place))


def test_a_scheduler_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cluster, "_PATIENCE", 1)
    with pytest.raises(PlanError, match="no scheduler answers at"):
        DaskExecutor(address_of("dask://127.0.0.1:9"), Tls(), str(tmp_path))
    with pytest.raises(PlanError, match="there is no such scheduler file"):
        DaskExecutor(address_of("gone.json"), Tls(), str(tmp_path))


def test_certificates_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="there is no file for tls-ca-file"):
        DaskExecutor(address_of("dask+tls://h:1"), Tls(ca_file="gone.pem"), str(tmp_path))


@pytest.mark.parametrize("text", ["dask://host", "dask://:1", "slurm", "ray://h:1", "x.yaml", ""])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(PlanError):
        address_of(text)


def test_a_worker_that_is_killed_loses_nothing(zoo: Zoo, address: Address) -> None:
    for seed in range(8):
        lstm(zoo.folder / "zoo" / f"{seed}.safetensors", seed, hidden=256)

    class Killing(DaskExecutor):
        """Kills one of the workers when it has a job in hand; its nanny starts another."""

        killed = False

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> "Future[Any]":
            future = super().submit(fn, *args, **kwargs)
            if not Killing.killed:
                Killing.killed = True
                pid = next(iter(self._client.run(os.getpid).values()))
                os.kill(pid, signal.SIGKILL)
            return future

    ran = zoo.run(lambda: Killing(address, Tls(), str(zoo.out)), local=False)
    assert Killing.killed
    assert ran.totals.passed
    assert ran.totals.done == 11
