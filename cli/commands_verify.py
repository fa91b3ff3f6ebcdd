"""``ckptshrink verify``: prove that an artefact is what its manifest says."""

from pathlib import Path
from typing import Any, Final

import click

from ckptshrink.errors import CheckpointError, ManifestMismatchError
from ckptshrink_cli import exit_codes, params
from ckptshrink_cli.declare import INPUT, Command, option
from ckptshrink_cli.reporting import report
from ckptshrink_cli.streams import Run, emit_json

_SCHEMA_VERSION: Final = 1


@click.command(
    "verify",
    cls=Command,
    help="""Prove that an artefact is what its manifest says.

    Hashes every file of OUT and checks that each tensor is there. With --source it also computes
    the error of every compressed matrix again, and compares every other tensor with its source.

    Exit status 1 if there is a difference; each is a line on standard output.
    """,
    example="ckptshrink verify elmo.shrunk --source elmo.hdf5",
)
@params.artefact_argument
@option(
    INPUT, "--source", metavar="FILE", type=click.Path(path_type=Path),
    help="Compare with this checkpoint, from which OUT was made.",
)  # fmt: skip
@params.json_option
@params.progress_option
@params.talk_options
@click.pass_obj
def command(run: Run, /, artefact: Path, source: Path | None, as_json: bool) -> int:
    """Verify, and say what differs."""
    from ckptshrink.io.files import source_errors
    from ckptshrink.verification import verify
    from ckptshrink_cli import progress, render

    with source_errors(artefact):
        artefact.stat()
    if not artefact.is_dir():
        raise CheckpointError(
            "is a file; an artefact is a folder", path=artefact, hint="ckptshrink inspect lists it"
        )
    try:
        with progress.shown(run) as listen:
            found = verify(artefact, source=source, listen=listen)
    except ManifestMismatchError as mismatch:
        if as_json:
            emit_json(_document(differences=[str(mismatch)]))
        report(mismatch, run)
        return exit_codes.NO
    if as_json:
        emit_json(
            _document(
                differences=list(found.differences),
                n_files=found.n_files,
                n_tensors=found.n_tensors,
                worst=found.worst,
            )
        )
    else:
        rows = [{"difference": line} for line in found.differences]
        render.show(rows, ["difference"], [render.Column("difference", lambda r: r["difference"])])
    if not found.passed:
        run.say(f"{artefact}: {len(found.differences)} differences from its manifest")
        return exit_codes.NO
    against = f", and the errors as computed from {source}" if source is not None else ""
    run.say(f"{artefact}: {found.n_files} files and {found.n_tensors} tensors are right{against}")
    if found.worst is not None:
        name, error = found.worst
        run.say(f"worst error {render.error(error)} at {name}")
    return exit_codes.DONE


def _document(
    *,
    differences: list[str],
    n_files: int = 0,
    n_tensors: int = 0,
    worst: tuple[str, float] | None = None,
) -> dict[str, Any]:
    return {
        "schema_version": _SCHEMA_VERSION,
        "passed": not differences,
        "differences": differences,
        "n_files": n_files,
        "n_tensors": n_tensors,
        "worst": {"name": worst[0], "rel_error": worst[1]} if worst else None,
    }
