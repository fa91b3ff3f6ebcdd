"""``ckptshrink inspect``: list the tensors of checkpoints, and what each of them is."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ckptshrink.errors import CkptshrinkError, printable
from ckptshrink_cli import exit_codes
from ckptshrink_cli.declare import Command
from ckptshrink_cli.params import files_argument, json_option, talk_options
from ckptshrink_cli.reporting import report
from ckptshrink_cli.streams import Run, emit, emit_json

if TYPE_CHECKING:
    from ckptshrink_cli.listing import Listing

_SCHEMA_VERSION: Final = 1


@click.command(
    "inspect",
    cls=Command,
    help="""List the tensors of checkpoints, and what each of them is.

    Reads headers and no weights. The format is found from the content of FILE: an ELMo .hdf5, a
    torch .pt (a whole pickled module too; nothing in it is run), safetensors, or a folder or an
    index of shards. A tensor that packs several matrices has a row for each.

    A tensor that looks recurrent and fits no known layout is reported after the listing, with exit
    status 3.
    """,
    example="ckptshrink inspect elmo.hdf5 awd_lstm.pt",
)
@files_argument
@json_option
@talk_options
@click.pass_obj
def command(run: Run, /, files: tuple[Path, ...], as_json: bool) -> int:
    """List each file; one that can't be read doesn't keep the others from being listed."""
    from ckptshrink_cli.listing import list_checkpoint

    listings: list[Listing] = []
    documents: list[dict[str, Any]] = []
    errors: list[CkptshrinkError] = []
    for path in files:
        try:
            found = list_checkpoint(path)
        except CkptshrinkError as error:
            errors.append(error)
            documents.append({"file": str(path), "error": str(error)})
            continue
        listings.append(found)
        documents.append(found.document())
        errors += found.errors
    if as_json:
        emit_json({"schema_version": _SCHEMA_VERSION, "checkpoints": documents})
    elif listings:
        _show(run, listings)
    for one in errors:
        report(one, run)
    return max(map(exit_codes.status_of, errors), default=exit_codes.DONE)


def _show(run: Run, listings: Sequence["Listing"]) -> None:
    """Write a table for each checkpoint on a terminal; else one table of values for them all."""
    from ckptshrink_cli import render
    from ckptshrink_cli.listing import FIELDS

    if not sys.stdout.isatty():
        for listing in listings:
            run.say(*_header(listing))
        emit(render.as_tsv([row for listing in listings for row in listing.rows], FIELDS))
        return
    columns = (
        render.Column("name", lambda row: row["name"]),
        render.Column("role", lambda row: row["role"] or ""),
        render.Column("layer", _layer),
        render.Column("shape", lambda row: render.shape(row["shape"]), True),
        render.Column("dtype", lambda row: row["dtype"]),
        render.Column("bytes", lambda row: render.count(row["nbytes"]), True),
        render.Column("cell", lambda row: f"{row['cell']} {row['gates']}".strip()),
        render.Column("note", lambda row: row["note"]),
    )
    for listing in listings:
        emit("".join(f"{printable(line)}\n" for line in _header(listing)))
        emit(render.as_table(listing.rows, columns) + "\n")


def _layer(row: Mapping[str, Any]) -> str:
    if row["layer"] is None:
        return ""
    return f"{row['layer']} backward" if row["direction"] == "backward" else f"{row['layer']}"


def _header(listing: "Listing") -> Iterator[str]:
    from ckptshrink_cli import render

    yield (
        f"{listing.file}: {listing.format}, {listing.family}, {render.count(listing.nbytes)} bytes"
        + (f", with {', '.join(listing.sidecars)}" if listing.sidecars else "")
    )
    roles = ", ".join(f"{role} {render.count(n)}" for role, n in listing.n_params_by_role.items())
    yield f"  {render.count(listing.n_params)} parameters: {roles}"
    yield from (f"  note: {note}" for note in render.first_of(listing.notes))
