"""``ckptshrink batch``: compress, verify, score and gate a whole zoo of checkpoints."""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ckptshrink.errors import PlanError
from ckptshrink_cli import exit_codes, params
from ckptshrink_cli.declare import (
    OUTPUT,
    WHICH,
    WORKERS,
    Command,
    option,
    parsed,
    refuse,
    together,
)
from ckptshrink_cli.streams import Run, emit, emit_json

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from ckptshrink.zoo.batch import Settings, Totals
    from ckptshrink.zoo.jobs import Job
    from ckptshrink.zoo.settings import Zoo
    from ckptshrink.zoo.summary import Summary

_SCHEMA_VERSION: Final = 1
_MOST_WORKERS: Final = 4096
_MOST_RETRIES: Final = 100
_MOST_ROWS: Final = 60
"""Models up to which a terminal shows all of them; of more, those that are not done."""


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise PlanError(f"{text!r} is no shard: 3/16 is the third of sixteen")
    return int(match[1]), int(match[2])


def _executor(text: str) -> Any:
    if text == "local":
        return None
    from ckptshrink.zoo.cluster import address_of

    return address_of(text)


def _file(name: str, text: str) -> Any:
    return option(WORKERS, name, metavar="FILE", type=click.Path(), help=text)


_worker_options: Final = together(
    option(WORKERS, "-j", "--jobs", metavar="N",
           callback=parsed(partial(params.whole_number, most=_MOST_WORKERS)),
           help="Models at once on this machine (default: as many as there are cores for)."),
    option(WORKERS, "--threads", default="1", metavar="N",
           callback=parsed(partial(params.whole_number, most=1024)),
           help="CPU threads of each (default 1, which keeps to one core). Sums depend on how they "
           "are split: another number may change the last digits of what is made."),
    option(WORKERS, "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto",
           metavar="DEVICE", help="auto (default; CUDA where there is any), cpu or cuda."),
    option(WORKERS, "--max-memory", metavar="SIZE", callback=parsed(params.nbytes),
           help="What the models at work may take together, as estimated (default: 80% of what is "
           "free)."),
    option(WORKERS, "--retries", default="3", metavar="N",
           callback=parsed(partial(params.whole_number, least=0, most=_MOST_RETRIES)),
           help="Further attempts at what a disk or a network failed at (default 3)."),
    option(WORKERS, "--executor", default="local", metavar="EXECUTOR", callback=parsed(_executor),
           help="local (default), or the workers of a Dask cluster: dask://HOST:PORT, "
           "dask+tls://HOST:PORT, or its scheduler-file.json."),
    _file("--tls-ca-file", "Certificate of the authority of a cluster that speaks TLS."),
    _file("--tls-cert", "This client's certificate."),
    _file("--tls-key", "Its key."),
)  # fmt: skip


