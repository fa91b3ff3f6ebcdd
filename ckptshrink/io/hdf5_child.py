"""The process in which the HDF5 library looks at files, started by `hdf5_process`.

It waits for files, and forks for each: importing h5py takes 0.15 s, and a fork 3 ms. The fork
lowers its own limits, does what it is asked and ends. Whatever a file makes the library do, it does
it here.
"""

import contextlib
import errno
import io
import os
import select
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from ckptshrink.errors import CkptshrinkError, UnsafeCheckpointError
from ckptshrink.io.files import SourceFile
from ckptshrink.io.hdf5_dataset import check_chunks
from ckptshrink.io.hdf5_index import Dataset, one_line
from ckptshrink.io.hdf5_library import h5py, h5s, library_errors, open_output, open_view
from ckptshrink.io.hdf5_pipe import Pipe, shield_standard_streams
from ckptshrink.io.hdf5_walk import walk

_SECONDS: Final = 0.6
_SECONDS_PER_BYTE: Final = 2e-6
_MOST_SECONDS: Final = 60.0
"""Processor time for a walk. A header takes 50 bytes at least, and 0.1 ms to look at."""

_PAYLOAD_SECONDS_PER_BYTE: Final = 2e-7

_MEMORY: Final = 160 << 20
_MEMORY_FOR_FILE: Final = 512 << 20
"""Address space beyond what h5py takes: the first for any file, up to the second by its size."""


def main(number: int) -> None:
    """Serve the files that come over a socket, each in a fork, until it is closed.

    Parameters
    ----------
    number : int
        Descriptor of the socket. With each byte come three descriptors: the pipe of the session, a
        pipe that is told how the fork ended, and the file.
    """
    shield_standard_streams()
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    control = socket.socket(fileno=number)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    ends: dict[int, int] = {}
    waiting: list[Any] = [control, woken]
    while True:
        ready, _, _ = select.select(waiting, [], [])
        if woken in ready:
            os.read(woken, 4096)
            _reap(ends)
        if control not in ready:
            continue
        message, given, _, _ = socket.recv_fds(control, 1, 3)
        if not message or len(given) != 3:
            os._exit(0)
        session, end, file = given
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                control.close()
                for other in (woken, wake, end, *ends.values()):
                    os.close(other)
                serve(Pipe(socket.socket(fileno=session)), file)
                status = 0
            finally:
                os._exit(status)
        ends[pid] = end
        os.close(session)
        os.close(file)


def _reap(ends: dict[int, int]) -> None:
    """Tell the pipes of the forks that ended what ended them: the number of a signal, or 0."""
    while ends:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        end = ends.pop(pid)
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        with contextlib.suppress(OSError):  # nobody listens any more
            os.write(end, bytes([number]))
        os.close(end)


def serve(pipe: Pipe, file: int) -> None:
    """Do what is asked over a pipe about a file, until the pipe is closed."""
    request = pipe.receive()
    if request is None:
        return
    try:
        if request["writes"]:
            _limit(_SECONDS, _MEMORY, writes=True, most=request["most_bytes"])
            _overwrite(pipe, file, request)
        else:
            whole = SourceFile.opened(file, Path(request["path"]))
            # checks that the file has these bytes
            _read(pipe, whole.window(int(request["base"]), int(request["size"])))
    except CkptshrinkError as error:
        pipe.send({"error": type(error).__name__, "text": error.message, "tensor": error.tensor,
                   "hint": error.hint})  # fmt: skip
    except MemoryError:
        text = "takes the HDF5 library more memory than a file of its size may"
        pipe.send({"error": UnsafeCheckpointError.__name__, "text": text})
    except OSError as error:
        pipe.send({"error": "OSError", "errno": error.errno or errno.EIO, "text": one_line(error)})
    except RuntimeError as error:
        pipe.send({"error": "RuntimeError", "text": one_line(error)})


def _read(pipe: Pipe, file: SourceFile) -> None:
    allowed = min(_MOST_SECONDS, _SECONDS + _SECONDS_PER_BYTE * file.size)
    _limit(allowed, _MEMORY + min(_MEMORY_FOR_FILE, 4 * file.size), writes=False)
    with library_errors(file.path):
        h5 = open_view(file)
        index = walk(h5, file).index()
    pipe.send({"index": index.record()})
    datasets = {dataset.name: dataset for dataset in index.datasets}
    _rest()
    while (request := pipe.receive()) is not None:
        pipe.send_bytes(_payload(h5, datasets[request["name"]], file))
        _rest()


def _payload(h5: h5py.File, dataset: Dataset, file: SourceFile) -> memoryview:
    """Return the unpacked, little-endian bytes of a dataset."""
    storage = dataset.storage
    allowed = _SECONDS + _PAYLOAD_SECONDS_PER_BYTE * (storage.nbytes + file.size)
    _limit(allowed, _MEMORY + 3 * storage.nbytes, writes=False)
    with library_errors(file.path):
        item = h5[dataset.name].id
        check_chunks(storage, item, dataset.name, file.size)
        data = np.empty(storage.shape, storage.stored.newbyteorder("<"))
        if data.size:
            item.read(h5s.ALL, h5s.ALL, data)
    return data.reshape(-1).view(np.uint8).data


def _overwrite(pipe: Pipe, file: int, request: Mapping[str, Any]) -> None:
    """Replace the values of datasets of a file with the bytes that come over the pipe."""
    with open_output(io.FileIO(file, "r+"), "r+") as h5:
        for each in request["datasets"]:
            data = bytearray(each["nbytes"])
            _limit(_SECONDS + 1e-6 * len(data), _MEMORY + 4 * len(data), writes=True,
                   most=request["most_bytes"])  # fmt: skip
            pipe.send({"next": each["name"]})
            pipe.receive_bytes(memoryview(data))
            values = np.frombuffer(data, np.dtype(each["dtype"]).newbyteorder("<"))
            if values.size:
                h5[each["name"]].id.write(h5s.ALL, h5s.ALL, values.reshape(each["shape"]))
    pipe.send({"done": True})


def _limit(seconds: float, nbytes: int, *, writes: bool, most: int | None = None) -> None:
    """Allow this process so much more processor time and address space, and no core file.

    Passing the time is a signal that ends the process, wherever in the library it is. macOS and
    other systems without /proc have no limit on address space.
    """
    import resource

    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not writes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    elif most is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    try:
        pages = int(Path("/proc/self/statm").read_bytes().split()[0])
    except OSError:
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = pages * resource.getpagesize() + nbytes
    soft = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _rest() -> None:
    """Stop the clock while the other side thinks."""
    signal.setitimer(signal.ITIMER_PROF, 0)
