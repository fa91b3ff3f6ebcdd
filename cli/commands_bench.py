"""``ckptshrink bench``: how much faster a model runs as it is stored than dense."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ckptshrink_cli import exit_codes, params
from ckptshrink_cli.declare import HOW, INPUT, Command, option, parsed
from ckptshrink_cli.streams import Run, emit_json

if TYPE_CHECKING:
    from ckptshrink.runtime.bench import Bench, Row
    from ckptshrink.runtime.timing import Timing

_SCHEMA_VERSION: Final = 1

_MOST: Final = 1_000_000
"""Largest batch, and most steps: more is a slip of the finger, and no memory holds it."""

_FIELDS: Final = (
    "name", "layer", "direction", "cell", "inputs", "hidden", "projected", "rank_Wi", "rank_Wh",
    "rank_P", "batch", "steps", "dense", "dense_seconds", "factored_seconds",
    "dense_tokens_per_second", "factored_tokens_per_second", "ratio", "ratio_least", "ratio_most",
    "route",
)  # fmt: skip
"""Columns of the tab-separated form."""


def _count(text: str) -> int:
    return params.whole_number(text, most=_MOST)


def _batches(text: str) -> tuple[int, ...]:
    """Return batch sizes from their list, each once."""
    return tuple(dict.fromkeys(map(_count, text.split(","))))


@click.command(
    "bench",
    cls=Command,
    help="""Measure how much faster a model runs as it is stored than dense.

    Each LSTM and GRU layer of OUT, an artefact or a checkpoint, takes turns with nn.LSTM or nn.GRU
    on random input, without gradients and in float32. Seconds are medians of all rounds; `ratio` is
    the median of dense over factored seconds of each round, with the least and the most of it.

    The dense weights are those of --against, else OUT's own multiplied back. On the CPU nn.LSTM
    runs with oneDNN and without, and the faster of the two counts: with oneDNN it packs its weights
    anew at every call, which is most of the time of one step. Where an ELMo clips its cells, which
    nn.LSTM can't, the dense layer is ckptshrink's own with dense weights.

    `route` is how the runtime ran the layer: by the factors as they are (loop, compiled), or
    multiplied back (dense).
    """,
    example="ckptshrink bench awd.shrunk --against awd.pt --batch 1,80 --threads 1",
)
@params.artefact_argument
@option(
    INPUT, "--against", metavar="FILE", type=click.Path(path_type=Path),
    help="Compare with the layers of this checkpoint, from which OUT was made.",
)  # fmt: skip
@option(
    HOW, "--batch", "batches", metavar="N,N,...", default="1,8,80", callback=parsed(_batches),
    help="Sequences at a time (default 1,8,80).",
)  # fmt: skip
@option(
    HOW, "--steps", metavar="N", default="70", callback=parsed(_count),
    help="Steps of each sequence (default 70); 1 is what one step of generation takes.",
)  # fmt: skip
@option(
    HOW, "--rounds", metavar="N", default="7", callback=parsed(_count),
    help="Rounds in which the contestants take turns (default 7).",
)  # fmt: skip
@params.json_option
@params.compute_options
@params.progress_option
@params.talk_options
@click.pass_obj
def command(
    run: Run,
    /,
    artefact: Path,
    against: Path | None,
    batches: tuple[int, ...],
    steps: int,
    rounds: int,
    as_json: bool,
    device: str,
    threads: int | None,
) -> int:
    """Measure, and say what came out."""
    from ckptshrink.payload import Compute
    from ckptshrink.runtime.bench import bench
    from ckptshrink_cli import progress

    with progress.shown(run) as listen:
        found = bench(
            artefact,
            against=against,
            batches=batches,
            steps=steps,
            rounds=rounds,
            compute=Compute(device, threads),
            listen=listen,
        )
    rows = [_row(row) for row in found.rows]
    if as_json:
        emit_json(
            {
                "schema_version": _SCHEMA_VERSION,
                "file": str(artefact),
                "against": None if against is None else str(against),
                "device": found.device,
                "threads": found.threads,
                "rounds": rounds,
                "rows": rows,
                "notes": list(found.notes),
            }
        )
    else:
        _show(rows)
    run.say(*_summary(found))
    return exit_codes.DONE


def _row(row: "Row") -> dict[str, Any]:
    cell, ratio = row.cell, row.ratio

    def per_second(timing: "Timing") -> float:
        return round(row.tokens_per_s(timing), 1)

    return {
        "name": "all layers" if cell is None else cell.name,
        "layer": None if cell is None else cell.layer,
        "direction": None if cell is None else cell.direction,
        "cell": None if cell is None else cell.kind,
        "inputs": None if cell is None else cell.n_inputs,
        "hidden": None if cell is None else cell.hidden,
        "projected": None if cell is None else cell.projected,
        "rank_Wi": None if cell is None else cell.ranks["Wi"],
        "rank_Wh": None if cell is None else cell.ranks["Wh"],
        "rank_P": None if cell is None else cell.ranks["P"],
        "batch": row.batch,
        "steps": row.steps,
        "dense": row.dense_by,
        "dense_seconds": row.dense.median,
        "factored_seconds": row.factored.median,
        "dense_tokens_per_second": per_second(row.dense),
        "factored_tokens_per_second": per_second(row.factored),
        "ratio": ratio.median,
        "ratio_least": ratio.least,
        "ratio_most": ratio.most,
        "route": row.route,
    }


def _show(rows: list[dict[str, Any]]) -> None:
    from ckptshrink_cli import render

    names = [row["name"] for row in rows if row["batch"] == rows[0]["batch"]]
    several = {name for name in names if names.count(name) > 1}  # of nn.LSTM(num_layers=2)

    def layer(row: Mapping[str, Any]) -> str:
        number = f" layer {row['layer']}" if row["name"] in several else ""
        return f"{row['name']}{number}{' backward' if row['direction'] == 'backward' else ''}"

    columns = (
        render.Column("layer", layer),
        render.Column("size", _size, spare=True),
        render.Column("ranks", _ranks),
        render.Column("batch", lambda r: render.count(r["batch"]), True),
        render.Column("dense ms", lambda r: _milliseconds(r["dense_seconds"]), True),
        render.Column("factored ms", lambda r: _milliseconds(r["factored_seconds"]), True),
        render.Column("tokens/s", lambda r: f"{r['factored_tokens_per_second']:,.0f}", True),
        render.Column("ratio", lambda r: f"{r['ratio']:.2f}", True),
        render.Column("spread", lambda r: _spread(r["ratio_least"], r["ratio_most"]), True),
        render.Column("route", lambda r: r["route"]),
        render.Column("dense is", lambda r: r["dense"], spare=True),
    )
    render.show(rows, _FIELDS, columns)


def _size(row: Mapping[str, Any]) -> str:
    sides = (row["inputs"], row["hidden"], row["projected"])
    return "→".join(str(side) for side in sides if side is not None)


def _ranks(row: Mapping[str, Any]) -> str:
    ranks = {role: row[f"rank_{role}"] for role in ("Wi", "Wh", "P")}
    found = ", ".join(f"{role} {rank}" for role, rank in ranks.items() if rank is not None)
    return found or ("" if row["layer"] is None else "dense")


def _milliseconds(seconds: float) -> str:
    ms = 1000 * seconds
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}"


def _spread(least: float, most: float) -> str:
    return f"{least:.2f} to {most:.2f}"


def _summary(found: "Bench") -> Iterator[str]:
    """Yield what all layers come to, by batch size, and what is to be known of the numbers."""
    threads = "1 thread" if found.threads == 1 else f"{found.threads} threads"
    yield f"on {found.device}" + (f", {threads}" if found.device == "cpu" else "")
    for row in found.rows:
        if row.cell is None:
            ratio = row.ratio
            yield (
                f"batch {row.batch}: {ratio.median:.2f} times as fast as dense "
                f"({_spread(ratio.least, ratio.most)})"
            )
    yield from (f"note: {note}" for note in found.notes)
