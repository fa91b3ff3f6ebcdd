"""The index: every model of a batch, or of a shard, in one table."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from ckptshrink.tensors import size
from ckptshrink.zoo.jobs import REPORTS
from ckptshrink.zoo.pages.markup import Cell, Column, document, facts, link, name, row, table, text
from ckptshrink.zoo.pages.words import (
    MARKS,
    NONE,
    bar,
    counted,
    error_cell,
    marked,
    ratio,
    status_cell,
    with_bar,
)
from ckptshrink.zoo.records import PAGE


def index_lines(
    totals: Mapping[str, Any],
    rows: Iterable[tuple[str | None, Mapping[str, Any]]],
    *,
    shard: tuple[int, int] | None = None,
    files: Sequence[str] = (),
) -> Iterator[str]:
    """Yield the page of a batch, a piece for each model.

    Parameters
    ----------
    totals : mapping
        As in ``zoo.json``.
    rows : iterable of (str or None, mapping)
        Name of each model as the output's folders have it, None where it has no page; and its row,
        see `row_of`.
    shard : (int, int), optional
        Which of how many the page is about.
    files : sequence of str
        Names of the files beside the page that hold the same.
    """
    which = "" if shard is None else f", shard {shard[0]} of {shard[1]}"
    title = f"{counted(totals['n_models'], 'model')}{which}"
    yield from document(title, _index(title, totals, rows, files))


def _index(
    title: str,
    totals: Mapping[str, Any],
    rows: Iterable[tuple[str | None, Mapping[str, Any]]],
    files: Sequence[str],
) -> Iterator[str]:
    yield f"<main>\n<h1>{title}</h1>\n"
    before, after = totals["nbytes_before"], totals["nbytes_after"]
    tiles = [
        (marked(status), f"{totals[key]:,}")
        for status, key in (
            ("done", "n_done"), ("not good enough", "n_not_good_enough"), ("failed", "n_failed"),
        )
    ]  # fmt: skip
    if before:
        saved = f"{100 * (before - after) / before:.1f} %"
        tiles += [
            (
                "Bytes before → after",
                with_bar(f"{size(before)} → {size(after)}", before, after),
            ),
            ("Saved", f"{size(before - after) if after <= before else NONE}<small>{saved}</small>"),
        ]
    yield facts(tiles, "tiles")
    yield (
        '<p class="faint">Done: compressed, scored, and past its gate where it has one. Not good '
        "enough: its gate failed, or could not tell. Failed: there is no artefact, or there are no "
        "scores. Bytes are of all files, and of models with an artefact only.</p>\n"
    )
    if files:
        links = " · ".join(link(file, text(file)) for file in files)
        yield f"<p>The same for programs: {links}</p>\n"
    yield _FILTER.format(**{key: f"{totals[key]:,}" for key in _COUNTS})
    body = (_index_row(place, each) for place, each in rows)
    yield from table(_INDEX_COLUMNS, body, "Models", sortable=True)
    yield "</main>\n"


_COUNTS: Final = ("n_models", "n_done", "n_not_good_enough", "n_failed")

_FILTER: Final = """\
<div class="filter" role="search" hidden>
<fieldset><legend>Show</legend>
<label><input type="radio" name="show" value="all" checked> all ({n_models})</label>
<label><input type="radio" name="show" value="failed"> failed ({n_failed})</label>
<label><input type="radio" name="show" value="poor"> not good enough ({n_not_good_enough})</label>
<label><input type="radio" name="show" value="done"> done ({n_done})</label>
</fieldset>
<label>with the words <input type="search" autocomplete="off"></label>
<output class="faint"></output>
</div>
"""
"""Not there where no script runs: then it would do nothing."""

_INDEX_COLUMNS: Final = (
    Column("Model", "row"),
    Column("Status", "word"),
    Column("What is wrong", "long"),
    Column("Family", "word"),
    Column("Before", "number"),
    Column("After", "number"),
    Column("Ratio", "number"),
    Column("Largest error", "number"),
    Column("Gate", "word"),
    Column("Scores, source → smaller", "long"),
)

_MOST_IN_ROW: Final = 300


def _index_row(place: str | None, model: Mapping[str, Any]) -> str:
    shown = name(model["name"])
    before, after = model["nbytes_before"], model["nbytes_after"]
    sized = before is not None and after is not None
    share = after / before if sized and before else None
    cells: list[Cell | str] = [
        shown if place is None else link(f"{REPORTS}/{place}/{PAGE}", shown),
        status_cell(model["status"]),
        text(model["error"] or model["gate_because"] or "", _MOST_IN_ROW),
        text(model["family"] or "", _MOST_IN_ROW),
        Cell(size(before), before) if sized else "",
        Cell(size(after), after) if sized else "",
        Cell(ratio(before, after), share, bar(before, after)) if sized else "",
        error_cell(model["worst_rel_error"]),
        status_cell(model["gate"]) if model["gate"] else "",
        text(model["metrics"] or "", _MOST_IN_ROW),
    ]
    return row(_INDEX_COLUMNS, cells, MARKS[model["status"]][0])
