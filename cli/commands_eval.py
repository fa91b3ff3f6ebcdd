"""``ckptshrink eval``: score models on a task, alone, beside a baseline, or in a sweep."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ckptshrink.errors import PlanError
from ckptshrink_cli import evaluating, exit_codes, params
from ckptshrink_cli.declare import INPUT, SWEEP, Command, option, parsed, refuse, usage_errors
from ckptshrink_cli.streams import Run, emit, emit_json

if TYPE_CHECKING:
    from ckptshrink.evaluation.document import Evaluation, Outcome
    from ckptshrink.evaluation.grid import Grid

_SWEEP_ONLY: Final = ("target", "method", "grouping", "dtype", "rival")


def _sweep(text: str) -> tuple[str, tuple[float | int, ...]]:
    from ckptshrink.evaluation.grid import parse_sweep

    return parse_sweep(text)


def _methods(text: str) -> tuple[str, ...]:
    return tuple(map(params.method_name, text.split(",")))


def _weights(text: str) -> tuple[str, ...]:
    if ":" in text:
        raise PlanError(f"{text!r}: a target of a sweep has no settings of its own")
    return tuple(text.split(","))


@click.command(
    "eval",
    cls=Command,
    help="""Score models on a task, alone, beside a baseline, or in a sweep.

    PATH is an artefact or a checkpoint, of which there may be several; NAME=PATH gives it a name.
    What is scored is always the file, read again.

    With --baseline every metric is set beside that of the source, scored in the same run with the
    same seeds, and E(r) says what was lost for what was saved: the loss relative to the baseline,
    over the share of the parameters that is gone. It is given for the parameters of the recurrent
    layers (lstm) and of everything that ran (model). Smaller is better, negative is an improvement.

    With --sweep PATH is compressed in every way asked for and each is scored; OUT is a folder with
    the tables, and a sweep that is run again goes on where it was stopped.

    Exit status 1 if an evaluation failed.
    """,
    example="ckptshrink eval awd.shrunk --task lm --data test.txt --train-text train.txt "
    "--baseline awd.pt\n"
    "ckptshrink eval awd.pt --task lm --data test.txt --train-text train.txt --target Wi,Wh "
    "\\\n    --sweep rank=10,50,100,200,300,400 --method svd,semi-nmf,prune -o sweep",
)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@option(
    INPUT, "--baseline", metavar="FILE",
    help="Score this as well, and compare with it: the checkpoint that PATH was made from.",
)  # fmt: skip
@evaluating.task_options
@option(
    SWEEP, "--sweep", metavar="NAME=V,V,...", callback=parsed(_sweep),
    help="What is varied: rank=10,50,100, or ratio, energy, max-error.",
)  # fmt: skip
@option(
    SWEEP, "--target", metavar="TARGET,...", callback=parsed(_weights),
    help="Weights to compress, each alone; Wi+Wh compresses both together.",
)  # fmt: skip
@option(
    SWEEP, "--method", metavar="METHOD,...", callback=parsed(_methods),
    help="Methods (default svd); svd,semi-nmf,prune are the paper's.",
)  # fmt: skip
@option(
    SWEEP, "--grouping", type=click.Choice(["stacked", "per-gate"]), metavar="GROUPING",
    help="As of compress.",
)  # fmt: skip
@option(
    SWEEP, "--dtype", type=click.Choice(["keep", "float16", "bfloat16"]), metavar="DTYPE",
    help="As of compress.",
)  # fmt: skip
@option(
    SWEEP, "--rival", metavar="PATH", multiple=True,
    help="Score this too, a dense model that was trained small, and mark the cells that are worse "
    "than it with no fewer parameters; NAME=PATH gives it a name; may be given again.",
)  # fmt: skip
@params.out_option(
    "Write the whole document here, and per-example results beside it; the folder of a sweep.",
    metavar="OUT",
)
@params.overwrite_option
@params.json_option
@params.compute_options
@params.progress_option
@params.talk_options
@click.pass_obj
def command(
    run: Run,
    /,
    paths: tuple[str, ...],
    baseline: str | None,
    sweep: tuple[str, tuple[float | int, ...]] | None,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
    device: str,
    threads: int | None,
    **given: Any,
) -> int:
    """Score, and say what came out."""
    if sweep is not None:
        if baseline is not None:
            refuse("a sweep's baseline is PATH itself; --baseline can't go with --sweep")
        if len(paths) != 1:
            refuse("--sweep takes one PATH, the checkpoint to compress")
        return _run_sweep(
            run, paths[0], sweep, given, out, as_json=as_json, device=device, threads=threads
        )
    alone = [name for name in _SWEEP_ONLY if given[name] not in (None, ())]
    if alone:
        refuse(f"{', '.join(map(params.flag_of, alone))} goes with --sweep")
    evaluating.required_task(given)
    if out is not None:  # before the work, which can take hours
        _refuse_early(out, overwrite=overwrite)
    found = evaluating.run_evaluation(
        run, given, paths, baseline=baseline, device=device, threads=threads
    )
    document = found.document
    if out is not None:
        from ckptshrink.evaluation.document import write_evaluation

        document = write_evaluation(document, found.examples, out, overwrite=overwrite)
    if as_json:
        emit_json(document.model_dump(mode="json"))
    else:
        _show(document)
    run.say(*_summary(document))
    if out is not None:
        run.say(f"wrote {out}" + (" and per-example results beside it" if found.examples else ""))
    failed = [o for o in document.outcomes if o.failure is not None]
    for outcome in failed:
        _say_failure(outcome)
    return exit_codes.NO if failed else exit_codes.DONE


def _refuse_early(out: Path, *, overwrite: bool) -> None:
    from ckptshrink.io.staging import check_target

    check_target(out, overwrite=overwrite, single=True)


def _run_sweep(
    run: Run,
    path: str,
    sweep: tuple[str, tuple[float | int, ...]],
    given: dict[str, Any],
    out: Path | None,
    *,
    as_json: bool,
    device: str,
    threads: int | None,
) -> int:
    task = evaluating.required_task(given)
    if out is None:
        refuse("--sweep needs -o OUT, the folder for its tables")
    grid = _grid(sweep, given)

    from ckptshrink.evaluation.sweep import sweep as run_sweep
    from ckptshrink.evaluation.sweep_tables import as_csv, as_markdown
    from ckptshrink.payload import Compute
    from ckptshrink_cli import progress

    (source,) = evaluating.subjects_of([path], task=task)
    others = evaluating.subjects_of(given["rival"], task=task)
    with progress.shown(run) as listen:
        nested = progress.Nested(listen)
        with evaluating.evaluator_of(
            task, given, device=device, threads=threads, listen=nested.inside, origin=source,
            train_elmo=source,
        ) as evaluator:  # fmt: skip
            swept = run_sweep(
                source, grid, task, evaluator, out,
                rivals=others, seed=given["seed"], compute=Compute(device, threads),
                listen=nested.jobs,
            )  # fmt: skip
    record = swept.record
    if as_json:
        emit_json(record.model_dump(mode="json"))
    else:
        import sys

        emit(as_markdown(record) if sys.stdout.isatty() else as_csv(record))
    reused = f", {swept.n_reused} evaluations were there already" if swept.n_reused else ""
    run.say(f"wrote {out}: sweep.md, sweep.csv, sweep.json; {len(record.cells)} cells{reused}")
    outcomes = (*record.rivals, *(cell.outcome for cell in record.cells))
    failed = [outcome for outcome in outcomes if outcome.failure is not None]
    for outcome in failed:
        _say_failure(outcome)
    if failed:
        run.say(f"next: the same again; only the {len(failed)} that failed are done again")
    return exit_codes.NO if failed else exit_codes.DONE


def _grid(sweep: tuple[str, tuple[float | int, ...]], given: dict[str, Any]) -> "Grid":
    if given["target"] is None:
        refuse("--sweep needs --target, for instance Wi,Wh")
    with usage_errors():
        from ckptshrink.evaluation.grid import Grid
        from ckptshrink.planning.request import DEFAULT_METHOD

        more = {n: given[n] for n in ("grouping", "dtype") if given[n] is not None}
        return Grid(*sweep, given["target"], given["method"] or (DEFAULT_METHOD,), more)


def _show(document: "Evaluation") -> None:
    from ckptshrink.evaluation.rows import FIELDS, rows_of
    from ckptshrink_cli import render

    rows = [
        {"model": outcome.model.name, "role": outcome.role} | row
        for outcome in document.outcomes
        for row in rows_of(outcome)
    ]
    columns = (
        render.Column("model", lambda r: r["model"]),
        render.Column("metric", lambda r: r["metric"] or "failed"),
        render.Column("value", lambda r: _value(r["value"], r["unit"]), True),
        render.Column("±", lambda r: _value(r["stderr"], r["unit"]), True),
        render.Column("n", lambda r: "" if r["n"] is None else render.count(r["n"]), True, True),
        render.Column("change", lambda r: _change(r["difference"], r["unit"]), True),
        render.Column("parameters", lambda r: _count(r["n_params_model"]), True),
        render.Column("bytes", lambda r: render.size(r["nbytes"]), True, True),
        render.Column("E(r) lstm", lambda r: _short(r["efficiency_lstm"]), True),
        render.Column("E(r) model", lambda r: _short(r["efficiency_model"]), True),
    )
    render.show(rows, ("model", "role", *FIELDS), columns)


def _value(value: float | None, unit: str | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if unit == "fraction" else f"{value:.5g}"


def _change(value: float | None, unit: str | None) -> str:
    if value is None:
        return ""
    return f"{100 * value:+.2f} pp" if unit == "fraction" else f"{value:+.4g}"


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _summary(document: "Evaluation") -> Iterator[str]:
    """Yield what the numbers stand on."""
    data = document.data
    if data is not None:
        yield f"{document.task} on {data.name} (sha256 {data.sha256[:16]}…), seed {document.seed}"
    for outcome in document.outcomes:
        yield from (f"note: {outcome.model.name}: {note}" for note in outcome.notes)
    if document.baseline is not None:
        yield (
            "E(r): loss relative to the baseline / share of parameters gone, of the recurrent "
            "layers (lstm) or of all that ran (model); smaller is better"
        )


def _say_failure(outcome: "Outcome") -> None:
    from ckptshrink.evaluation.gate.github import inert
    from ckptshrink_cli.gate_text import say_log
    from ckptshrink_cli.streams import say

    if outcome.failure is not None:
        say(f"failed: {outcome.model.name}: {inert(outcome.failure.reason)}")
        say_log(outcome)
