"""The process in which HDF5 runs: whatever it does over a file, this one goes on."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import h5py
import numpy as np
import pytest

from ckptshrink.errors import (
    CheckpointError,
    CorruptCheckpointError,
    OutputError,
    UnsafeCheckpointError,
)
from ckptshrink.io import hdf5_process
from ckptshrink.io.hdf5_file import open_hdf5
from ckptshrink.io.hdf5_index import index_of

X = np.arange(4000, dtype="f4").reshape(200, 20)

TAKEN_OVER = (
    "import json, os, sys; sys.path += json.loads(sys.argv[1]); "
    "from ckptshrink.io import hdf5_child\n"
    "def walk(*_):\n    {}\n"
    "hdf5_child.walk = walk; hdf5_child.main(int(sys.argv[2]))"
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as h5:
        h5["plain"] = X
        h5.create_dataset("packed", data=X, chunks=(8, 20), compression=1)
    return path


@pytest.fixture
def fresh() -> Iterator[None]:
    hdf5_process.stop()
    yield
    hdf5_process.stop()


@pytest.mark.parametrize(
    ("does", "error", "words"),
    [
        ("os.kill(os.getpid(), 11)", CorruptCheckpointError, "ended over it, by signal 11"),
        ("os.abort()", CorruptCheckpointError, "ended over it, by signal 6"),
        ("os._exit(0)", CorruptCheckpointError, "ended over it, without a word"),
        ("while True: pass", UnsafeCheckpointError, "longer than a file of its size may"),
        ("bytearray(1 << 30)", UnsafeCheckpointError, "more memory than a file of its size may"),
        ("os.write(os.open(_[1].path, os.O_WRONLY), b'x')", CheckpointError, "File too large"),
    ],
)
def test_what_the_library_does_ends_in_one_line(
    file: Path,
    does: str,
    error: type[CheckpointError],
    words: str,
    fresh: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        # replaced and not formatted: the text has braces of its own
        patch.setattr(hdf5_process, "_BOOT", TAKEN_OVER.replace("{}", does, 1))
        start = time.process_time()
        with pytest.raises(error, match=words) as caught:
            open_hdf5(file)
        assert "\n" not in str(caught.value)
        assert time.process_time() - start < 5
        hdf5_process.stop()
    with closing(open_hdf5(file)) as reader:
        assert reader.read("packed").tobytes() == X.tobytes()


def test_a_process_that_is_gone_is_started_again(file: Path) -> None:
    open_hdf5(file).close()
    server = hdf5_process._server
    assert server is not None
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    with closing(open_hdf5(file)) as reader:
        assert reader.read("packed").tobytes() == X.tobytes()


@pytest.mark.skipif(sys.platform != "linux", reason="it is found in /proc")
@pytest.mark.parametrize("whom", ["fork", "server and fork"])
def test_a_writer_that_is_killed_is_an_error_of_the_output(
    file: Path, fresh: None, whom: str
) -> None:
    datasets = [{"name": "packed", "shape": [200, 20], "dtype": "<f4", "nbytes": X.nbytes}]

    def payload(name: str) -> memoryview:
        server = hdf5_process._server
        assert server is not None
        (fork,) = (
            Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
            .read_text()
            .split()
        )
        for pid in [int(fork), *([server.process.pid] if "server" in whom else [])]:
            os.kill(pid, signal.SIGKILL)
        return memoryview(X).cast("B")

    with pytest.raises(OutputError, match="can't be written: the process of the HDF5 library"):
        hdf5_process.overwrite(file, datasets, payload)
    assert read_it(file) == X.tobytes()


def read_it(path: Path) -> bytes:
    with closing(open_hdf5(path)) as reader:
        return reader.read("packed").tobytes()


def test_it_works_from_threads_and_from_forks(file: Path) -> None:
    found: list[bytes] = []
    with closing(open_hdf5(file)) as reader:
        threads = [
            threading.Thread(
                target=lambda: found.extend((reader.read("packed").tobytes(), read_it(file)))
            )
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [X.tobytes()] * 8
        pid = os.fork()
        if pid == 0:  # the reader that is open is used on both sides
            same = reader.read("packed").tobytes() == X.tobytes() == read_it(file)
            os._exit(0 if same else 1)
        assert reader.read("packed").tobytes() == X.tobytes()
        assert os.waitpid(pid, 0)[1] == 0


def test_it_works_in_a_worker_of_multiprocessing(file: Path) -> None:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(read_it, (file,)) == X.tobytes()


@pytest.mark.parametrize("closed", ["<&-", "<&- >&-", "<&- >&- 2>&-"])
def test_it_works_without_standard_streams(file: Path, fixtures: Path, closed: str) -> None:
    code = (
        "import sys; from pathlib import Path; from ckptshrink.io.hdf5_file import open_hdf5; "
        "sys.exit(len(open_hdf5(Path(sys.argv[1])).read('packed')) != 16000)"
    )
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" "$2" {closed}', sys.executable, code, file],
        env={**os.environ, "PYTHONPATH": str(fixtures.parent)},
        timeout=60,
        check=False,
    )
    assert done.returncode == 0


SAYS = {"name": "dtype", "dtype": "utf-8", "length": None, "value": "bfloat16"}


def test_opaque_pairs_that_are_said_to_be_bfloat16_are_believed() -> None:
    plain = {"shape": [2], "stored": "|V2", "chunks": None, "maxshape": None, "filters": []}
    first = {**plain, "name": "a", "offset": 0, "shares_with": None, "attributes": [SAYS]}
    other = {**first, "name": "b", "shares_with": "a", "attributes": []}
    index = index_of({"groups": [], "datasets": [first, other], "notes": []}, 100, Path("x.h5"))
    assert [dataset.storage.dtype for dataset in index.datasets] == ["BF16", "BF16"]
    assert index_of(json.loads(json.dumps(index.record())), 100, Path("x.h5")) == index


@pytest.mark.parametrize(
    "record",
    [
        None,
        {},
        {"groups": [], "datasets": 3, "notes": []},
        {"groups": [{"name": 3, "attributes": []}], "datasets": [], "notes": []},
        {"groups": [], "datasets": [], "notes": [3]},
        *(
            {
                "groups": [],
                "notes": [],
                "datasets": [
                    {
                        "name": "w", "shape": [2], "stored": "<f4", "offset": 0, "chunks": None,
                        "maxshape": None, "filters": [], "shares_with": None, "attributes": [],
                        **change,
                    }
                ],
            }
            for change in (
                {"offset": 93}, {"offset": -1}, {"shape": [-1]}, {"shape": [True]}, {"name": None},
                {"stored": "O"}, {"stored": "no"}, {"shares_with": "w2"}, {"attributes": [{}]},
                {"shape": [1 << 62]}, {"stored": "|V2"}, {"stored": "i1,i1", "attributes": [SAYS]},
                {"stored": "2i1", "attributes": [SAYS]}, {"stored": "|V4", "attributes": [SAYS]},
                {"stored": "|V2", "attributes": [{**SAYS, "value": "float16"}]},
                {"attributes": [{**SAYS, "value": {}}]}, {"attributes": [{**SAYS, "value": None}]},
                {"attributes": [{**SAYS, "value": [[1]]}]},
                {"attributes": [{**SAYS, "length": -1}]},
                {"attributes": [{**SAYS, "value": float("nan")}]},
            )
        ),
    ],
    ids=str,
)  # fmt: skip
def test_what_it_says_is_not_believed(record: object) -> None:
    with pytest.raises(CorruptCheckpointError, match="makes no sense"):
        index_of(record, 100, Path("x.h5"))
