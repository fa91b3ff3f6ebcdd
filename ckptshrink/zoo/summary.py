"""What is left of a batch as a whole: ``zoo.json``, ``zoo.csv`` and ``index.html``.

They are in the output, be it a folder or a store, and ``zoo.json`` comes last. They are made of the
models' records, one at a time, so that a zoo of any size takes no memory; and not written again
where no record has changed.
"""

import csv
import hashlib
import io
import json
import os
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final

from ckptshrink.version import __version__
from ckptshrink.zoo.jobs import Job
from ckptshrink.zoo.pages import index_lines
from ckptshrink.zoo.records import RECORD, Record, record_of, row_of
from ckptshrink.zoo.stores import NearFolder, store_of

SUMMARY_SCHEMA_VERSION: Final = 1

FIELDS: Final = (
    "name", "status", "family", "nbytes_before", "nbytes_after", "n_params_before",
    "n_params_after", "worst_rel_error", "gate", "gate_because", "metrics", "seconds", "attempts",
    "step", "error", "source", "artefact",
)  # fmt: skip
"""Columns of ``zoo.csv``, and keys of a model in ``zoo.json``."""

_MOST_RECORD: Final = 1 << 26
_HEAD: Final = 512


class Summary:
    """The files that sum a batch up.

    Parameters
    ----------
    jobs : sequence of Job
        Those of the batch; of a shard those of the shard.
    out : Path or str
        The output: a folder, or its URL.
    shard : (int, int), optional
        Which of how many; then the files are named after it.

    Attributes
    ----------
    place : str
        The output as it may be shown.
    """

    def __init__(
        self, jobs: Sequence[Job], out: Path | str, shard: tuple[int, int] | None = None
    ) -> None:
        self._jobs, self._store, self._shard = jobs, store_of(out), shard
        self._spool: _Spool | None = None
        self.place = self._store.shown()
        mark = "" if shard is None else f"-{shard[0]}-of-{shard[1]}"
        self._json_name, self._csv_name = f"zoo{mark}.json", f"zoo{mark}.csv"
        self._page_name = "index.html" if shard is None else f"index{mark}.html"

    @property
    def json(self) -> str:
        """Return the path or URL of ``zoo.json``, as it may be shown."""
        return self._store.shown(self._json_name)

    @property
    def csv(self) -> str:
        """Return the path or URL of ``zoo.csv``, as it may be shown."""
        return self._store.shown(self._csv_name)

    @property
    def page(self) -> str:
        """Return the path or URL of the page, as it may be shown."""
        return self._store.shown(self._page_name)

    @property
    def files(self) -> tuple[str, ...]:
        """Return the names of the files in the output, the last of which stands for all."""
        return self._csv_name, self._page_name, self._json_name

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield a flat row for each model, in order; see `FIELDS`."""
        for job, _, record in self._records():
            yield _row(job, record)

    def write(self) -> bool:
        """Write the files, unless they are there and say the same; return whether it did."""
        if isinstance(self._store, NearFolder):
            return self._written()
        # each of the files goes through all records, which a store would be asked for each time
        with tempfile.TemporaryFile() as spool:
            self._spool = _Spool(spool)
            try:
                return self._written()
            finally:
                self._spool = None

    def _written(self) -> bool:
        digest, totals = self._totals()
        if self._digest_there() == digest and all(map(self._store.has, self.files)):
            return False
        for name, lines in (
            (self._csv_name, self._csv_lines()),
            (self._page_name, self._page_lines(totals)),
            (self._json_name, self._json_lines(digest, totals)),
        ):
            self._store.write(name, _encoded(lines))
        return True

    def document(self) -> Iterator[str]:
        """Yield the text of ``zoo.json`` piece by piece."""
        return self._json_lines(*self._totals())

    def _records(self) -> Iterator[tuple[Job, bytes, Record | None]]:
        for number, job in enumerate(self._jobs):
            data = None if self._spool is None else self._spool.get(number)
            if data is None:
                data = self._store.read(f"{job.reports}/{RECORD}", _MOST_RECORD) or b""
                if self._spool is not None:
                    self._spool.add(data)
            yield job, data, record_of(data) if data else None

    def _totals(self) -> tuple[str, dict[str, Any]]:
        """Return the hash of all records, and their sums."""
        sha, statuses, sums = hashlib.sha256(__version__.encode()), Counter[str](), Counter[str]()
        seconds = 0.0
        for job, data, record in self._records():
            sha.update(hashlib.sha256(job.shown.encode() + b"\0" + data).digest())
            statuses["failed" if record is None else record.status] += 1
            if record is not None and record.size is not None:
                for key in ("nbytes_before", "nbytes_after", "n_params_before", "n_params_after"):
                    sums[key] += getattr(record.size, key)
            seconds += 0.0 if record is None else record.seconds
        return sha.hexdigest(), {
            "n_models": len(self._jobs),
            "n_done": statuses["done"],
            "n_not_good_enough": statuses["not good enough"],
            "n_failed": statuses["failed"],
            "nbytes_before": sums["nbytes_before"],
            "nbytes_after": sums["nbytes_after"],
            "n_params_before": sums["n_params_before"],
            "n_params_after": sums["n_params_after"],
            "seconds": round(seconds, 3),
        }

    def _digest_there(self) -> str | None:
        """Return the hash that stands in the summary of an earlier run, near its top."""
        head = self._store.read(self._json_name, _HEAD)
        if head is None:
            return None
        _, found, rest = head.decode("utf-8", "replace").partition('"records_sha256": "')
        return rest[:64] if found else None

    def _page_lines(self, totals: dict[str, Any]) -> Iterator[str]:
        rows = (
            (None if record is None else job.name, _row(job, record))
            for job, _, record in self._records()
        )
        files = (self._json_name, self._csv_name)
        return index_lines(totals, rows, shard=self._shard, files=files)

    def _json_lines(self, digest: str, totals: dict[str, Any]) -> Iterator[str]:
        head = {
            "schema_version": SUMMARY_SCHEMA_VERSION,
            "records_sha256": digest,
            "tool": {"name": "ckptshrink", "version": __version__},
            "totals": totals,
        }
        yield json.dumps(head, indent=1, allow_nan=False).removesuffix("\n}")
        yield ',\n "models": ['
        for number, row in enumerate(self.rows()):
            yield f"{',' if number else ''}\n  {json.dumps(row, allow_nan=False)}"
        yield "\n ]\n}\n"

    def _csv_lines(self) -> Iterator[str]:
        yield _csv_line(FIELDS)
        for row in self.rows():
            yield _csv_line(["" if row[f] is None else row[f] for f in FIELDS])


class _Spool:
    """Texts in the order in which they were added, in a file and not in memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._ends = file, array("Q", [0])

    def add(self, data: bytes) -> None:
        """Add a text."""
        self._file.seek(0, os.SEEK_END)
        self._file.write(data)
        self._ends.append(self._file.tell())

    def get(self, number: int) -> bytes | None:
        """Return a text by its number, None if there are not as many yet."""
        if number + 1 >= len(self._ends):
            return None
        self._file.seek(self._ends[number])
        return self._file.read(self._ends[number + 1] - self._ends[number])


def _row(job: Job, record: Record | None) -> dict[str, Any]:
    if record is not None:
        return row_of(record)
    row: dict[str, Any] = dict.fromkeys(FIELDS)
    return row | {"name": job.shown, "status": "failed", "error": "there is no record of it"}


def _csv_line(values: Iterable[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()


def _encoded(lines: Iterable[str]) -> Iterator[bytes]:
    return (line.encode("utf-8", "backslashreplace") for line in lines)