@click.command(
    "batch",
    cls=Command,
    help="""Compress, verify, score and gate a whole zoo of checkpoints.

    ZOO is a TOML file: which checkpoints, as paths, globs or URLs, and what is done with each. OUT
    gets an artefact for each of them, in the same tree; under reports/ a record, a log and a page
    of each; and zoo.json, zoo.csv and index.html of all. It can be stopped and run again at any
    time: a model is finished if its artefact is whole and was made of the same input, settings and
    version, and is not touched then; a changed setting redoes what depends on it. A model that
    fails does not stop the rest, and is tried again when something changed, or with --failed.

    Exit status 6 if a model failed, or is not good enough for its gate.
    """,
    example="ckptshrink batch zoo.toml --dry-run\n"
    "ckptshrink batch zoo.toml -o small -j 8\n"
    "ckptshrink batch zoo.toml -o small --failed\n"
    "ckptshrink batch zoo.toml -o small --shard 3/16\n"
    "ckptshrink batch zoo.toml -o small --executor dask://10.0.0.7:8786",
)
@click.argument("zoo", metavar="ZOO", required=False, type=click.Path(path_type=Path))
@option(
    WHICH, "--only", metavar="GLOB", multiple=True,
    help="Only models of such names; may be given again.",
)  # fmt: skip
@option(WHICH, "--failed", is_flag=True, help="Only those that failed, whatever they failed at.")
@option(
    WHICH, "--shard", metavar="I/N", callback=parsed(_shard),
    help="Only the I-th of N parts: for arrays of jobs, each with a part of its own.",
)  # fmt: skip
@option(
    WHICH, "--resume/--force", "resume", default=True,
    help="Leave what is finished (default), or do everything again.",
)  # fmt: skip
@_worker_options
@option(
    OUTPUT, "-o", "--output", "out", metavar="OUT",
    help="Folder or URL to write to (default: out of ZOO, or its name and .shrunk).",
)  # fmt: skip
@option(
    OUTPUT, "--dry-run", is_flag=True,
    help="Say what would be done with each, its sizes, memory and disk; do nothing.",
)  # fmt: skip
@option(
    OUTPUT, "--print-config", is_flag=True,
    help="Print as JSON what holds for each model, and which files they are; do nothing.",
)  # fmt: skip
@option(OUTPUT, "--schema", is_flag=True, help="Print the JSON Schema of a ZOO; do nothing.")
@option(
    OUTPUT, "--events", metavar="FILE", type=click.Path(path_type=Path),
    help="Append to this file what happens, as it does, one JSON object a line.",
)  # fmt: skip
@params.json_option
@params.progress_option
@params.talk_options
@click.pass_obj
def command(
    run: Run,
    /,
    zoo: Path | None,
    out: str | None,
    dry_run: bool,
    print_config: bool,
    schema: bool,
    events: Path | None,
    as_json: bool,
    **given: Any,
) -> int:
    """Do what is left of a zoo, and say what came of it."""
    if schema:
        from ckptshrink.zoo.settings import Zoo as Document

        emit_json(Document.model_json_schema())
        return exit_codes.DONE
    if zoo is None:
        refuse("give a ZOO, a TOML file")
    if out == "-" or str(events) == "-":
        refuse("- is no place to write to; --json writes to standard output")
    _refuse_misfits(given)

    from ckptshrink.zoo.jobs import in_shard, jobs_of, matching
    from ckptshrink.zoo.settings import read_zoo

    document = read_zoo(zoo)
    place = _out(out, document, zoo)
    jobs = jobs_of(document, zoo.absolute().parent, place)
    if given["only"]:
        jobs = matching(jobs, given["only"])
    if given["shard"] is not None:
        jobs = list(in_shard(jobs, *given["shard"]))
    if print_config:
        emit_json(_config(document, jobs, place))
        return exit_codes.DONE
    settings = _settings(place, given)
    if dry_run:
        from ckptshrink_cli import batch_plan

        return batch_plan.show(run, jobs, settings, as_json=as_json)
    totals, summary = _run(run, jobs, settings, given, events)
    _show(run, summary, totals, as_json=as_json)
    return exit_codes.DONE if totals.passed else exit_codes.SOME_FAILED


def _refuse_misfits(given: dict[str, Any]) -> None:
    cluster = given["executor"] is not None
    if cluster and given["jobs"] is not None:
        refuse("--jobs is of this machine; a cluster has as many workers as were started")
    if cluster and given["max_memory"] is not None:
        refuse(
            "--max-memory is of this machine; give it to the workers: dask worker --memory-limit"
        )
    named = [name for name in ("tls_ca_file", "tls_cert", "tls_key") if given[name] is not None]
    if named and not cluster:
        refuse(f"{params.flag_of(named[0])} goes with --executor dask+tls://HOST:PORT")
    if given["failed"] and not given["resume"]:
        refuse("--failed does again what failed; --force does everything again")


def _out(out: str | None, zoo: "Zoo", file: Path) -> str:
    """Return the output, as an absolute path or a URL: workers may be in other folders."""
    from ckptshrink.zoo.remote import is_url

    if out is not None:
        return out if is_url(out) else str(Path(out).absolute())
    if zoo.out is not None:
        return zoo.out if is_url(zoo.out) else str(file.absolute().parent / zoo.out)
    return str(file.absolute().with_suffix(".shrunk"))


def _settings(out: str, given: dict[str, Any]) -> "Settings":
    from ckptshrink.zoo.batch import Settings

    return Settings(
        out,
        threads=given["threads"],
        device=given["device"],
        retries=given["retries"],
        max_memory=given["max_memory"],
        force=not given["resume"],
        failed=given["failed"],
        local=given["executor"] is None,
    )


def _run(
    run: Run, jobs: "Sequence[Job]", settings: "Settings", given: dict[str, Any],
    events: Path | None,
) -> "tuple[Totals, Summary]":  # fmt: skip
    from ckptshrink.io.staging import locked_folder
    from ckptshrink.zoo.batch import run_batch
    from ckptshrink.zoo.remote import check_output, is_url
    from ckptshrink.zoo.summary import Summary
    from ckptshrink_cli import batch_view

    shard = given["shard"]
    check_output(settings.out)
    local = not is_url(settings.out)
    with ExitStack() as opened:
        if local:
            opened.enter_context(locked_folder(Path(settings.out), shared=shard is not None))
        views = [
            opened.enter_context(batch_view.written(events)),
            opened.enter_context(batch_view.shown(run)),
        ]

        def tell(event: Any) -> None:
            for view in views:
                view(event)

        totals = run_batch(jobs, settings, _start(jobs, settings, given), tell)
        summary = Summary(jobs, settings.out, shard)
        if not given["only"]:
            summary.write()
    return totals, summary


