"""A batch: what is left to do is done, once; what fails fails alone; nothing is lost."""

import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from zoo_helpers import Inline, Zoo, lstm, snapshot

from ckptshrink.errors import TransientError, WorkerLostError
from ckptshrink.io.part_folder import LOCK
from ckptshrink.verification import verify
from ckptshrink.zoo import work as work_module
from ckptshrink.zoo.batch import _CRASHED, _LOST
from ckptshrink.zoo.footprint import Footprint
from ckptshrink.zoo.records import RECORD, read_record
from ckptshrink.zoo.work import Answer, Order

A, B, C = "zoo/a.safetensors", "zoo/deep/er/b.safetensors", "zoo/c.safetensors"


def test_every_model_is_compressed_and_recorded(zoo: Zoo) -> None:
    ran = zoo.run()
    assert (ran.totals.done, ran.totals.failed, ran.totals.passed) == (3, 0, True)
    for job in zoo.jobs():
        found = verify(zoo.out / job.artefact, source=Path(job.source))
        assert found.passed
        assert found.manifest.job_key
        record = read_record(zoo.out / job.reports)
        assert record is not None
        assert record.status == "done"
        assert record.size is not None
        on_disk = sum(p.stat().st_size for p in (zoo.out / job.artefact).iterdir())
        assert record.size.nbytes_after == on_disk
    document = json.loads((zoo.out / "zoo.json").read_text())
    assert [row["name"] for row in document["models"]] == [A, C, B]
    assert document["totals"]["n_done"] == 3
    assert (zoo.out / "zoo.csv").read_text().count("\n") == 4


def test_a_second_run_touches_nothing_and_starts_no_worker(zoo: Zoo) -> None:
    (zoo.folder / "zoo" / "broken.safetensors").write_bytes(b"no")
    first = zoo.run()
    before = snapshot(zoo.out)
    again = zoo.run()
    assert snapshot(zoo.out) == before
    assert again.starts == 0
    assert again.totals.skipped == 4
    counts = ("done", "failed", "nbytes_before", "nbytes_after")
    for count in counts:
        assert getattr(again.totals, count) == getattr(first.totals, count)


def left_by_a_killed_run(target: Path) -> None:
    part = target.with_name(f".{target.name}.part-0123456789ab")
    (part / "new").mkdir(parents=True)
    (part / LOCK).touch()


def test_what_a_killed_batch_left_is_swept_by_the_next_one(zoo: Zoo) -> None:
    zoo.run()
    before = snapshot(zoo.out)
    for target in (zoo.out / f"{A}.shrunk", zoo.out / "reports" / A / RECORD):
        left_by_a_killed_run(target)
    assert snapshot(zoo.out) != before
    again = zoo.run()
    assert snapshot(zoo.out).keys() == before.keys()
    assert again.starts == 0


def test_what_a_killed_worker_left_is_swept_by_the_next_attempt(zoo: Zoo, no_wait: None) -> None:
    class KilledAtTheEnd(Inline):
        done = 0

        def call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            answer = fn(*args)
            if args[0].job.name == A and not self.done:
                self.done = 1
                for target in (zoo.out / f"{A}.shrunk", zoo.out / "reports" / A / RECORD):
                    left_by_a_killed_run(target)
                raise WorkerLostError("its worker was ended by SIGKILL")
            return answer

    ran = zoo.run(KilledAtTheEnd)
    assert ran.names("again") == [A]
    assert ran.totals.passed
    assert not list(zoo.out.rglob(".*.part-*"))


def test_a_model_that_fails_fails_alone_and_says_why(zoo: Zoo) -> None:
    (zoo.folder / "zoo" / "broken.safetensors").write_bytes(b"no")
    ran = zoo.run()
    assert (ran.totals.done, ran.totals.failed, ran.totals.passed) == (3, 1, False)
    reports = zoo.out / "reports" / "zoo" / "broken.safetensors"
    record = read_record(reports)
    assert record is not None
    assert record.failed is not None
    assert record.failed.step == "compress"
    assert record.failed.message in (reports / "log.txt").read_text()
    assert not (zoo.out / "zoo" / "broken.safetensors.shrunk").exists()


def test_what_failed_is_tried_again_when_it_changed(zoo: Zoo) -> None:
    broken = zoo.folder / "zoo" / "broken.safetensors"
    broken.write_bytes(b"no")
    zoo.run()
    lstm(broken, 9)
    ran = zoo.run()
    assert ran.names("started") == ["zoo/broken.safetensors"]
    assert ran.totals.passed


