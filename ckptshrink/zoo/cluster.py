"""Workers on other machines: a running Dask cluster behind the interface of an `Executor`.

Only names travel: a job is some kilobytes, and what becomes of it too. Checkpoints and output are
read and written by the workers, so that they must see them, under the same paths or URLs.
"""

import os
import platform
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ckptshrink.errors import OutputError, PlanError, WorkerLostError, printable
from ckptshrink.version import __version__

if TYPE_CHECKING:
    from distributed import Client, Security

T = TypeVar("T")

_PATIENCE: Final = 30
"""Seconds in which a scheduler must answer."""

_SCHEMES: Final = {"dask": "tcp", "dask+tcp": "tcp", "dask+tls": "tls", "tcp": "tcp", "tls": "tls"}


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificates of a cluster that speaks TLS: files in PEM.

    Attributes
    ----------
    ca_file, cert, key : str or None
        The authority's certificate, this client's, and its key. Where they are not given, Dask's
        own configuration has them.
    """

    ca_file: str | None = None
    cert: str | None = None
    key: str | None = None

    @property
    def given(self) -> bool:
        """Return whether anything is."""
        return any((self.ca_file, self.cert, self.key))


@dataclass(frozen=True, slots=True)
class Address:
    """Where a scheduler is: at an address, or where its file says."""

    url: str | None = None
    file: str | None = None


def address_of(text: str) -> Address:
    """Read ``dask://HOST:PORT``, ``dask+tls://HOST:PORT``, or the path of a scheduler file.

    Raises
    ------
    PlanError
        It is neither.

    Examples
    --------
    >>> address_of("dask://10.0.0.7:8786").url
    'tcp://10.0.0.7:8786'
    """
    scheme, found, rest = text.partition("://")
    if found and scheme in _SCHEMES:
        host, colon, port = rest.rstrip("/").rpartition(":")
        if not host or not colon or not port.isdigit():
            raise PlanError(f"{text!r} is no address", hint="dask://HOST:PORT, such as 8786")
        return Address(url=f"{_SCHEMES[scheme]}://{host}:{port}")
    if not found and text.endswith(".json"):
        return Address(file=text)
    raise PlanError(
        f"no executor {text!r}",
        hint="local, dask://HOST:PORT, dask+tls://HOST:PORT, or the scheduler's file.json",
    )


def probe(out: str) -> dict[str, Any]:
    """Return what a worker is; run on each of them before any work."""
    return {
        "version": __version__,
        "python": platform.python_version(),
        "sees": "://" in out or os.path.isdir(out),  # noqa: PTH112 - raises for no path
        "host": platform.node(),
    }


class DaskExecutor(Executor):
    """A Dask cluster.

    Parameters
    ----------
    address : Address
    tls : Tls
    out : str
        The output, which every worker must see.

    Raises
    ------
    PlanError
        Dask is not installed, nobody answers, there are no workers, or they have another version of
        ckptshrink or do not see the output.
    """

    def __init__(self, address: Address, tls: Tls, out: str) -> None:
        self._name = address.url or str(address.file)
        self._client = _connected(address, tls)
        try:
            self._check(out)
        except BaseException:
            self._client.close()
            raise
        self._executor: Executor = self._client.get_executor()

    @property
    def workers(self) -> int:
        """Return how many jobs can run at once: the threads of the workers that are there now."""
        return sum(self._client.nthreads().values()) or 1

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
        """Run a call on one of the workers; the scheduler runs it again if that one is lost."""
        outer: Future[T] = Future()
        outer.set_running_or_notify_cancel()
        inner = self._executor.submit(fn, *args, **kwargs)

        def done(inner: "Future[T]") -> None:
            try:
                outer.set_result(inner.result())
            except CancelledError:
                outer.set_exception(WorkerLostError(f"the scheduler at {self._name} was lost"))
            except Exception as error:
                if type(error).__name__ == "KilledWorker":
                    # several workers ended with this job in their hands: perhaps its fault
                    outer.set_exception(WorkerLostError(_line(error), crashed=True))
                else:
                    outer.set_exception(error)

        inner.add_done_callback(done)
        return outer

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster, which goes on; with `cancel_futures` without what it is doing."""
        # without waiting, Dask's own cancels what has not begun
        self._executor.shutdown(wait=wait and not cancel_futures)
        self._client.close()

    def _check(self, out: str) -> None:
        """Refuse workers that would not do what this process would."""
        try:
            self._client.wait_for_workers(1, timeout=_PATIENCE)
        except TimeoutError as error:
            raise PlanError(
                f"the scheduler at {self._name} has no workers",
                hint="dask worker --nthreads 1 ADDRESS",
            ) from error
        try:
            found = self._client.run(probe, out)
        except Exception as error:
            raise PlanError(
                f"the workers of {self._name} can't run ckptshrink: {_line(error)}",
                hint=f"install ckptshrink {__version__} where they run",
            ) from error
        for worker, said in found.items():
            if said["version"] != __version__:
                raise PlanError(
                    f"the worker {worker} has ckptshrink {said['version']}, and this is "
                    f"{__version__}",
                    hint="one version everywhere: what is made depends on it",
                )
            if not said["sees"]:
                raise OutputError(
                    f"the worker {worker} on {said['host']} does not see the output",
                    path=out,
                    hint="a folder that all machines share, under one path, or a URL",
                )


def _connected(address: Address, tls: Tls) -> "Client":
    """Return a client of the scheduler."""
    try:
        import distributed
    except ImportError as error:
        raise PlanError(
            "Dask is not installed here", hint="pip install 'ckptshrink[cluster]'"
        ) from error
    if address.file is not None and not Path(address.file).is_file():
        raise PlanError(
            "there is no such scheduler file", path=address.file,
            hint=f"dask scheduler --scheduler-file {address.file}",
        )  # fmt: skip
    try:
        security = _security(tls)
        # a client of ours draws nothing and changes no defaults of the process
        return distributed.Client(
            address.url,
            scheduler_file=address.file,
            security=security,
            timeout=_PATIENCE,
            set_as_default=False,
        )
    except (OSError, TimeoutError, ValueError, RuntimeError, TypeError) as error:
        raise PlanError(
            f"no scheduler answers at {address.url or address.file}: {_line(error)}",
            hint="is it running, and reachable from here? dask scheduler",
        ) from error


def _security(tls: Tls) -> "Security | None":
    if not tls.given:
        return None
    from distributed import Security

    named = {
        "tls_ca_file": tls.ca_file, "tls_client_cert": tls.cert, "tls_client_key": tls.key,
    }  # fmt: skip
    for name, path in named.items():
        if path is not None and not Path(path).is_file():
            raise PlanError(f"there is no file for {name.replace('_', '-')}", path=path)
    return Security(
        require_encryption=True, **{name: path for name, path in named.items() if path is not None}
    )


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return printable(text)[:500]
