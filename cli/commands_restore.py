"""``ckptshrink restore``: write the dense checkpoint again, from an artefact alone."""

from pathlib import Path
from typing import Any, Final

import click

from ckptshrink.errors import OutputError
from ckptshrink_cli import params
from ckptshrink_cli.declare import Command
from ckptshrink_cli.streams import Run, emit_json

_SCHEMA_VERSION: Final = 1


@click.command(
    "restore",
    cls=Command,
    help="""Write the dense checkpoint again, from an artefact alone.

    In the container that the source had, under the same names, with every compressed matrix
    multiplied back. A pickled module comes back as its state dict.
    """,
    example="ckptshrink restore elmo.shrunk -o elmo_restored.hdf5",
)
@params.artefact_argument
@params.out_option("Where to write.", metavar="FILE", required=True)
@params.overwrite_option
@params.dry_run_option
@params.json_option
@params.progress_option
@params.talk_options
@click.pass_obj
def command(
    run: Run, /, artefact: Path, out: Path, overwrite: bool, dry_run: bool, as_json: bool
) -> None:
    """Restore, and say what the source held that the artefact does not."""
    from ckptshrink.io.checkpoint import is_single
    from ckptshrink.io.files import source_errors
    from ckptshrink.io.staging import check_target
    from ckptshrink.manifest import read_manifest
    from ckptshrink_cli import progress
    from ckptshrink_cli.paths import nbytes_on_disk, shell

    with source_errors(artefact):
        artefact.stat()
    manifest = read_manifest(artefact)
    single = is_single(manifest.container, len(manifest.source.files))
    inputs = [artefact, *(artefact / file.path for file in manifest.files)]
    if artefact.resolve() in out.absolute().parent.resolve().joinpath("x").parents:
        raise OutputError("lies in the artefact, which is never written to", path=out)
    check_target(out, overwrite=overwrite, single=single, inputs=inputs, dry_run=dry_run)
    container = f"{manifest.source.format}, {manifest.source.family}"
    if dry_run:
        _show(as_json, {"out": str(out), "dry_run": True, "nbytes": manifest.source.nbytes})
        run.say(f"would write {out} ({container})")
        return

    from ckptshrink.rewrite import restore

    with progress.shown(run) as listen:
        written, left_out = restore(artefact, out, overwrite=overwrite, listen=listen)
    nbytes = nbytes_on_disk(written)
    _show(
        as_json,
        {"out": str(out), "dry_run": False, "nbytes": nbytes, "left_out": list(left_out)},
    )
    run.say(f"wrote {out} ({container})", *(f"left out: {line}" for line in left_out))
    run.say(f"next: ckptshrink inspect {shell(out)}")


def _show(as_json: bool, found: dict[str, Any]) -> None:
    from ckptshrink_cli import render

    if as_json:
        emit_json({"schema_version": _SCHEMA_VERSION, **found})
    else:
        columns = (
            render.Column("out", lambda row: row["out"]),
            render.Column("bytes", lambda row: render.count(row["nbytes"]), right=True),
        )
        render.show([found], ["out", "nbytes"], columns)
