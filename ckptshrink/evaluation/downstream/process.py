"""The worker process that runs AllenNLP: started, asked, and ended without leaving anything."""

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final

from ckptshrink.errors import EvaluationError, EvaluationInputError, printable

PROTOCOL: Final = 1
"""What `allennlp_worker` calls by this name."""

START_SECONDS: Final = 600.0
"""For importing AllenNLP: 2 to 5 s, and 20 s from a cold disk."""

_END_SECONDS: Final = 5.0
"""For ending by itself once its input has ended."""

_TICK: Final = 0.1
"""Between two looks whether it has ended, or taken too long."""

_MOST_BYTES: Final = 1 << 24
"""Above the size of any answer; results by example go through a file."""

_LOG_BYTES: Final = 1 << 16
"""The end of the log that an error carries along."""

_SCRIPT: Final = Path(__file__).parent / "worker" / "allennlp_worker.py"

_RECIPES: Final = (
    "beside torch >= 1.13: pip install nltk tqdm spacy, then pip install --no-deps "
    "allennlp==2.10.1 allennlp-models==2.10.1; or give --python one with Python 3.10 and "
    "pip install 'allennlp-models==2.10.1' 'numpy<2'"
)
"""The two ways to an interpreter that runs AllenNLP; both were seen to give the same metrics."""