def _start(
    jobs: "Sequence[Job]", settings: "Settings", given: dict[str, Any]
) -> "Callable[[], Executor]":
    """Return what starts the workers, should there be anything to do."""
    address = given["executor"]
    if address is not None:
        from ckptshrink.zoo.cluster import DaskExecutor, Tls

        tls = Tls(given["tls_ca_file"], given["tls_cert"], given["tls_key"])
        return lambda: DaskExecutor(address, tls, settings.out)
    from ckptshrink.zoo.local import LocalExecutor
    from ckptshrink.zoo.machine import cores

    workers = given["jobs"] or max(1, cores() // settings.threads)
    scoring = any(job.work.scorings or job.work.gate for job in jobs)
    return lambda: LocalExecutor(min(workers, max(1, len(jobs))), scoring=scoring)


def _config(zoo: "Zoo", jobs: "Sequence[Job]", out: str) -> dict[str, Any]:
    """Return what holds for the models of each entry, and which they are."""
    from ckptshrink.zoo.remote import without_secrets
    from ckptshrink.zoo.settings import merged

    models = [
        {
            "path": list(map(without_secrets, model.path)),
            "recipe": merged(zoo.defaults, model).model_dump(mode="json", exclude_unset=True),
            "checkpoints": [
                {
                    "name": job.shown,
                    "source": without_secrets(job.source),
                    "artefact": job.artefact,
                }
                for job in jobs
                if job.entry == number
            ],
        }
        for number, model in enumerate(zoo.model)
    ]
    return {"schema_version": _SCHEMA_VERSION, "out": without_secrets(out), "models": models}


def _show(run: Run, summary: "Summary", totals: "Totals", *, as_json: bool) -> None:
    """Write what became of every model: all of them to a file, the ones to look at to a person."""
    from ckptshrink_cli import render

    if as_json:
        for text in summary.document():
            emit(text)
    elif sys.stdout.isatty():
        rows = [
            row for row in summary.rows() if totals.total <= _MOST_ROWS or row["status"] != "done"
        ]
        emit(render.as_table(rows[:_MOST_ROWS], _columns()))
    else:
        from ckptshrink.zoo.summary import FIELDS

        emit(render.as_tsv([], FIELDS))
        for row in summary.rows():
            emit(render.as_tsv([row], FIELDS).split("\n", 1)[1])
    run.say(*_lines(summary, totals))


def _columns() -> tuple[Any, ...]:
    from ckptshrink_cli import render

    def sized(key: str) -> Callable[[Any], str]:
        return lambda row: "" if row[key] is None else render.size(row[key])

    return (
        render.Column("model", lambda r: r["name"]),
        render.Column("status", lambda r: r["status"]),
        render.Column("family", lambda r: r["family"] or "", spare=True),
        render.Column("before", sized("nbytes_before"), True),
        render.Column("after", sized("nbytes_after"), True),
        render.Column("worst error", lambda r: render.error(r["worst_rel_error"]), True, True),
        render.Column("gate", lambda r: r["gate"] or ""),
        render.Column("scores", lambda r: r["metrics"]),
        render.Column("why", lambda r: r["error"] or ""),
    )


def _lines(summary: "Summary", totals: "Totals") -> Iterator[str]:
    from ckptshrink_cli import render

    parts = [f"{totals.done} of {totals.total} models done"]
    if totals.not_good_enough:
        parts.append(f"{totals.not_good_enough} not good enough")
    if totals.failed:
        parts.append(f"{totals.failed} failed")
    if totals.skipped:
        parts.append(f"{totals.skipped} of them before")
    yield f"{', '.join(parts)}; {render.duration(totals.seconds)}"
    if totals.nbytes_before:
        share = render.ratio(totals.nbytes_before, totals.nbytes_after)
        sizes = f"{render.size(totals.nbytes_before)} → {render.size(totals.nbytes_after)}"
        yield f"size        {sizes} ({share} of what it was)"
    yield f"output      {summary.place}"
    if totals.failed:
        yield "next        the same again with --failed does those that failed once more"
