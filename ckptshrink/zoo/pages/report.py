"""The page of one model."""

from collections.abc import Iterator
from typing import Final

from ckptshrink.evaluation.document import Change
from ckptshrink.evaluation.gate import wording
from ckptshrink.evaluation.gate.verdict import Check, Verdict
from ckptshrink.evaluation.metrics import Metric
from ckptshrink.io.staging import MANIFEST
from ckptshrink.manifest import Manifest, TensorRecord
from ckptshrink.tensors import size
from ckptshrink.zoo.jobs import SHRUNK
from ckptshrink.zoo.pages.markup import (
    Cell,
    Column,
    code,
    document,
    facts,
    link,
    name,
    row,
    table,
    text,
)
from ckptshrink.zoo.pages.words import (
    MARKS,
    NONE,
    counted,
    error,
    error_cell,
    marked,
    ratio,
    status_cell,
    with_bar,
)
from ckptshrink.zoo.records import LOG, RECORD, Failed, Record, Scored

INDEX: Final = "index.html"
_CARD: Final = "README.md"

_STEPS: Final = {
    "read": "while its source was read",
    "compress": "while it was compressed",
    "verify": "while its artefact was checked against its source",
    "gate": "while its gate was decided",
    "run": "in the process that worked on it",
}


def report_page(record: Record, manifest: Manifest | None, place: str | None = None) -> str:
    """Return the page of one model, for whoever decides whether the smaller one ships.

    Parameters
    ----------
    record : Record
    manifest : Manifest or None
        Of its artefact, where there is one.
    place : str, optional
        The name of the model as the output's folders have it; by default as the record shows it,
        which differs where a name is no text.
    """
    return "".join(document(f"{record.name}: {record.status}", _report(record, manifest, place)))


def _report(record: Record, manifest: Manifest | None, place: str | None) -> Iterator[str]:
    folder = record.name if place is None else place
    root = "../" * (folder.count("/") + 2)  # out of reports/NAME
    yield (
        f"<header>\n<nav>{link(root + INDEX, 'All models')}</nav>\n"
        f"<h1>{name(record.name, 2_000)}</h1>\n</header>\n<main>\n"
    )
    yield from _status(record)
    yield from _sizes(record)
    for task, scored in record.tasks.items():
        yield from _task(task, scored)
    if record.gate is not None:
        yield "<h2>Gate</h2>\n"
        for verdict in record.gate.verdicts:
            yield from _verdict(verdict)
        if record.gate.verdicts:
            yield _confidence(record.gate.verdicts[0])
    if manifest is not None:
        yield from _tensors(manifest)
        yield from _notes(manifest)
    yield from _made(record, manifest)
    yield from _files(record, root + folder + SHRUNK)
    yield "</main>\n"


def _status(record: Record) -> Iterator[str]:
    """Yield what became of the model, in words, and what to do about it."""
    mark, word = MARKS[record.status]
    headline = f'<h2 class="mark {mark}">{word}'
    yield f'<section class="status {mark}">\n'
    failed = record.failed
    if failed is not None:
        yield f"{headline}: {_missing(record, failed)}</h2>\n"
        yield facts(_failure(record, failed))
    elif record.status == "not good enough":
        yield f"{headline}</h2>\n"
        said = [_said(verdict) for verdict in _verdicts(record) if verdict.status != "PASS"]
        yield f"<ul>\n{''.join(said)}</ul>\n"
    else:
        yield f"{headline}</h2>\n<p>{_success(record)}</p>\n"
    yield "</section>\n"


def _missing(record: Record, failed: Failed) -> str:
    if record.size is None:
        return "there is no artefact"
    return "its gate is not decided" if failed.step == "gate" else "there are scores missing"


def _failure(record: Record, failed: Failed) -> Iterator[tuple[str, str]]:
    where = _STEPS.get(failed.step)
    if failed.step in record.tasks or where is None:
        where = f"in the task {code(failed.step)}"
    yield "What", text(failed.message)
    yield "Where", f"{where}; the source is {code(record.source)}"
    if failed.hint:
        yield "Hint", text(failed.hint)
    if failed.transient:
        again = "It may go better the next time: the next run of the batch tries it again."
    else:
        again = (
            "It is tried again once its source, its data or its settings have changed; "
            "<code>ckptshrink batch --failed</code> tries it as it is."
        )
    yield "Next", f"{again} All that was said is in {link(LOG, LOG)}."


def _success(record: Record) -> str:
    scored = " and scored" if record.tasks else ""
    if record.gate is None:
        missing = "It has no gate" if record.tasks else "It has no tasks and no gate"
        return (
            f"Compressed, checked against its source{scored}. {missing}: whether it is good enough "
            "is for you to say."
        )
    n = sum(len(verdict.checks) for verdict in record.gate.verdicts)
    return (
        f"Compressed, checked against its source{scored}; its gate has {counted(n, 'rule')}, and "
        f"{'it keeps it' if n == 1 else 'it keeps them all'}."
    )


