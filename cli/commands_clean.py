"""``ckptshrink clean``: remove what killed runs left, and put back what they had set aside."""

from pathlib import Path
from typing import Any, Final

import click

from ckptshrink_cli import exit_codes, params
from ckptshrink_cli.declare import INPUT, OUTPUT, Command, option
from ckptshrink_cli.streams import Run, emit_json

_SCHEMA_VERSION: Final = 1


@click.command(
    "clean",
    cls=Command,
    help="""Remove what killed runs left behind.

    A run builds its output in a hidden folder beside it, .NAME.part-*, and removes that however it
    ends; only one that is killed (SIGKILL, a power cut) leaves it. Looks in each FOLDER, by default
    the current one, and removes those whose run is gone. What an interrupted --overwrite had set
    aside is put back. Nothing else is touched: no folder of a living run, none without the lock
    file that says it is ours, nothing behind a link.

    A run does the same by itself for the target that it writes.
    """,
    example="ckptshrink clean models --recursive --dry-run",
)
@click.argument("folders", metavar="[FOLDER]...", nargs=-1, type=click.Path(path_type=Path))
@option(INPUT, "-r", "--recursive", is_flag=True, help="Look in the folders below too.")
@option(OUTPUT, "--dry-run", is_flag=True, help="Say what would be removed; remove nothing.")
@params.json_option
@params.talk_options
@click.pass_obj
def command(
    run: Run, /, folders: tuple[Path, ...], recursive: bool, dry_run: bool, as_json: bool
) -> int:
    """Sweep the folders, and say what became of each orphan."""
    from ckptshrink.io.orphans import clean
    from ckptshrink_cli import render

    found = [
        swept
        for folder in dict.fromkeys(folders or (Path(),))
        for swept in clean(folder, recursive=recursive, dry_run=dry_run)
    ]
    rows: list[dict[str, Any]] = [
        {
            "path": str(swept.path),
            "fate": swept.fate,
            "nbytes": swept.nbytes,
            "restored": [str(path) for path in swept.restored],
            "reason": swept.reason,
        }
        for swept in found
    ]
    gone = [swept for swept in found if swept.fate in {"removed", "put back"}]
    nbytes = sum(swept.nbytes for swept in gone)
    if as_json:
        document = {"schema_version": _SCHEMA_VERSION, "dry_run": dry_run, "nbytes": nbytes}
        emit_json({**document, "found": rows})
    else:
        _show([{**row, "restored": ", ".join(row["restored"])} for row in rows])
    would = "would remove" if dry_run else "removed"
    run.say(f"{would} {len(gone)} part folder{'s' * (len(gone) != 1)}, {render.size(nbytes)}")
    for path in (path for swept in gone for path in swept.restored):
        run.say(f"{'would put' if dry_run else 'put'} back {path}")
    failed = [swept for swept in found if swept.fate == "failed"]
    for swept in failed:
        run.say(f"{swept.path}: {swept.reason}")
    return exit_codes.OUTPUT if failed else exit_codes.DONE


def _show(rows: list[dict[str, Any]]) -> None:
    from ckptshrink_cli import render

    columns = (
        render.Column("path", lambda row: row["path"]),
        render.Column("fate", lambda row: row["fate"]),
        render.Column("bytes", lambda row: render.count(row["nbytes"]), right=True),
        render.Column("put back", lambda row: row["restored"]),
        render.Column("reason", lambda row: row["reason"], spare=True),
    )
    render.show(rows, ["path", "fate", "nbytes", "restored", "reason"], columns)
