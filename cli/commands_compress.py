"""``ckptshrink compress``: write a smaller checkpoint."""

import shutil
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ckptshrink_cli import params
from ckptshrink_cli.declare import OUTPUT, WHAT, Command, option, refuse
from ckptshrink_cli.paths import default_out
from ckptshrink_cli.streams import Run, emit_json

if TYPE_CHECKING:
    from ckptshrink.plan import Plan
    from ckptshrink.planning.request import Request

_SCHEMA_VERSION: Final = 1


@click.command(
    "compress",
    cls=Command,
    help="""Write a smaller checkpoint.

    FILE is never written to. OUT is a folder with model.safetensors and manifest.json; with
    --format dense it is a checkpoint like FILE, with every compressed matrix multiplied back.
    A matrix whose factors would take as many bytes as it does itself stays as it is.
    """,
    example="ckptshrink compress elmo.hdf5 --target Wh --rank 400",
)
@params.file_argument
@params.request_options
@option(
    WHAT, "--plan", "plan_file", metavar="PLAN", type=click.Path(path_type=Path),
    help="Run this plan, which plan -o wrote; no other option of these three groups goes with it.",
)  # fmt: skip
@params.out_option("Where to write (default: FILE without its suffix, and .shrunk).", metavar="OUT")
@option(
    OUTPUT, "--format", "form", type=click.Choice(["factored", "dense"]),
    default="factored", metavar="FORMAT",
    help="factored (default): a folder with the factors. dense: FILE's own container, with the "
    "same names and shapes.",
)  # fmt: skip
@params.max_shard_option
@params.overwrite_option
@params.dry_run_option
@params.json_option
@params.compute_options
@params.progress_option
@params.talk_options
@click.pass_obj
def command(
    run: Run,
    /,
    file: Path,
    plan_file: Path | None,
    out: Path | None,
    form: str,
    max_shard_size: int | None,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    device: Any,
    threads: int | None,
    **options: Any,
) -> None:
    """Compress, show what became of every tensor, and sum up."""
    dense = form == "dense"
    job = _job(options, plan_file)
    if dense and max_shard_size is not None:
        refuse("--max-shard-size goes with --format factored")
    out = out if out is not None else default_out(file, dense=dense)
    _refuse_early(file, out, overwrite=overwrite, dry_run=dry_run)
    if dry_run:
        plan, needed = _planned(file, job, options["strict"], device, threads, dense=dense)
        _show_dry_run(run, plan, out, needed, form=form, as_json=as_json)
        return
    _refuse_unread(file)

    from ckptshrink import rewrite
    from ckptshrink.payload import Compute
    from ckptshrink_cli import progress, tables
    from ckptshrink_cli.summary import Summary

    with progress.shown(run) as listen:
        result = rewrite.compress(
            file, out, job,
            dense=dense, overwrite=overwrite, strict=options["strict"],
            compute=Compute(device, threads), listen=listen,
            max_shard_bytes=max_shard_size or rewrite.DEFAULT_SHARD_BYTES,
        )  # fmt: skip
    summary = Summary.of(result, file, out, dense=dense)
    if as_json:
        emit_json({"schema_version": _SCHEMA_VERSION, **summary.document()})
    else:
        tables.show_outcome(result.manifest)
    run.say(*summary.lines())


def _job(options: dict[str, Any], plan_file: Path | None) -> "Request | Plan":
    """Return the plan to run, or the request to plan."""
    if plan_file is None:
        return params.request_of(options)
    given = [*params.given_of(options), *(["strict"] if options["strict"] else [])]
    if given:
        flags = ", ".join(map(params.flag_of, given))
        refuse(f"--plan says everything already; it can't go with {flags}")

    from ckptshrink.plan import read_plan

    return read_plan(plan_file)


def _refuse_early(file: Path, out: Path, *, overwrite: bool, dry_run: bool) -> None:
    """Refuse what can't be before anything slow is imported: no such file, no such place."""
    from ckptshrink.io.files import source_errors
    from ckptshrink.io.staging import check_target

    with source_errors(file):
        file.stat()
    # whether a file or a folder will be written depends on the source; the run itself checks that
    check_target(out, overwrite=overwrite, single=None, inputs=[file], dry_run=dry_run)


def _refuse_unread(file: Path) -> None:
    """Refuse what is no checkpoint before torch is imported, which takes a second and 200 MB."""
    from ckptshrink.io.detect import open_checkpoint

    open_checkpoint(file).close()


def _planned(
    file: Path,
    job: "Request | Plan",
    strict: bool,
    device: str,
    threads: int | None,
    *,
    dense: bool,
) -> "tuple[Plan, int]":
    """Return the plan that a run would follow, and the bytes that it would write."""
    from ckptshrink.planning.opened import open_source, plan_opened
    from ckptshrink.planning.replan import replan
    from ckptshrink.planning.request import Request

    reader, recognition = open_source(file, use_averaged=job.settings.use_averaged)
    with closing(reader):
        checkpoint = reader.checkpoint
        if isinstance(job, Request):
            plan = plan_opened(
                reader, recognition, job, strict=strict, device=device, threads=threads
            )
        else:
            plan = replan(job, checkpoint, recognition)
        return plan, checkpoint.nbytes if dense else plan.totals["nbytes_after"]


def _show_dry_run(
    run: Run, plan: "Plan", out: Path, needed: int, *, form: str, as_json: bool
) -> None:
    from ckptshrink_cli import render, tables

    free = shutil.disk_usage(out.absolute().parent).free
    if as_json:
        emit_json(
            {
                "schema_version": _SCHEMA_VERSION,
                "dry_run": True,
                "out": str(out),
                "format": form,
                "nbytes_needed": needed,
                "nbytes_free": free,
                "plan": plan.model_dump(mode="json"),
            }
        )
    else:
        tables.show_plan(plan)
    run.say(
        *tables.plan_lines(plan),
        f"would write {out}: about {render.size(needed)}, where {render.size(free)} are free",
    )