def _verdicts(record: Record) -> tuple[Verdict, ...]:
    return () if record.gate is None else record.gate.verdicts


def _said(verdict: Verdict) -> str:
    return "".join(
        f"<li>{code(verdict.task)} {text(line)}</li>\n" for line in wording.sentences(verdict)
    )


def _sizes(record: Record) -> Iterator[str]:
    found = record.size
    if found is None:
        return
    before, after = found.nbytes_before, found.nbytes_after
    params = found.n_params_before, found.n_params_after
    worst = ""
    if found.worst is not None:
        worst = f"{error(found.worst_rel_error)}<small>{code(found.worst)}</small>"
    yield "<h2>Size</h2>\n"
    yield facts(
        (
            (
                "Bytes before → after",
                f"{size(before)} → {size(after)}<small>{before:,} → {after:,}</small>",
            ),
            ("After / before", with_bar(ratio(before, after), before, after)),
            (
                "Parameters before → after",
                f"{params[0]:,} → {params[1]:,}<small>{ratio(*params)} of them</small>",
            ),
            ("Largest relative error", worst or NONE),
            ("Family", f"{text(found.family) or NONE}<small>{text(found.format)}</small>"),
        ),
        "tiles",
    )


_METRIC_COLUMNS: Final = (
    Column("Metric", "row"),
    Column("Better", "word"),
    Column("Source ± standard error", "number"),
    Column("Smaller ± standard error", "number"),
    Column("Difference", "number"),
    Column("Relative loss", "number"),
    Column("Unit", "word"),
    Column("n", "number"),
)


def _task(task: str, scored: Scored) -> Iterator[str]:
    yield f"<h2>Task {code(task)}</h2>\n"
    before = {metric.name: metric for metric in scored.baseline}
    after = {metric.name: metric for metric in scored.metrics}
    changes = {change.metric: change for change in scored.changes}
    if not before and not after:
        return
    rows = (
        row(_METRIC_COLUMNS, _metric_cells(before.get(key), after.get(key), changes.get(key)))
        for key in before | after
    )
    yield from table(_METRIC_COLUMNS, rows, f"Scores of the task {task}")
    yield (
        '<p class="faint">A positive relative loss is worse. n is how many examples a score is of.'
        "</p>\n"
    )


def _metric_cells(
    before: Metric | None, after: Metric | None, change: Change | None
) -> Iterator[Cell | str]:
    either = after or before
    if either is None:  # no name is in neither
        raise ValueError("no metric")
    yield code(either.name)
    yield text(either.better)
    yield _score(before)
    yield _score(after)
    difference = None if change is None else change.difference
    loss = None if change is None else change.relative_loss
    yield NONE if difference is None else Cell(f"{difference:+.4g}", difference)
    yield NONE if loss is None else Cell(f"{100 * loss:+.3g} %", loss)
    yield "" if either.unit == "1" else text(either.unit)
    counts = {m.n: None for m in (before, after) if m is not None and m.n is not None}
    yield Cell(" / ".join(f"{n:,}" for n in counts), either.n)


def _score(metric: Metric | None) -> Cell | str:
    if metric is None:
        return NONE
    error = "" if metric.stderr is None else f" ± {metric.stderr:.3g}"
    return Cell(f"{metric.number:.6g}{error}", metric.value)


_CHECK_COLUMNS: Final = (
    Column("Status", "word"),
    Column("Metric", "row"),
    Column("Source", "number"),
    Column("Smaller", "number"),
    Column("Loss", "number"),
    Column("Interval", "number"),
    Column("Allowed", "word"),
    Column("n", "number"),
    Column("Why this status", "long"),
    Column("Why so much is allowed", "long"),
)


def _verdict(verdict: Verdict) -> Iterator[str]:
    yield f"<h3>{marked(verdict.status)} on {code(verdict.task)}</h3>\n"
    rows = (row(_CHECK_COLUMNS, _check_cells(check)) for check in verdict.checks)
    yield from table(_CHECK_COLUMNS, rows, f"Gate on {verdict.task}")
    if verdict.notes:
        yield f"<ul>\n{''.join(f'<li>{text(note)}</li>' for note in verdict.notes)}</ul>\n"


def _check_cells(check: Check) -> Iterator[Cell | str]:
    yield status_cell(check.status)
    yield code(check.rule.metric)
    yield Cell(text(wording.value(check, check.baseline)), check.baseline)
    yield Cell(text(wording.value(check, check.candidate)), check.candidate)
    yield Cell(text(wording.loss(check)), check.loss)
    yield text(wording.interval(check))
    yield text(wording.allowed(check.rule))
    yield Cell("" if check.n is None else f"{check.n:,}", check.n)
    yield text(check.because)
    yield text(wording.reason(check))


