"""``ckptshrink batch --dry-run``: what would be done with each model, and what that takes."""

import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ckptshrink_cli import exit_codes, render
from ckptshrink_cli.streams import Run, emit, emit_json

if TYPE_CHECKING:
    from ckptshrink.zoo.batch import Settings
    from ckptshrink.zoo.jobs import Job

_SCHEMA_VERSION: Final = 1

_FIELDS: Final = (
    "name", "would", "nbytes_before", "nbytes_after", "nbytes_peak", "tasks", "gate", "error",
)  # fmt: skip


def show(run: Run, jobs: "Sequence[Job]", settings: "Settings", *, as_json: bool) -> int:
    """Print what a batch would do with each model."""
    from ckptshrink.zoo.footprint import available_memory
    from ckptshrink.zoo.remote import is_url, without_secrets

    rows = list(_rows(jobs, settings))
    disk = sum(row["nbytes_after"] or 0 for row in rows if row["would"] != "nothing")
    free = None
    if not is_url(settings.out):
        there = next(p for p in (Path(settings.out), *Path(settings.out).parents) if p.exists())
        free = shutil.disk_usage(there).free
    totals = {
        "n_models": len(rows),
        "n_to_do": sum(row["would"] != "nothing" for row in rows),
        "nbytes_before": sum(row["nbytes_before"] or 0 for row in rows),
        "nbytes_needed": disk,
        "nbytes_free": free,
        "nbytes_peak": max((row["nbytes_peak"] or 0 for row in rows), default=0),
        "nbytes_memory": available_memory() if settings.local else None,
    }
    if as_json:
        out = without_secrets(settings.out)
        document = {"schema_version": _SCHEMA_VERSION, "dry_run": True, "out": out}
        emit_json(document | {"totals": totals, "models": rows})
    elif sys.stdout.isatty():
        emit(render.as_table(rows, _columns()))
    else:
        emit(render.as_tsv(rows, _FIELDS))
    run.say(*_lines(totals, without_secrets(settings.out)))
    return exit_codes.DONE


def _rows(jobs: "Sequence[Job]", settings: "Settings") -> Iterator[dict[str, Any]]:
    from ckptshrink.zoo.footprint import BASE, footprint_of
    from ckptshrink.zoo.remote import looking
    from ckptshrink.zoo.standing import Hashes

    hashes = Hashes()
    for job in jobs:
        work = job.work
        row: dict[str, Any] = dict.fromkeys(_FIELDS)
        row |= {
            "name": job.shown,
            "tasks": ", ".join(scoring.name for scoring in work.scorings),
            "gate": work.gate is not None,
        }
        with looking(job, settings.out, hashes) as look:
            row["would"] = would_do(look.standing, job, settings)
            if look.source is None and row["would"] != "nothing":  # in a store, and not fetched
                row |= {"nbytes_before": look.nbytes, "nbytes_peak": BASE + look.nbytes}
            elif look.source is not None and row["would"] != "nothing":
                found = footprint_of(work, look.source)
                row |= {
                    "nbytes_before": found.before,
                    "nbytes_after": found.disk,
                    "nbytes_peak": found.peak,
                    "error": None if found.error is None else str(found.error),
                }
        yield row


def would_do(standing: Any, job: "Job", settings: "Settings") -> str:
    """Return the steps that are left of a job, in words."""
    if settings.force:
        return "everything"
    record = standing.record
    if settings.failed:
        return "nothing" if record is None or record.status == "done" else "try again"
    if standing.finished(job.work) or standing.given_up:
        return "nothing"
    if standing.manifest is None:
        return "everything"
    steps = [s.name for s in job.work.scorings if s.name not in standing.tasks]
    return ", ".join([*steps, *(["gate"] if job.work.gate is not None else [])]) or "record"


def _columns() -> tuple[render.Column, ...]:
    def sized(key: str) -> Any:
        return lambda row: "" if row[key] is None else render.size(row[key])

    return (
        render.Column("model", lambda r: r["name"]),
        render.Column("to do", lambda r: r["would"]),
        render.Column("before", sized("nbytes_before"), True),
        render.Column("after, about", sized("nbytes_after"), True),
        render.Column("memory, about", sized("nbytes_peak"), True, True),
        render.Column("tasks", lambda r: r["tasks"]),
        render.Column("will fail", lambda r: r["error"] or ""),
    )


def _lines(totals: dict[str, Any], out: str) -> Iterator[str]:
    yield f"{totals['n_to_do']} of {totals['n_models']} models are to be done"
    free = totals["nbytes_free"]
    of = "" if free is None else f", where {render.size(free)} are free"
    yield f"would write {out}: about {render.size(totals['nbytes_needed'])}{of}"
    if free is not None and totals["nbytes_needed"] > free:
        yield "that is more than there is room for"
    memory = totals["nbytes_memory"]
    of = "" if memory is None else f", where {render.size(memory)} are free"
    yield f"the largest takes about {render.size(totals['nbytes_peak'])} of memory{of}"
