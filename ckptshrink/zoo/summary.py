"""What is left of a batch as a whole: ``zoo.json``, ``zoo.csv`` and ``index.html``.

They are made of the models' records, one at a time, so that a zoo of any size takes no memory; and
not written again where no record has changed.
"""

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from ckptshrink.io.staging import Staging
from ckptshrink.version import __version__
from ckptshrink.zoo.jobs import Job
from ckptshrink.zoo.pages import index_lines
from ckptshrink.zoo.records import RECORD, Record, record_of, row_of

SUMMARY_SCHEMA_VERSION: Final = 1

FIELDS: Final = (
    "name", "status", "family", "nbytes_before", "nbytes_after", "n_params_before",
    "n_params_after", "worst_rel_error", "gate", "gate_because", "metrics", "seconds", "attempts",
    "step", "error", "source", "artefact",
)  # fmt: skip
"""Columns of ``zoo.csv``, and keys of a model in ``zoo.json``."""


class Summary:
    """The files that sum a batch up.

    Parameters
    ----------
    jobs : sequence of Job
        Those of the batch; of a shard those of the shard.
    out : Path
    shard : (int, int), optional
        Which of how many; then the files are named after it.
    """

    def __init__(
        self, jobs: Sequence[Job], out: Path, shard: tuple[int, int] | None = None
    ) -> None:
        self._jobs, self._out, self._shard = jobs, out, shard
        mark = "" if shard is None else f"-{shard[0]}-of-{shard[1]}"
        self.json = out / f"zoo{mark}.json"
        self.csv = out / f"zoo{mark}.csv"
        self.page = out / ("index.html" if shard is None else f"index{mark}.html")

    @property
    def files(self) -> tuple[Path, ...]:
        """Return the files, the last of which stands for all."""
        return self.csv, self.page, self.json

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield a flat row for each model, in order; see `FIELDS`."""
        for job, _, record in self._records():
            yield _row(job, record)

    def write(self) -> bool:
        """Write the files, unless they are there and say the same; return whether it did."""
        digest, totals = self._totals()
        if self._digest_there() == digest and all(path.is_file() for path in self.files):
            return False
        _write(self.csv, self._csv())
        _write(self.page, self._page(totals))
        _write(self.json, self._json(digest, totals))
        return True

    def _records(self) -> Iterator[tuple[Job, bytes, Record | None]]:
        for job in self._jobs:
            try:
                data = (self._out / job.reports / RECORD).read_bytes()
            except OSError:
                data = b""
            yield job, data, record_of(data) if data else None

    def _totals(self) -> tuple[str, dict[str, Any]]:
        """Return the hash of all records, and their sums."""
        sha, statuses, sums = hashlib.sha256(__version__.encode()), Counter[str](), Counter[str]()
        for job, data, record in self._records():
            sha.update(hashlib.sha256(job.shown.encode() + b"\0" + data).digest())
            statuses["failed" if record is None else record.status] += 1
            if record is not None and record.size is not None:
                for key in ("nbytes_before", "nbytes_after", "n_params_before", "n_params_after"):
                    sums[key] += getattr(record.size, key)
            sums["seconds"] += 0 if record is None else record.seconds
        return sha.hexdigest(), {
            "n_models": len(self._jobs),
            "n_done": statuses["done"],
            "n_not_good_enough": statuses["not good enough"],
            "n_failed": statuses["failed"],
            "nbytes_before": sums["nbytes_before"],
            "nbytes_after": sums["nbytes_after"],
            "n_params_before": sums["n_params_before"],
            "n_params_after": sums["n_params_after"],
            "seconds": round(sums["seconds"], 3),
        }

    def _digest_there(self) -> str | None:
        """Return the hash that stands in the summary of an earlier run, near its top."""
        try:
            with self.json.open("rb") as file:
                head = file.read(512).decode("utf-8", "replace")
        except OSError:
            return None
        _, found, rest = head.partition('"records_sha256": "')
        return rest[:64] if found else None

    def _page(self, totals: dict[str, Any]) -> Iterator[str]:
        rows = (
            (None if record is None else job.name, _row(job, record))
            for job, _, record in self._records()
        )
        files = (self.json.name, self.csv.name)
        return index_lines(totals, rows, shard=self._shard, files=files)

    def _json(self, digest: str, totals: dict[str, Any]) -> Iterator[str]:
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

    def _csv(self) -> Iterator[str]:
        yield _csv_line(FIELDS)
        for row in self.rows():
            yield _csv_line(["" if row[f] is None else row[f] for f in FIELDS])


def _row(job: Job, record: Record | None) -> dict[str, Any]:
    if record is not None:
        return row_of(record)
    row: dict[str, Any] = dict.fromkeys(FIELDS)
    return row | {"name": job.shown, "status": "failed", "error": "there is no record of it"}


def _csv_line(values: Iterable[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()


def _write(path: Path, lines: Iterable[str]) -> None:
    with Staging(path, single=True, overwrite=True) as staging:
        file = staging.create(path.name)
        for line in lines:
            file.write(line.encode("utf-8", "backslashreplace"))
        staging.commit()