def _confidence(verdict: Verdict) -> str:
    sure, likely = (100 * (1 - p) for p in (verdict.settings.alarm, verdict.settings.alpha))
    return (
        '<p class="faint">A positive loss is worse. It is above the lower end of its interval at '
        f"{sure:.6g} % confidence, which FAIL goes by, and below the upper end at {likely:.6g} %, "
        "which PASS goes by.</p>\n"
    )


_SMALLER_COLUMNS: Final = (
    Column("Tensor", "row"),
    Column("Role", "word"),
    Column("Layer", "word"),
    Column("Shape", "word"),
    Column("What became of it", "word"),
    Column("Rank", "number"),
    Column("Parameters before", "number"),
    Column("Parameters after", "number"),
    Column("Relative error", "number"),
    Column("Why", "long"),
)

_OTHER_COLUMNS: Final = tuple(c for c in _SMALLER_COLUMNS if c.title != "Rank")

_FATES: Final = {
    "keep": "stayed as it was",
    "tied": "tied: stored once",
    "copy": "a copy: stored once",
    "drop": "left out",
}


def _tensors(manifest: Manifest) -> Iterator[str]:
    smaller = [each for each in manifest.tensors if each.action == "factorize"]
    others = [each for each in manifest.tensors if each.action != "factorize"]
    for title, columns, records in (
        ("Tensors that were made smaller", _SMALLER_COLUMNS, smaller),
        ("Other tensors", _OTHER_COLUMNS, others),
    ):
        yield f"<h2>{title} ({len(records):,})</h2>\n"
        if records:
            rows = (row(columns, _tensor_cells(each)) for each in records)
            yield from table(columns, rows, title, sortable=True)


def _tensor_cells(record: TensorRecord) -> Iterator[Cell | str]:
    smaller = record.action == "factorize"
    yield code(record.name)
    yield text(record.role or "")
    layer = [] if record.layer is None else [str(record.layer)]
    yield Cell(text(" ".join([*layer, *filter(None, [record.direction])])), record.layer)
    yield " × ".join(f"{n:,}" for n in record.shape) or "scalar"
    if smaller:
        yield text(record.method or "factorized")
        yield "" if record.rank is None else Cell(f"{record.rank:,}", record.rank)
    else:
        yield _FATES[record.action]
    yield Cell(f"{record.n_params_before:,}", record.n_params_before)
    yield Cell(f"{record.n_params_after:,}", record.n_params_after)
    yield error_cell(record.rel_error)
    yield "; ".join(text(each) for each in (record.reason, *record.notes) if each)


def _notes(manifest: Manifest) -> Iterator[str]:
    notes = manifest.source.notes
    if notes:
        yield f"<h2>Notes</h2>\n<ul>\n{''.join(f'<li>{text(note)}</li>' for note in notes)}</ul>\n"


def _made(record: Record, manifest: Manifest | None) -> Iterator[str]:
    yield "<h2>How it was made</h2>\n"
    pairs = [("Source", code(record.source, 2_000))]
    if manifest is not None:
        tool, settings = manifest.tool, manifest.settings.model_dump(mode="json")
        pairs += [
            ("SHA-256 of the source", f"<code>{text(manifest.source.sha256)}</code>"),
            ("Settings", text(", ".join(f"{k} {_word(v)}" for k, v in settings.items()))),
            ("By", text(f"{tool.name} {tool.version}, {tool.device}, {tool.threads} thread(s)")),
            ("Plan", f"<code>{text(manifest.plan_digest)}</code>"),
            ("SHA-256 of the manifest", f"<code>{text(manifest.manifest_sha256)}</code>"),
        ]
    attempts = "" if record.attempts == 1 else f", in attempt {record.attempts:,}"
    pairs += [("Last run", f"{record.seconds:,.1f} s{attempts}")]
    yield facts(pairs)


def _files(record: Record, artefact: str) -> Iterator[str]:
    yield "<h2>Files</h2>\n<ul>\n"
    if record.size is not None:
        yield f"<li>{link(artefact + '/', 'The artefact')}: the smaller model, a folder</li>\n"
        for file, what in (
            (_CARD, "its model card"),
            (MANIFEST, "what became of every tensor, and the hash of every file"),
        ):
            yield f"<li>{link(f'{artefact}/{file}', file)}: {what}</li>\n"
    yield f"<li>{link(RECORD, RECORD)}: this page for programs</li>\n"
    yield f"<li>{link(LOG, LOG)}: what was said while it was made</li>\n"
    for task, scored in record.tasks.items():
        for file in scored.documents:
            yield f"<li>{link(file, name(file))}: scores of {code(task)}</li>\n"
    yield "</ul>\n"


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