class RefusedError(Exception):
    """What the worker was given can't be used.

    Attributes
    ----------
    kind : str
        ``"archive"``, ``"config"``, ``"data"``, ``"elmo"`` or ``"environment"``.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Worker:
    """A process that runs AllenNLP, in any interpreter that has it.

    Parameters
    ----------
    python : str or Path or None
        The interpreter, by path or by name; None is the running one.
    folder : Path
        Its working folder, of which nothing is kept; its log goes there.
    threads : int, optional
        CPU threads.

    Attributes
    ----------
    about : mapping
        Versions of what runs there, which packages are stubbed, whether there is a GPU.

    Raises
    ------
    EvaluationInputError
        There is no such interpreter, or AllenNLP can't be imported there.
    EvaluationError
        It was killed before it said anything.
    """

    def __init__(
        self,
        python: str | Path | None,
        folder: Path,
        *,
        threads: int | None = None,
    ) -> None:
        self._python = interpreter(python)
        self._log_path = folder / "worker.log"
        self._numbered = 0
        self._signalled = False
        self._received = b""
        with self._log_path.open("wb") as log:
            self._process = _start(
                [self._python, str(_SCRIPT)], folder, _environment(self._python, threads), log
            )
        try:
            self.about = self._hello()
        except BaseException:
            self.kill()
            raise

    def ask(self, do: str, *, timeout: float | None = None, **request: Any) -> dict[str, Any]:
        """Return the answer to a request.

        Raises
        ------
        RefusedError
            Something in the request can't be used.
        EvaluationError
            It failed, was killed, took too long, or what came back is no answer; the process is
            gone.
        """
        self._numbered += 1
        line = json.dumps({"id": self._numbered, "do": do, **request})
        stdin = self._process.stdin
        try:
            if stdin is None or not self.alive:
                raise BrokenPipeError
            stdin.write(line.encode() + b"\n")
            stdin.flush()
        except OSError:
            raise self._failed(self._ended()) from None
        try:
            return self._answer(do, timeout)
        except RefusedError:
            self.kill()  # what it has loaded meanwhile may be neither the old nor the new
            raise

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return not self._has_ended()

    def log(self) -> str:
        """Return the end of what it wrote, control characters escaped."""
        try:
            with self._log_path.open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - _LOG_BYTES))
                text = file.read().decode("utf-8", errors="replace")
        except OSError:
            return ""
        return "\n".join(printable(part) for part in text.replace("\r", "\n").split("\n") if part)

    def close(self) -> None:
        """Let it end by itself, and end it if it does not."""
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
        self._wait()
        self.kill()

    def kill(self) -> None:
        """End it and every process that it has started; a second call does nothing."""
        # Nothing else takes its status, and until then no other group can have its number.
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def _hello(self) -> dict[str, Any]:
        try:
            about = self._answer("start", START_SECONDS)
        except RefusedError as error:
            raise EvaluationInputError(
                f"can't run AllenNLP: {error}", path=self._python, hint=_RECIPES
            ) from error
        except EvaluationError as error:
            if self._signalled:
                raise
            raise EvaluationInputError(
                f"does not run the worker: {error.message}", path=self._python, hint=_RECIPES
            ) from error
        if about.get("protocol") != PROTOCOL:
            raise EvaluationInputError("is not a worker of this version", path=self._python)
        return about

    def _answer(self, doing: str, timeout: float | None) -> dict[str, Any]:
        line = self._line(doing, timeout)
        try:
            answer = json.loads(line)
            number = answer["id"]
            if ("ok" in answer) == ("error" in answer) or number != self._numbered:
                raise KeyError("id")
            if "ok" in answer:
                result: dict[str, Any] = dict(answer["ok"])
                return result
            kind, message = str(answer["error"]["kind"]), str(answer["error"]["message"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            begin = printable(line[:80].decode("utf-8", errors="replace"))
            raise self._failed(f"the worker answered nonsense: {begin}") from None
        if kind == "failure":
            raise self._failed(f"AllenNLP failed: {printable(message)}")
        raise RefusedError(kind, printable(message))

    def _line(self, doing: str, timeout: float | None) -> bytes:
        """Return the next line of its output; end the process where there is none in time."""
        stdout = self._process.stdout
        if stdout is None:
            raise self._failed(self._ended())
        deadline = None if timeout is None else time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while b"\n" not in self._received:
                if deadline is not None and time.monotonic() > deadline:
                    raise self._failed(f"took more than {timeout:g} s ({doing})")
                ended = self._has_ended()  # a child of it can hold its output open
                if not selector.select(0 if ended else _TICK):
                    if ended:
                        raise self._failed(self._ended())
                    continue
                part = os.read(stdout.fileno(), 1 << 16)
                if not part:
                    raise self._failed(self._ended())
                self._received += part
                if len(self._received) > _MOST_BYTES:
                    raise self._failed("the worker answered more than any answer has")
        line, self._received = self._received.split(b"\n", 1)
        return line

    def _ended(self) -> str:
        """Return how it ended."""
        self._wait()
        if not self._has_ended():
            return "the worker closed its output"
        self.kill()
        status = self._process.returncode
        if status < 0:
            self._signalled = True
            with suppress(ValueError):
                name = signal.Signals(-status).name
                why = " (out of memory?)" if name == "SIGKILL" else ""
                return f"the worker was ended by {name}{why}"
        last = next((part for part in reversed(self.log().split("\n")) if part.strip()), "")
        return f"the worker ended with status {status}" + (
            f": {last.strip()[:200]}" if last else ""
        )

    def _has_ended(self) -> bool:
        if self._process.returncode is not None:
            return True
        if not hasattr(os, "waitid"):
            return self._process.poll() is not None
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._process.pid, flags) is not None

    def _wait(self) -> None:
        deadline = time.monotonic() + _END_SECONDS
        while not self._has_ended() and time.monotonic() < deadline:
            time.sleep(0.01)

    def _failed(self, message: str) -> EvaluationError:
        self.kill()
        return EvaluationError(message, log=self.log())


def interpreter(python: str | Path | None) -> str:
    """Return the path of an interpreter.

    Raises
    ------
    EvaluationInputError
        There is none.
    """
    found = shutil.which(os.fspath(python) if python is not None else sys.executable or "python3")
    if found is None:
        raise EvaluationInputError(
            "there is no such interpreter", path=python, hint="give --python one that has AllenNLP"
        )
    return str(Path(found).absolute())  # not resolved: a virtual environment's is a link


def _start(
    command: list[str], folder: Path, environment: Mapping[str, str], log: IO[bytes]
) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(  # noqa: S603 - the user's own choice of an interpreter
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise EvaluationInputError(
            f"can't be started: {error.strerror}", path=command[0], hint=_RECIPES
        ) from error


def _environment(python: str, threads: int | None) -> dict[str, str]:
    """Return the environment in which two runs are alike."""
    kept = dict(os.environ)
    for name in ("PYTHONHOME", "PYTHONSAFEPATH", "PYTHONSTARTUP", "PYTHONWARNINGS"):
        kept.pop(name, None)
    if python != sys.executable:
        kept.pop("PYTHONPATH", None)  # packages of another Python
    if threads is not None:
        kept["OMP_NUM_THREADS"] = kept["MKL_NUM_THREADS"] = str(threads)
    return kept | {
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "HF_HUB_OFFLINE": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",  # readers open files without naming an encoding
        "TQDM_DISABLE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "WANDB_MODE": "disabled",
    }
