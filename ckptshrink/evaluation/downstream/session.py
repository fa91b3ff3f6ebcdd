"""One archive's model in a worker process, which is started anew where it has ended."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ckptshrink.errors import EvaluationError, EvaluationInputError
from ckptshrink.evaluation.downstream.archive import CONFIG
from ckptshrink.evaluation.downstream.elmo import DenseElmo, Differences
from ckptshrink.evaluation.downstream.process import (
    START_SECONDS,
    RefusedError,
    Worker,
    interpreter,
)

_LOAD_SECONDS: Final = 1800.0
"""For loading an archive: 10 s of a full-size one."""


@dataclass(frozen=True, slots=True)
class Way:
    """How an archive's model is run: all that is alike for every ELMo in it.

    Attributes
    ----------
    kind : "label" or "span"
        What it answers.
    python : str or None
    threads : int or None
    device : "auto", "cpu" or "cuda"
    seed : int
        Added to the configuration's own.
    batch_size : int or None
        None is the archive's.
    overrides : mapping
    """

    kind: str
    python: str | None
    threads: int | None
    device: str
    seed: int
    batch_size: int | None
    overrides: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Counts:
    """Parameters of a task's model, and of the ELMos in it, as their file counts them."""

    n_params: int
    n_params_elmo: int
    n_elmos: int

    def with_elmo(self, n_params: int | None) -> int:
        """Return the parameters of the model with another ELMo in it; None for its own."""
        if n_params is None:
            return self.n_params
        return self.n_params - self.n_params_elmo + self.n_elmos * n_params


@dataclass(frozen=True, slots=True)
class Scored:
    """What the worker found out.

    Attributes
    ----------
    metrics : mapping
        The model's own.
    rows : list of dict
        Results by example.
    n_read : int
        Examples that the archive's reader was given.
    """

    metrics: Mapping[str, Any]
    rows: list[dict[str, Any]]
    n_read: int


class Session:
    """An unpacked archive's model, scored with one ELMo after the other.

    Parameters
    ----------
    archive : Path
        What messages call it.
    unpacked : Path
        The folder with its content.
    data : Path
        What messages call the data.
    way : Way
    folder : Path
        For temporary files.

    Attributes
    ----------
    about : mapping
        What the worker says of itself.
    said : mapping
        What the archive's configuration says, overrides applied.

    Raises
    ------
    EvaluationInputError
        The interpreter has no AllenNLP, or the configuration can't be used.
    """

    def __init__(self, archive: Path, unpacked: Path, data: Path, way: Way, folder: Path) -> None:
        self._archive = archive
        self._unpacked = unpacked
        self._data = data
        self._way = way
        self._folder = folder
        self._counts: Counts | None = None
        self._loaded: Path | None = None
        self._worker = Worker(way.python, folder, threads=way.threads)
        try:
            self.about = self._worker.about
            with self._blamed(None):
                self.said = self._worker.ask(
                    "describe",
                    timeout=START_SECONDS,
                    config=str(unpacked / CONFIG),
                    overrides=way.overrides,
                    batch_size=way.batch_size,
                )
        except BaseException:
            self._worker.kill()
            raise

    @property
    def is_open(self) -> bool:
        """Whether the archive's model is loaded, and can be given an ELMo."""
        return self._loaded == self._unpacked and self._worker.alive

    def open(self, options: Path, weights: Path, unpacked: Path | None = None) -> None:
        """Load the archive, or one that is put in its place until it is loaded again.

        Parameters
        ----------
        options, weights : Path
            Of any ELMo of its sizes: AllenNLP reads them before it reads the archive's weights.
        unpacked : Path, optional
            The folder of an archive that has the same configuration and vocabulary.

        Raises
        ------
        EvaluationInputError
            The archive can't be loaded, or has no ELMo.
        EvaluationError
            The worker failed.
        """
        self._loaded = None
        if not self._worker.alive:
            self._worker.kill()
            self._worker = Worker(self._way.python, self._folder, threads=self._way.threads)
        with self._blamed(None):
            found = self._worker.ask(
                "open",
                timeout=_LOAD_SECONDS,
                folder=str(unpacked or self._unpacked),
                overrides=self._way.overrides,
                options_file=str(options),
                weight_file=str(weights),
                kind=self._way.kind,
                batch_size=self._way.batch_size,
                seed=self._way.seed,
                device=self._way.device,
            )
        self._loaded = unpacked or self._unpacked
        self._counts = Counts(found["n_params"], found["n_params_elmo"], found["n_elmos"])

    def put(self, elmo: DenseElmo | None) -> Differences:
        """Put an ELMo into the model, which is open; None is the archive's own.

        Returns
        -------
        Differences
            From the archive's own.

        Raises
        ------
        EvaluationInputError
            It does not fit.
        EvaluationError
            The worker failed.
        """
        with self._blamed(elmo):
            weights = None if elmo is None else str(elmo.weights)
            found = self._worker.ask("swap", timeout=_LOAD_SECONDS, weight_file=weights)
        return Differences(found["differences"], frozenset(found["constant"]))

    def score(self, data: Path, timeout: float | None) -> Scored:
        """Score the model that is open.

        Raises
        ------
        EvaluationInputError
            The archive's reader can't read the data.
        EvaluationError
            It failed, took too long, or what came out makes no sense.
        """
        examples = self._folder / "examples.jsonl"
        with self._blamed(None):
            found = self._worker.ask(
                "score", timeout=timeout, data=str(data), examples=str(examples)
            )
        try:
            rows = [dict(json.loads(line)) for line in examples.read_bytes().splitlines()]
            return Scored(dict(found["metrics"]), rows, int(found["n_read"]))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise EvaluationError(
                "the results of the worker make no sense", log=self._worker.log()
            ) from error

    @property
    def counts(self) -> Counts:
        """Return the parameters of the model, which is open."""
        if self._counts is None:
            raise EvaluationError("the model is not open")
        return self._counts

    def log(self) -> str:
        """Return the end of what the worker wrote."""
        return self._worker.log()

    def close(self) -> None:
        """Let the worker end."""
        self._worker.close()

    def kill(self) -> None:
        """End the worker now."""
        self._worker.kill()

    @contextmanager
    def _blamed(self, elmo: DenseElmo | None) -> Iterator[None]:
        """Turn what the worker refuses into an error that names the file."""
        try:
            yield
        except RefusedError as error:
            path: Path | str = self._archive
            if error.kind == "data":
                path = self._data
            elif error.kind == "elmo" and elmo is not None:
                path = elmo.subject.path
            elif error.kind == "environment":
                path = interpreter(self._way.python)
            raise EvaluationInputError(str(error), path=path) from error
