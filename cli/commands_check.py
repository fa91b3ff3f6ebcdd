"""``ckptshrink check``: say what is wrong with files, without loading them."""

import operator
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ckptshrink.errors import CheckpointError, CkptshrinkError
from ckptshrink_cli import exit_codes
from ckptshrink_cli.declare import WHAT_COUNTS, Command, option
from ckptshrink_cli.params import files_argument, json_option, talk_options
from ckptshrink_cli.reporting import report
from ckptshrink_cli.streams import Run, emit_json

if TYPE_CHECKING:
    from ckptshrink.io.check import Checked

_SCHEMA_VERSION: Final = 1
_FIELDS: Final = ("file", "level", "where", "finding")


@click.command(
    "check",
    cls=Command,
    help="""Say what is wrong with files, without loading them.

    Nothing in FILE is run or imported, or unpacked under a name. Checked are checkpoints, plain
    pickles, and every pickle in an archive: which functions and classes they name (an unexpected
    one is unsafe, as an unpickler would call it), checksums, sizes, offsets, links to other files,
    and whether the whole of it can be read. In a folder every checkpoint and pickle is checked,
    other files are passed over, and links are not followed.

    A row is unsafe, corrupt, or a note. Exit status 1 if anything is unsafe or corrupt, 3 if a file
    can't be opened.
    """,
    example="ckptshrink check model.pt && python serve.py model.pt",
)
@files_argument
@option(
    WHAT_COUNTS, "--strict", is_flag=True,
    help="Let notes count: a class of the model's own code, things passed over.",
)  # fmt: skip
@json_option
@talk_options
@click.pass_obj
def command(run: Run, /, files: tuple[Path, ...], strict: bool, as_json: bool) -> int:
    """Check each file; one that can't be opened doesn't keep the others from being checked."""
    from ckptshrink.io.check import check_file, files_of

    found: list[Checked] = []
    errors: list[CkptshrinkError] = []
    n_passed_over = 0
    for path in files:
        try:
            below = list(files_of(path)) if path.is_dir() and not path.is_symlink() else [path]
        except CheckpointError as error:
            below = []
            errors.append(error)
        except OSError as error:
            below = []
            errors.append(CheckpointError(f"can't be read: {error.strerror}", path=path))
        for file in below:
            try:
                checked = check_file(file)
            except CheckpointError as error:
                errors.append(error)
                continue
            if checked.format == "unknown" and below != [path]:
                n_passed_over += 1
            else:
                found.append(checked)
    bad = [one for one in found if not one.passed or (strict and one.findings)]
    if as_json:
        emit_json(_document(found, bad, errors))
    else:
        _show(found)
    for each in errors:
        report(each, run)
    run.say(_summary(found, bad, n_passed_over))
    if errors:
        return max(map(exit_codes.status_of, errors))
    return exit_codes.NO if bad else exit_codes.DONE


def _show(found: Sequence["Checked"]) -> None:
    from ckptshrink_cli import render

    rows = [
        {"file": str(one.path), "level": each.level, "where": each.where, "finding": each.what}
        for one in found
        for each in one.findings
    ]
    columns = [render.Column(name, operator.itemgetter(name)) for name in _FIELDS]
    render.show(rows, _FIELDS, columns)


def _summary(found: Sequence["Checked"], bad: Sequence["Checked"], n_passed_over: int) -> str:
    files = "1 file" if len(found) == 1 else f"{len(found):,} files"
    over = f", {n_passed_over:,} of no known format passed over" if n_passed_over else ""
    if not bad:
        return f"{files} checked{over}: nothing unsafe or corrupt"
    return f"{files} checked{over}: {len(bad):,} unsafe or corrupt"


def _document(
    found: Sequence["Checked"], bad: Sequence["Checked"], errors: Sequence[CkptshrinkError]
) -> dict[str, Any]:
    return {
        "schema_version": _SCHEMA_VERSION,
        "passed": not bad and not errors,
        "files": [
            {
                "file": str(one.path),
                "format": one.format,
                "passed": one not in bad,
                "findings": [
                    {"level": each.level, "where": each.where, "finding": each.what}
                    for each in one.findings
                ],
                "names": [{"name": name, "kind": kind} for name, kind in one.names.items()],
            }
            for one in found
        ],
        "errors": [str(error) for error in errors],
    }
