"""The HDF5 library in a process of its own: started once, asked about one file at a time.

The library is 300,000 lines of C with a list of CVEs, and reads nothing but what a stranger wrote.
Here a file may crash it, hang it or have it ask for memory: a fork of the process ends, and that is
an error like any other. See `hdf5_child` for the limits it runs under.
"""

import atexit
import contextlib
import importlib.util
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ckptshrink.errors import (
    CheckpointError,
    CkptshrinkError,
    CorruptCheckpointError,
    OutputError,
    UnsafeCheckpointError,
    printable,
)
from ckptshrink.io.files import SourceFile
from ckptshrink.io.hdf5_index import Index, index_of
from ckptshrink.io.hdf5_pipe import Pipe

_FORKS: Final = sys.platform != "darwin"
"""Whether one process serves many files. On macOS a fork that has frameworks loaded may abort."""

_PATIENCE: Final = 120.0
"""Seconds without a byte after which a process that was given 60 of processor time is given up."""

_BOOT: Final = (
    "import json, sys; sys.path += json.loads(sys.argv[1]); "
    "from ckptshrink.io.hdf5_child import main; main(int(sys.argv[2]))"
)
_ENVIRONMENT: Final = {
    "HDF5_PLUGIN_PRELOAD": "::",  # HDF5 loads no filter from a shared object
    "HDF5_USE_FILE_LOCKING": "FALSE",
    "OMP_NUM_THREADS": "1",  # numpy's libraries would start threads, and a fork loses them
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
_ERRORS: Final[dict[str, type[CheckpointError]]] = {
    error.__name__: error
    for error in (CheckpointError, CorruptCheckpointError, UnsafeCheckpointError)
}
_HINT: Final = "the file is damaged or made to do harm: get it again from where you trust it"


class Session:
    """One file in a process of its own. Used by one thread at a time.

    Parameters
    ----------
    path : Path
        For messages.
    descriptor : int
        The file that is handed over.
    writes : bool
        Whether the file is our output, so that the end of the process says nothing of a source.
    """

    def __init__(self, path: Path, descriptor: int, *, writes: bool = False) -> None:
        self._path = path
        self._writes = writes
        ours, theirs = socket.socketpair()
        end, told = os.pipe()
        ours.settimeout(_PATIENCE)
        self._pipe = Pipe(ours)
        self._end = end
        # Left to the garbage collector, an open socket would warn.
        self._finish = weakref.finalize(self, _hang_up, ours, end)
        try:
            with theirs:
                _hand_over([theirs.fileno(), told, descriptor], path)
        except BaseException:
            self._finish()
            raise
        finally:
            os.close(told)

    def ask(self, request: Mapping[str, Any] | None) -> dict[str, Any]:
        """Send a request, if it is one, and return the answer.

        Raises
        ------
        CheckpointError
            What the process says of the file, or that it ended.
        OSError, RuntimeError
            What happened to it when it wrote.
        """
        with self._ended():
            if request is not None:
                self._pipe.send(dict(request))
            answer = self._pipe.receive()
            if answer is None:
                raise EOFError
        if "error" not in answer:
            return answer
        self.close()
        raise self._error(answer)

    def receive_bytes(self, view: memoryview) -> None:
        """Fill a view with the bytes of an answer."""
        with self._ended():
            self._pipe.receive_bytes(view)

    def send_bytes(self, view: memoryview) -> None:
        """Send the bytes that were asked for."""
        with self._ended():
            self._pipe.connection.sendall(view)

    def close(self) -> None:
        """End it; a second call does nothing."""
        self._finish()

    @contextlib.contextmanager
    def _ended(self) -> Any:
        """Turn the end of the process into an error about the file."""
        try:
            yield
        except (EOFError, OSError, ValueError) as error:
            late = isinstance(error, TimeoutError)
            number = signal.SIGPROF if late else self._what_ended_it()
            self.close()
            raise self._end_error(number) from error

    def _what_ended_it(self) -> int:
        """Return the signal that ended the process, 0 if there was none."""
        ready, _, _ = select.select([self._end], [], [], 2.0)
        return (os.read(self._end, 1) or b"\0")[0] if ready else 0

    def _end_error(self, number: int) -> CheckpointError | OutputError:
        if self._writes:
            how = f"by signal {number}" if number else "without a word"
            text = f"can't be written: the process of the HDF5 library was ended, {how}"
            return OutputError(text, path=self._path)
        if number in (signal.SIGPROF, signal.SIGXCPU):
            text = "takes the HDF5 library longer than a file of its size may"
            return UnsafeCheckpointError(text, path=self._path, hint=_HINT)
        how = f"by signal {number}" if number else "without a word"
        text = f"the HDF5 library ended over it, {how}, in a process of its own"
        return CorruptCheckpointError(text, path=self._path, hint=_HINT)

    def _error(self, answer: Mapping[str, Any]) -> Exception:
        text = printable(str(answer.get("text")))[:1000]
        if answer["error"] == "OSError":
            return OSError(int(answer.get("errno") or 5), os.strerror(int(answer["errno"] or 5)))
        if answer["error"] == "RuntimeError":
            return RuntimeError(text)
        tensor, hint = answer.get("tensor"), answer.get("hint")
        return _ERRORS.get(str(answer["error"]), CorruptCheckpointError)(
            text,
            path=self._path,
            tensor=tensor if isinstance(tensor, str) else None,
            hint=printable(hint) if isinstance(hint, str) else None,
        )


class Library:
    """What the library finds in a file, and the payloads that only it can unpack.

    Parameters
    ----------
    file : SourceFile
        Stays open as long as this is used.

    Raises
    ------
    CheckpointError
        See `hdf5_file.open_hdf5`.

    Attributes
    ----------
    index : Index
    """

    def __init__(self, file: SourceFile) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._pid = -1
        self.index = self._open()
        # An ELMo's file, and most others, are read without the library from here on.
        if all(d.storage.offset is not None or not d.storage.nbytes for d in self.index.datasets):
            self.close()

    def payload(self, name: str, nbytes: int) -> NDArray[np.uint8]:
        """Return the unpacked bytes of a dataset of that many bytes."""
        with self._lock:
            # After a fork both processes would talk over one pipe: each has its own.
            if self._session is None or self._pid != os.getpid():
                self._session = None
                self._open()
            session = self._session
            assert session is not None  # noqa: S101 - _open has made it
            try:
                found = session.ask({"name": name})
                if found.get("nbytes") != nbytes:
                    raise CorruptCheckpointError(
                        "the HDF5 library found another size than before",
                        path=self._file.path,
                        tensor=name,
                    )
                data = np.empty(nbytes, np.uint8)
                session.receive_bytes(data.data)
            except BaseException:  # what is still in the pipe belongs to nobody
                self.close()
                raise
            return data

    def close(self) -> None:
        """End the process of this file."""
        if self._session is not None and self._pid == os.getpid():
            self._session.close()
        self._session = None

    def _open(self) -> Index:
        file = self._file
        session = Session(file.path, file.descriptor)
        # A window shares its descriptor with what lies around it.
        window = {"base": file.base, "size": file.size}
        try:
            found = session.ask({"writes": False, "path": os.fspath(file.path), **window})
            index = index_of(found.get("index"), file.size, file.path)
        except BaseException:
            session.close()
            raise
        self._session, self._pid = session, os.getpid()
        return index


def overwrite(
    path: Path,
    datasets: Sequence[Mapping[str, Any]],
    payload: Callable[[str], memoryview],
) -> None:
    """Replace the values of packed datasets of a file, which has a copy of a source's bytes.

    Parameters
    ----------
    path : Path
    datasets : sequence of mapping
        Name, shape, dtype (numpy's code, as stored) and nbytes of each.
    payload : callable
        Returns the little-endian bytes of one, when its turn has come.

    Raises
    ------
    OSError, RuntimeError
        The file can't be written.
    OutputError
        The process ended over it.
    """
    import resource

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    most = None if limit == resource.RLIM_INFINITY else limit
    with contextlib.ExitStack() as opened:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        opened.callback(os.close, descriptor)
        session = Session(path, descriptor, writes=True)
        opened.callback(session.close)
        answer = session.ask(
            {"writes": True, "datasets": [dict(each) for each in datasets], "most_bytes": most}
        )
        while "next" in answer:
            session.send_bytes(payload(str(answer["next"])))
            answer = session.ask(None)


class _Server:
    """The process that waits for files."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        # Above the standard streams: where those are closed, a new descriptor takes their number.
        with theirs:
            number = _high(theirs.fileno())
        try:
            self.process = subprocess.Popen(  # noqa: S603 - this very interpreter
                [sys.executable, "-I", "-S", "-c", _BOOT, json.dumps(_homes()), str(number)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[number],
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for us
                cwd="/",
            )
        except BaseException:
            ours.close()
            raise
        finally:
            os.close(number)
        self.control = ours

    def stop(self) -> None:
        """Hang up, on which it ends."""
        self.control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=2)

    def forget(self) -> None:
        """Leave it to the process that this one was forked from."""
        self.control.close()
        self.process.returncode = 0


_server: _Server | None = None
_lock = threading.Lock()


def start() -> None:
    """Start the process, if there is none, without waiting for it."""
    global _server
    with _lock:
        if _server is None:
            _server = _Server()


def _hand_over(descriptors: list[int], path: Path) -> None:
    """Give the descriptors of a session to the process that waits, or to a new one."""
    global _server
    for attempt in range(2):
        try:
            start()
            with _lock:
                server = _server
                if server is None:
                    continue
                socket.send_fds(server.control, [b"f"], descriptors)
                if not _FORKS:
                    _server = None
                    _retired.append(server)
                return
        except OSError as error:
            stop()
            if attempt:
                reason = error.strerror or str(error)
                raise CheckpointError(
                    f"no process can be started to read HDF5 in: {reason}", path=path
                ) from error
    raise CheckpointError("no process can be started to read HDF5 in", path=path)


_retired: list[_Server] = []


def stop() -> None:
    """End the process."""
    global _server
    with _lock:
        for server in (*_retired, *([_server] if _server else [])):
            server.stop()
        _retired.clear()
        _server = None


def _after_fork() -> None:
    global _lock, _server
    _lock = threading.Lock()  # another thread may have held it
    for server in (*_retired, *([_server] if _server else [])):
        server.forget()
    _retired.clear()
    _server = None


atexit.register(stop)
os.register_at_fork(after_in_child=_after_fork)


def _hang_up(connection: socket.socket, end: int) -> None:
    connection.close()
    with contextlib.suppress(OSError):
        os.close(end)


def _high(number: int) -> int:
    """Return a copy of a descriptor, with a number above those of the standard streams."""
    import fcntl

    return fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3)


def _homes() -> list[str]:
    """Return the folders that h5py, numpy and this package lie in; no other is searched."""
    found: dict[str, None] = {}
    for name in ("h5py", "numpy", "ckptshrink"):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise CkptshrinkError(f"{name} can't be found", hint=f"pip install {name}")
        found[os.fspath(Path(spec.origin).resolve().parent.parent)] = None
    return list(found)


def _environment() -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "HDF5_")) and name != "LD_PRELOAD"
    }
    return {**kept, **_ENVIRONMENT}
