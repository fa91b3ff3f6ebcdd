"""Checkpoints and outputs that are URLs, by way of fsspec; ``hf://`` by huggingface_hub."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ckptshrink.errors import OutputError, PlanError
from ckptshrink.io.staged_file import os_errors

if TYPE_CHECKING:
    from ckptshrink.zoo.jobs import Job
    from ckptshrink.zoo.standing import Hashes, Standing
    from ckptshrink.zoo.work import Place


def is_url(text: str) -> bool:
    """Return whether a text is a URL and no path.

    Examples
    --------
    >>> is_url("s3://bucket/lm.pt"), is_url("zoo/lm.pt")
    (True, False)
    """
    scheme, colon, _ = text.partition("://")
    return bool(colon) and scheme.replace("+", "").replace("-", "").isalnum()


def path_of(url: str) -> str:
    """Return where a URL leads, without its scheme.

    Examples
    --------
    >>> path_of("hf://someone/lm/model.safetensors")
    'someone/lm/model.safetensors'
    """
    return url.partition("://")[2].strip("/")


def matching(pattern: str) -> list[str]:
    """Return the URLs that a pattern finds, in order."""
    raise PlanError("not yet")


@contextmanager
def workspace(job: "Job", out: str, *, fetch: bool = True) -> "Iterator[Place]":
    """Yield the place where a job is done; what is made there is in the output after.

    Parameters
    ----------
    fetch : bool
        Whether the source and what is there of the output are needed.
    """
    from ckptshrink.zoo.work import Place

    root = Path(out)
    yield Place(Path(job.source), root / job.artefact, root / job.reports)


@dataclass(frozen=True, slots=True)
class Look:
    """What is seen of a job without doing anything.

    Attributes
    ----------
    standing : Standing
    source : Path or None
        Where the source is on this machine; None of a URL.
    """

    standing: "Standing"
    source: Path | None


@contextmanager
def looking(job: "Job", out: str, hashes: "Hashes") -> "Iterator[Look]":
    """Yield how far a job is, read from its source and the output wherever they are."""
    from ckptshrink.zoo.standing import standing_of

    root, source = Path(out), Path(job.source)
    yield Look(standing_of(job, source, root / job.artefact, root / job.reports, hashes), source)


def check_output(out: str) -> None:
    """Make the folder that everything goes to, or say why it can't be written to.

    Raises
    ------
    OutputError
        It can't.
    """
    folder = Path(out)
    with os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError("is not writable", path=folder)
