"""The one tree of exceptions that ckptshrink raises on purpose.

::

    CkptshrinkError                     has path, tensor and hint
    ├── CheckpointError                 the input
    │   ├── UnknownFormatError          the content is of no format that has a reader
    │   ├── UnsafeCheckpointError       reading it would run code or open another file
    │   ├── CorruptCheckpointError      header, offsets, sizes or checksums disagree
    │   │   └── TruncatedPickleError    a pickle ends in the middle of an instruction
    │   ├── MissingError                a store has no such file
    │   ├── LayoutError                 a recurrent-looking tensor fits no layout
    │   └── NonFiniteError              a weight holds NaN or infinity
    ├── PlanError                       the request can't be planned; every issue at once
    │   ├── NothingMatchedError         a target names no tensor of the checkpoint
    │   └── RankError                   a rank is out of range (also a ValueError)
    ├── OutputError                     the target exists, can't be written, or lost its space
    ├── ManifestMismatchError           an artefact differs from its manifest
    ├── EvaluationInputError            what an evaluation needs beside the model: data, vocabulary,
    │                                   results of another run, an interpreter
    ├── TransientError                  a store or a network failed, and may not the next time
    ├── WorkerLostError                 a worker process ended in the middle of a job
    └── EvaluationError                 an evaluation that failed: crash, time-out, nonsense

Messages say what and where in one line; `hint` says what to do next. A failed
gate or a difference that `verify` found is a result, not an exception.
"""

import os
from collections.abc import Sequence


class CkptshrinkError(Exception):
    """Every error that ckptshrink raises on purpose.

    Parameters
    ----------
    message : str
        What went wrong, one line, without the place.
    path : path, optional
        The file or folder it is about.
    tensor : str, optional
        The tensor it is about.
    hint : str, optional
        What the user can do next.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | os.PathLike[str] | None = None,
        tensor: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.path = os.fspath(path) if path is not None else None
        self.tensor = tensor
        self.hint = hint

    def __str__(self) -> str:
        """Return the message with its place in front: ``tensor [file]: message``."""
        if self.tensor is not None and self.path is not None:
            return f"{printable(self.tensor)} [{printable(self.path)}]: {self.message}"
        place = self.tensor if self.tensor is not None else self.path
        return self.message if place is None else f"{printable(place)}: {self.message}"


class CheckpointError(CkptshrinkError):
    """The input can't be used."""


class UnknownFormatError(CheckpointError):
    """The content of a file is of no format that has a reader."""


class UnsafeCheckpointError(CheckpointError):
    """Reading the file would run code, open another file, or take resources out of proportion."""


class CorruptCheckpointError(CheckpointError):
    """Header, offsets, sizes or checksums of a file disagree."""


class TruncatedPickleError(CorruptCheckpointError):
    """The bytes given end inside the pickle."""


class MissingError(CheckpointError):
    """A store has no such file or folder."""


class LayoutError(CheckpointError):
    """A tensor that looks recurrent fits no layout, or fits one with an impossible shape."""


class NonFiniteError(CheckpointError):
    """A weight that was to be compressed holds NaN or infinity."""


class PlanError(CkptshrinkError):
    """The request can't be planned. `issues` holds every problem found, one line each."""

    def __init__(
        self,
        message: str,
        *,
        path: str | os.PathLike[str] | None = None,
        tensor: str | None = None,
        hint: str | None = None,
        issues: Sequence[str] = (),
    ) -> None:
        super().__init__(message, path=path, tensor=tensor, hint=hint)
        self.issues = tuple(issues)


class NothingMatchedError(PlanError):
    """A target names no tensor of the checkpoint."""


class RankError(PlanError, ValueError):
    """A rank is out of range for its matrix."""


class OutputError(CkptshrinkError):
    """The target exists, can't be written, or ran out of space. Nothing half-written is left."""


class ManifestMismatchError(CkptshrinkError):
    """An artefact's manifest is missing, unreadable, or not the one its files belong to."""


class EvaluationInputError(CkptshrinkError):
    """Data, a vocabulary, results or an interpreter that an evaluation needs can't be used."""


class TransientError(CkptshrinkError):
    """Something beyond the model went wrong, and may not the next time: a store, a network."""


class WorkerLostError(CkptshrinkError):
    """A worker ended in the middle of a job.

    Parameters
    ----------
    crashed : bool
        Whether it ended itself, as by a fault of memory: the job may be what did it.
    said : str
        What it wrote last.
    """

    def __init__(self, message: str, *, crashed: bool = False, said: str = "") -> None:
        super().__init__(message)
        self.crashed = crashed
        self.said = said


class EvaluationError(CkptshrinkError):
    """An evaluation failed: it crashed, took too long, or what came out makes no sense.

    Parameters
    ----------
    log : str
        The end of what it wrote while it ran.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | os.PathLike[str] | None = None,
        hint: str | None = None,
        log: str = "",
    ) -> None:
        super().__init__(message, path=path, hint=hint)
        self.log = log


def printable(text: str) -> str:
    """Return `text` with control characters escaped, since names come from untrusted files."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
