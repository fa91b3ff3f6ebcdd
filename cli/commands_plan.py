"""``ckptshrink plan``: show what would become of every tensor."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckptshrink_cli import params
from ckptshrink_cli.declare import Command
from ckptshrink_cli.streams import Run, emit_json

if TYPE_CHECKING:
    from ckptshrink.plan import Plan


@click.command(
    "plan",
    cls=Command,
    help="""Show what would become of every tensor.

    Reads names and shapes; weights only where the ranks follow from them: --energy, --max-error,
    --budget. With -o the plan is a JSON file to edit and to run: compress --plan.
    """,
    example="ckptshrink plan elmo.hdf5 --target Wi --target Wh:rank=10 --ratio 0.5 -o plan.json",
)
@params.file_argument
@params.request_options
@params.out_option("Write the plan to this file.", metavar="PLAN")
@params.overwrite_option
@params.json_option
@params.compute_options
@params.progress_option
@params.talk_options
@click.pass_obj
def command(
    run: Run,
    /,
    file: Path,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
    device: str,
    threads: int | None,
    **options: Any,
) -> None:
    """Make the plan, write it where that was asked, and show it."""
    request = params.request_of(options)

    from ckptshrink.io.staging import check_target
    from ckptshrink.planning.opened import plan_checkpoint
    from ckptshrink_cli import progress, tables
    from ckptshrink_cli.paths import shell

    if out is not None:  # before the work, which can take a while
        check_target(out, overwrite=overwrite, single=True, inputs=[file])
    with progress.shown(run) as listen:
        plan = plan_checkpoint(
            file, request,
            strict=options["strict"], device=device, threads=threads, listen=listen,
        )  # fmt: skip
    if out is not None:
        _write(plan, out, file, overwrite=overwrite)
    if as_json:
        emit_json(plan.model_dump(mode="json"))
    else:
        tables.show_plan(plan)
    run.say(*tables.plan_lines(plan))
    if out is not None:
        run.say(f"next: ckptshrink compress {shell(file)} --plan {shell(out)}")


def _write(plan: "Plan", out: Path, file: Path, *, overwrite: bool) -> None:
    from ckptshrink.io.staging import Staging

    with Staging(out, single=True, overwrite=overwrite, inputs=[file]) as staging:
        staging.create(out.name).write(plan.to_json().encode())
        staging.commit()