def test_only_what_failed_is_tried_again_where_that_is_asked_for(zoo: Zoo) -> None:
    broken = zoo.folder / "zoo" / "broken.safetensors"
    broken.write_bytes(b"no")
    zoo.run()
    (zoo.out / A).with_name("a.safetensors.shrunk").joinpath("manifest.json").unlink()
    ran = zoo.run(failed=True)
    assert ran.names("started") == ["zoo/broken.safetensors"]


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        (lambda zoo: None, []),
        (lambda zoo: lstm(zoo.folder / A, 7), [A]),
        (lambda zoo: (zoo.folder / A).rename(zoo.folder / "zoo" / "new.safetensors"),
         ["zoo/new.safetensors"]),
        (lambda zoo: (zoo.out / f"{A}.shrunk" / "manifest.json").unlink(), [A]),
        (lambda zoo: (zoo.out / f"{A}.shrunk" / "extra").touch(), [A]),
        (lambda zoo: flip(zoo.out / f"{A}.shrunk" / "model.safetensors"), [A]),
        (lambda zoo: flip(zoo.out / f"{A}.shrunk" / "README.md"), [A]),
        (lambda zoo: (zoo.out / "reports" / A / RECORD).unlink(), [A]),
        (lambda zoo: flip(zoo.out / "reports" / A / RECORD), [A]),
        (lambda zoo: setattr(zoo, "text", zoo.text + f'[[model]]\npath = "{A}"\nrank = 4\n'), [A]),
        (lambda zoo: setattr(zoo, "text", zoo.text.replace("rank = 3", "rank = 4")), [A, C, B]),
        (lambda zoo: setattr(zoo, "text", zoo.text.replace("rank = 3", "rank = 3\nseed = 0")), []),
        (lambda zoo: setattr(zoo, "text", zoo.text.replace("rank = 3", "rank = 3\nseed = 1")),
         [A, C, B]),
    ],
)  # fmt: skip
def test_a_change_redoes_what_depends_on_it(
    zoo: Zoo, change: Callable[[Zoo], object], redone: list[str]
) -> None:
    zoo.run()
    change(zoo)
    ran = zoo.run()
    assert ran.names("started") == redone
    assert ran.totals.passed
    assert zoo.run().names("started") == []


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_another_version_redoes_everything(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo.run()
    monkeypatch.setattr("ckptshrink.manifest.__version__", "99.0")
    assert len(zoo.run().names("started")) == 3


def test_what_was_redone_has_the_bytes_that_it_had(zoo: Zoo) -> None:
    zoo.run()
    files = [zoo.out / f"{A}.shrunk" / name for name in ("model.safetensors", "manifest.json")]
    before = [file.read_bytes() for file in files]
    zoo.run(force=True)
    assert [file.read_bytes() for file in files] == before


def test_a_folder_that_is_in_the_way_is_left_alone(zoo: Zoo) -> None:
    place = zoo.out / f"{A}.shrunk"
    place.mkdir(parents=True)
    (place / "thesis.txt").write_text("all of it")
    ran = zoo.run()
    assert (ran.totals.done, ran.totals.failed) == (2, 1)
    assert (place / "thesis.txt").read_text() == "all of it"


class Flaky(Inline):
    """Fails as it is told before it does what it is given.

    Parameters
    ----------
    errors : list
        What happens to each call of the model: an exception that the future raises, one that the
        work itself meets, or None.
    """

    def __init__(self, name: str, errors: list[Any]) -> None:
        self.name, self.errors = name, list(errors)
        self.orders: list[Order] = []

    def call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        (order,) = args
        self.orders.append(order)
        if order.job.name == self.name and self.errors:
            error = self.errors.pop(0)
            if isinstance(error, Answer):
                return error
            if error is not None:
                raise error
        return fn(*args)


def again(message: str = "Input/output error") -> Answer:
    return Answer("again", message=message)


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptshrink.zoo.batch._LONGEST", 0.0)


@pytest.mark.parametrize(
    ("errors", "attempts"),
    [
        ([again()], 2),
        ([again()] * 3, 4),
        ([WorkerLostError("its worker was ended by SIGKILL")] * 5, 6),
        ([WorkerLostError("its worker was ended by SIGSEGV", crashed=True)], 2),
    ],
)
def test_what_may_go_better_is_tried_again(
    zoo: Zoo, no_wait: None, errors: list[Any], attempts: int
) -> None:
    flaky = Flaky(A, errors)
    ran = zoo.run(lambda: flaky)
    assert ran.totals.passed
    assert len(ran.names("again")) == attempts - 1
    record = read_record(zoo.out / "reports" / A)
    assert record is not None
    assert record.attempts == attempts
    log = (zoo.out / "reports" / A / "log.txt").read_text()
    assert log.count("before: attempt") == attempts - 1


@pytest.mark.parametrize(
    ("error", "attempts", "transient"),
    [
        (again("no space"), 4, True),
        (WorkerLostError("its worker was ended by SIGKILL"), _LOST, True),
        (WorkerLostError("its worker was ended by SIGSEGV", crashed=True), _CRASHED, False),
        (ValueError("a bug"), 1, False),
    ],
)
def test_what_does_not_go_better_is_given_up(
    zoo: Zoo, no_wait: None, error: Any, attempts: int, transient: bool
) -> None:
    flaky = Flaky(A, [error] * 100)
    ran = zoo.run(lambda: flaky)
    assert (ran.totals.done, ran.totals.failed) == (2, 1)
    assert sum(order.job.name == A for order in flaky.orders) == attempts
    record = read_record(zoo.out / "reports" / A)
    assert record is not None
    assert record.failed is not None
    assert record.failed.transient is transient
    # what may go better is tried by the next run; what ended its worker is not
    later = zoo.run()
    assert later.names("started") == ([A] if transient else [])
    assert later.totals.passed is transient


def test_a_name_that_is_no_text_is_a_name(zoo: Zoo) -> None:
    name = os.fsdecode(b"zoo/no\xfftext.safetensors")
    (zoo.folder / A).rename(zoo.folder / name)
    assert zoo.run().totals.passed
    (artefact,) = [zoo.out / j.artefact for j in zoo.jobs() if j.name == name]
    assert verify(artefact, source=zoo.folder / name).passed
    assert zoo.run().totals.skipped == 3


def test_an_input_that_is_gone_fails_alone(zoo: Zoo) -> None:
    class Removing(Inline):
        def call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            (zoo.folder / A).unlink(missing_ok=True)
            return fn(*args)

    ran = zoo.run(Removing)
    assert (ran.totals.done, ran.totals.failed) == (2, 1)
    record = read_record(zoo.out / "reports" / A)
    assert record is not None
    assert record.failed is not None
    assert "no such file" in record.failed.message


def test_a_disk_that_is_full_is_no_fault_of_the_model(
    zoo: Zoo, no_wait: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(work_module, "_keep", full)
        ran = zoo.run(retries=1)
    assert ran.totals.failed == 3
    assert ran.totals.n_unrecorded == 3
    assert "No space left" in ran.events[-2].answer.message  # type: ignore[union-attr]
    assert zoo.run().totals.passed


def test_a_disk_that_is_seen_to_be_full_is_no_fault_of_the_model_either(
    zoo: Zoo, no_wait: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(zoo.folder)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
        ran = zoo.run(retries=1)
    assert (ran.totals.failed, len(ran.names("again"))) == (3, 3)
    assert "disk has 100 free" in ran.events[-2].answer.message  # type: ignore[union-attr]
    assert zoo.run().totals.passed


class Threads(ThreadPoolExecutor):
    """Says how many jobs were at work at once."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self.workers = workers
        self.most = self.now = 0
        self.lock = threading.Lock()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        def counted() -> Any:
            with self.lock:
                self.now += 1
                self.most = max(self.most, self.now)
            time.sleep(0.05)
            try:
                return fn(*args)
            finally:
                with self.lock:
                    self.now -= 1

        return super().submit(counted)


@pytest.mark.parametrize(("limit", "most"), [(2_500, 2), (1_500, 1), (500, 1), (None, 3)])
def test_memory_is_shared_out(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch, limit: int | None, most: int
) -> None:
    monkeypatch.setattr("ckptshrink.zoo.batch.footprint_of", lambda *_: Footprint(1_000, 0))
    threads = Threads(3)
    assert zoo.run(lambda: threads, max_memory=limit).totals.passed
    assert threads.most == most


def test_a_job_whose_worker_crashed_is_alone_the_next_time(zoo: Zoo) -> None:
    alone: list[int] = []

    class Crashing(Threads):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
            (order,) = args
            if order.job.name == A and order.attempt == 1:
                future: Future[Any] = Future()
                future.set_exception(WorkerLostError("SIGSEGV", crashed=True))
                return future
            if order.job.name == A:
                alone.append(self.now)
            return super().submit(fn, *args)

    assert zoo.run(lambda: Crashing(3)).totals.passed
    assert alone == [0]


def test_a_model_that_can_not_even_be_looked_at_is_no_end_of_the_batch(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*args: object) -> None:
        raise TransientError("the store does not answer")

    monkeypatch.setattr("ckptshrink.zoo.batch.remote.looking", down)
    assert zoo.run().totals.passed


def test_two_batches_on_one_output_at_once_are_both_done(zoo: Zoo) -> None:
    results = []
    threads = [threading.Thread(target=lambda: results.append(zoo.run())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [ran.totals.passed for ran in results] == [True, True]
    for job in zoo.jobs():
        assert verify(zoo.out / job.artefact, source=Path(job.source)).passed
