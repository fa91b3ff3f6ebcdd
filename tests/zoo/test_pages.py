"""The pages of a zoo: what they say, where their links lead, and what no name can do to them."""

import base64
import hashlib
import os
import weakref
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

import pytest

from ckptshrink.errors import printable
from ckptshrink.evaluation.document import Change
from ckptshrink.evaluation.gate.verdict import Check, Rule, Settings, Verdict
from ckptshrink.evaluation.metrics import metric
from ckptshrink.manifest import Manifest, read_manifest
from ckptshrink.zoo.jobs import Job, jobs_of
from ckptshrink.zoo.pages import index_lines, report_page
from ckptshrink.zoo.pages.markup import href, text
from ckptshrink.zoo.records import (
    PAGE,
    Failed,
    Gated,
    Record,
    Scored,
    Size,
    read_record,
    row_of,
)
from ckptshrink.zoo.settings import read_zoo
from ckptshrink.zoo.summary import Summary
from ckptshrink.zoo.work import Order, work

VOID = {"meta", "link", "br", "wbr", "input", "img", "hr"}

TAGS = {
    "html", "head", "meta", "title", "style", "script", "body", "header", "nav", "main", "section",
    "h1", "h2", "h3", "p", "a", "ul", "li", "dl", "dt", "dd", "div", "span", "small", "code", "bdi",
    "wbr", "table", "thead", "tbody", "tr", "th", "td", "fieldset", "legend", "label", "input",
    "output",
}  # fmt: skip

HOSTILE = {
    "element": "<img src=x onerror=alert(1)>",
    "script": "</script><script>alert(1)</script>",
    "leaves title and style": "</title></style><base href=//evil.example>",
    "double quote": '" onmouseover="alert(1)',
    "single quote": "' onmouseover='alert(1)",
    "scheme": "javascript:alert(1)",
    "data": "data:text/html,<script>alert(1)</script>",
    "host": "//evil.example/x",
    "entity": "&lt;b&gt; &amp;amp; &#x3c;",
    "comment": "<!-- --> ]]> <![CDATA[",
    "right to left": "lm\u202egnp.\u2066tp",
    "controls": "a\nb\tc\x00d\x1b[31m\x7f\u2028e",
    "surrogates": "\udce9 and \ud800",
    "percent": "50%2e%2e%2f?a=b#c",
    "backslash": "..\\..\\x",
    "Arabic": "نموذج لغة.pt",
    "empty": "",
    "long": "x" * 10_000,
    "long with breaks": "a/_." * 2_500,
}


class Page(HTMLParser):
    """A page taken apart; it fails at whatever is not well-formed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.links: list[str] = []
        self.metas: dict[str, str] = {}
        self.inline: dict[str, str] = {"script": "", "style": ""}
        self.pieces: list[str] = []
        self.cells: list[list[int]] = []
        page.encode("utf-8")  # no lone surrogate
        assert page.startswith("<!doctype html>\n")
        assert all(c.isprintable() or c == "\n" for c in page)
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        names = tuple(name for name, _ in attrs)
        assert len(set(names)) == len(names)
        assert not any(name.startswith("on") or name in {"style", "src"} for name in names)
        found = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag != "wbr":
            self.tags.append((tag, names))
        if tag == "a":
            self.links.append(found["href"] or "")
        if tag == "meta":
            self.metas[found.get("http-equiv") or found.get("name") or "charset"] = (
                found.get("content") or found.get("charset") or ""
            )
        if tag == "table":
            self.cells.append([])
        if tag == "tr":
            self.cells[-1].append(0)
        if tag in {"td", "th"}:
            self.cells[-1][-1] += 1
            assert tag == "td" or found.get("scope") in {"row", "col"}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in self.inline:
            self.inline[self.open[-1]] += data
        else:
            self.pieces.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)

    @property
    def text(self) -> str:
        """What can be read on it."""
        return "".join(self.pieces)

    def check(self) -> None:
        """Fail where it is not what every page is."""
        for tag in ("title", "h1", "main"):
            assert [name for name, _ in self.tags].count(tag) == 1
        assert ("html", ("lang",)) in self.tags
        assert self.metas["charset"] == "utf-8"
        assert "width=device-width" in self.metas["viewport"]
        policy = dict(
            part.strip().split(" ", 1) for part in self.metas["Content-Security-Policy"].split(";")
        )
        assert policy.pop("default-src") == policy.pop("base-uri") == "'none'"
        assert policy.pop("form-action") == "'none'"
        for kind, content in self.inline.items():
            digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
            assert policy.pop(f"{kind}-src") == f"'sha256-{digest}'"
        assert not policy
        for rows in self.cells:
            assert len(set(rows)) == 1
        for url in self.links:
            assert url.startswith(("./", "../"))
            assert not any(urlsplit(url)[i] for i in (0, 1, 3, 4))


def page_of(page: str) -> Page:
    found = Page(page)
    found.check()
    return found


ODD = "<img src=x onerror=alert(1)> \"'&amp; #50%2e?.pt"


class Batch:
    """A real batch: good, not good enough, broken, and under names that are hard to link to."""

    def __init__(self, folder: Path, fixtures: Path) -> None:
        model = (fixtures / "torch" / "awd_lstm_state.zip.pt").read_bytes()
        names = [b"good/lm.pt", b"poor/lm.pt", b"odd/" + ODD.encode()]
        names += [b"odd/javascript:alert(1).pt", b"odd/caf\xe9.pt"]
        for name in names:
            path = folder / os.fsdecode(name)
            path.parent.mkdir(exist_ok=True)
            try:
                path.write_bytes(model)
            except OSError:  # a file system whose names are text
                assert b"\xe9" in name
        (folder / "broken.pt").write_bytes(b"no checkpoint")
        words = ["<eos>", "<unk>", *(f"w{i}" for i in range(2, 120))]
        (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
        lines = (" ".join(words[2 + (7 * i + j) % 118] for j in range(5)) for i in range(30))
        (folder / "text.txt").write_text("".join(f"{line}\n" for line in lines))
        task = '[model.tasks.lm]\ndata = "text.txt"\nvocab = "vocab.txt"\n'
        (folder / "zoo.toml").write_text(
            '[defaults]\ntarget = "Wh"\nrank = 2\n'
            '[[model]]\npath = ["odd/*.pt", "broken.pt"]\n'
            f'[[model]]\npath = "good/lm.pt"\n{task}'
            '[model.gate.metrics.ppl]\nmax_rise = "900%"\nreason = "a <b>test</b>"\n'
            f'[[model]]\npath = "poor/lm.pt"\n{task}[model.gate.size]\nmax = 0.01\nreason = "x"\n'
        )
        self.out = folder / "out"
        self.jobs = jobs_of(read_zoo(folder / "zoo.toml"), folder, str(self.out))
        for job in self.jobs:
            work(Order(job, str(self.out)))
        self.summary = Summary(self.jobs, self.out)
        self.summary.write()

    def job(self, name: str) -> Job:
        return next(job for job in self.jobs if job.name == name)

    def record(self, name: str) -> Record:
        record = read_record(self.out / self.job(name).reports)
        assert record is not None
        return record

    def manifest(self, name: str) -> Manifest:
        return read_manifest(self.out / self.job(name).artefact)

    def page(self, name: str) -> str:
        return (self.out / self.job(name).reports / PAGE).read_text("utf-8")


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory, fixtures: Path) -> Batch:
    return Batch(tmp_path_factory.mktemp("zoo"), fixtures)


def test_every_link_of_every_page_leads_to_a_file(batch: Batch) -> None:
    pages = [Path(batch.summary.page), *(batch.out / job.reports / PAGE for job in batch.jobs)]
    n = 0
    for page in pages:
        for url in page_of(page.read_text("utf-8")).links:
            place = Path(os.path.normpath(page.parent / os.fsdecode(unquote_to_bytes(url))))
            assert place.is_relative_to(batch.out)
            assert place.exists(), url
            n += 1
    assert n >= 2 + len(batch.jobs) * 4
    assert any("caf%E9" in url for url in page_of(pages[0].read_text()).links) or len(pages) == 6


def test_a_page_says_what_is_known_of_a_good_model(batch: Batch) -> None:
    record, manifest = batch.record("good/lm.pt"), batch.manifest("good/lm.pt")
    said = page_of(batch.page("good/lm.pt")).text
    assert record.status == "done" and record.size is not None
    assert "Done" in said and "it keeps it" in said
    for number in (
        record.size.nbytes_before, record.size.nbytes_after,
        record.size.n_params_before, record.size.n_params_after,
    ):  # fmt: skip
        assert f"{number:,}" in said
    assert "awd-lstm" in said and "torch-zip" in said
    (before,), (after,) = (
        [m for m in found if m.name == "ppl"]
        for found in (record.tasks["lm"].baseline, record.tasks["lm"].metrics)
    )
    assert before.stderr is not None and after.stderr is not None
    assert f"{before.number:.6g} ± {before.stderr:.3g}" in said
    assert f"{after.number:.6g} ± {after.stderr:.3g}" in said
    assert f"{after.number - before.number:+.4g}" in said
    assert "a <b>test</b>" in said  # the reason of the rule
    assert record.gate is not None
    assert all(c.because in said for v in record.gate.verdicts for c in v.checks)
    for tensor in manifest.tensors:
        assert tensor.name in said and tensor.reason in said
    smaller = [t for t in manifest.tensors if t.action == "factorize"]
    assert smaller and f"made smaller ({len(smaller)})" in said
    assert all(f"{t.rel_error:.4g}" in said for t in smaller)


def test_a_page_says_why_a_model_is_not_good_enough(batch: Batch) -> None:
    record = batch.record("poor/lm.pt")
    assert record.status == "not good enough" and record.gate is not None
    head = page_of(batch.page("poor/lm.pt")).text.split("Bytes before")[0]
    assert "Not good enough" in head
    assert record.gate.verdicts[0].checks[0].because in head


def test_a_page_says_what_failed_and_what_to_do_next(batch: Batch) -> None:
    record = batch.record("broken.pt")
    assert record.failed is not None and record.size is None
    said = page_of(batch.page("broken.pt")).text
    assert "Failed: there is no artefact" in said
    assert record.failed.message in said and record.source in said
    assert record.failed.hint is None or record.failed.hint in said
    assert "batch --failed" in said and "while it was compressed" in said
    again = record.model_copy(
        update={"failed": Failed(step="run", message="the worker was lost", transient=True)}
    )
    said = page_of(report_page(again, None)).text
    assert "the next run of the batch tries it again" in said and "--failed" not in said


def test_a_failed_task_is_named_and_what_is_there_is_shown(batch: Batch) -> None:
    record = batch.record("good/lm.pt").model_copy(
        update={"status": "failed", "failed": Failed(step="sst5", message="no data", hint="get it")}
    )
    said = page_of(report_page(record, batch.manifest("good/lm.pt"))).text
    assert "scores missing" in said and "in the task sst5" in said and "get it" in said
    assert "ppl" in said and "made smaller" in said


def test_the_same_record_gives_the_same_bytes(batch: Batch) -> None:
    for job in batch.jobs:
        record = read_record(batch.out / job.reports)
        assert record is not None
        manifest = read_manifest(batch.out / job.artefact) if record.size else None
        assert report_page(record, manifest, job.name) == batch.page(job.name)
    before = Path(batch.summary.page).read_bytes()
    Path(batch.summary.json).unlink()
    assert batch.summary.write()
    assert Path(batch.summary.page).read_bytes() == before


def test_the_index_has_every_model_with_what_is_wrong(batch: Batch) -> None:
    page = page_of(Path(batch.summary.page).read_text("utf-8"))
    for job in batch.jobs:
        assert job.shown in page.text
    failed, poor = batch.record("broken.pt"), batch.record("poor/lm.pt")
    assert failed.failed is not None and failed.failed.message in page.text
    assert row_of(poor)["gate_because"] in page.text
    assert f"{len(batch.jobs)} models" in page.text
    assert page.cells[0][0] == 10 and len(page.cells[0]) == 1 + len(batch.jobs)
    assert "failed (1)" in page.text and "not good enough (1)" in page.text
    assert ("div", ("class", "role", "hidden")) in page.tags  # no filter where no script runs
    assert {"./zoo.json", "./zoo.csv"} <= set(page.links)


def test_a_shard_says_so_and_a_model_without_a_record_has_no_link(
    batch: Batch, tmp_path: Path
) -> None:
    summary = Summary(batch.jobs[:1], tmp_path, shard=(2, 3))
    summary.write()
    page = page_of((tmp_path / "index-2-of-3.html").read_text("utf-8"))
    assert "1 model, shard 2 of 3" in page.text and "there is no record of it" in page.text
    assert page.links == ["./zoo-2-of-3.json", "./zoo-2-of-3.csv"]


def _record(said: str) -> Record:
    """Return a record in which every text is `said`, whatever it is."""
    rule = Rule(kind="max_rise", metric="ppl", amount=1, unit="%")
    rule = rule.model_copy(update={"metric": said, "reason": said})
    check = Check(rule=rule, status="FAIL", loss=2.0, low=1.0, n=7, because="")
    verdict = Verdict(
        status="FAIL", baseline="", candidate="", task="", settings=Settings(),
        checks=(check.model_copy(update={"because": said}),),
    )  # fmt: skip
    verdict = verdict.model_copy(
        update={"baseline": said, "candidate": said, "task": said, "notes": (said,)}
    )
    score = metric("ppl", 2.0, better="lower", n=7, stderr=0.1)
    score = score.model_copy(update={"name": said, "unit": said})
    change = Change(metric="ppl", difference=1.0).model_copy(update={"metric": said})
    scored = Scored(key="", baseline_key="", documents={}, baseline=(), metrics=()).model_copy(
        update={
            "documents": {said: ""}, "baseline": (score,), "metrics": (score,),
            "changes": (change,), "failure": said,
        }
    )  # fmt: skip
    size = Size(
        family="", format="", n_params_before=9, n_params_after=3, nbytes_before=90,
        nbytes_after=30, worst_rel_error=0.5, manifest_sha256="",
    ).model_copy(update={"family": said, "format": said, "worst": said})  # fmt: skip
    failed = Failed(step="x", message="").model_copy(
        update={"step": said, "message": said, "hint": said or "-"}
    )
    return Record(name="", source="", artefact="", status="failed").model_copy(
        update={
            "name": said, "source": said, "artefact": said, "size": size, "failed": failed,
            "tasks": {said: scored}, "gate": Gated(key="", verdicts=()).model_copy(
                update={"verdicts": (verdict,)}
            ),
        }
    )  # fmt: skip


def _manifest(manifest: Manifest, said: str) -> Manifest:
    tensors = tuple(
        tensor.model_copy(
            update={
                "name": said, "role": said or None, "direction": said or None, "method": said,
                "reason": said, "notes": (said,), "of": said, "layer": 1,
            }
        )
        for tensor in manifest.tensors[:4]
    )  # fmt: skip
    source = manifest.source.model_copy(update={"notes": (said,), "file": said})
    tool = manifest.tool.model_copy(update={"version": said, "device": said})
    return manifest.model_copy(update={"tensors": tensors, "source": source, "tool": tool})


@pytest.mark.parametrize("said", HOSTILE.values(), ids=HOSTILE.keys())
def test_no_text_changes_a_report(batch: Batch, said: str) -> None:
    manifest = batch.manifest("good/lm.pt")
    page = page_of(report_page(_record(said), _manifest(manifest, said)))
    plain = page_of(report_page(_record("plain"), _manifest(manifest, "plain")))
    if said:  # without a hint, say, there is no paragraph of it
        assert page.tags == plain.tags
    if len(said) < 100:  # the reason of a rule is one line, whatever is in it
        assert page.text.count(printable(said)) >= plain.text.count("plain") - 1


@pytest.mark.parametrize("said", HOSTILE.values(), ids=HOSTILE.keys())
def test_no_text_changes_the_index(said: str) -> None:
    def index(said: str) -> Page:
        row = row_of(_record(said)) | {"metrics": said, "gate_because": said}
        totals = _totals(2)
        names = (said, "zoo.csv")
        return page_of("".join(index_lines(totals, [(said, row), (None, row)], files=names)))

    page, plain = index(said), index("plain")
    assert page.tags == plain.tags
    if len(said) < 100:
        assert page.text.count(printable(said)) >= plain.text.count("plain")


@pytest.mark.parametrize("said", HOSTILE.values(), ids=HOSTILE.keys())
def test_an_url_leads_to_the_name_and_nowhere_else(said: str) -> None:
    url = href(said)
    assert url == text(url, len(url))  # fit for an attribute
    assert urlsplit(url).path == url and url.startswith("./")
    if "\ud800" not in said:  # which no file is called
        assert unquote_to_bytes(url) == b"./" + os.fsencode(said)


def test_a_long_name_is_shown_by_its_ends() -> None:
    shown = text("begin" + "x" * 10_000 + "end", 100)
    assert len(shown) < 150
    assert shown.startswith("begin") and shown.endswith("end") and "10,008" in shown


def _totals(n: int) -> dict[str, Any]:
    return {
        "n_models": n, "n_done": n, "n_not_good_enough": 0, "n_failed": 0, "nbytes_before": 10 * n,
        "nbytes_after": 4 * n,
    }  # fmt: skip


class Row(dict[str, Any]):
    """A row that can be watched."""

    __hash__ = object.__hash__  # type: ignore[assignment]


def test_an_index_of_50_000_holds_no_more_than_a_row() -> None:
    alive: weakref.WeakSet[Row] = weakref.WeakSet()
    fields = row_of(Record(name="lm.pt", source="", artefact="", status="done"))
    most = 0

    def rows() -> Iterator[tuple[str, Row]]:
        nonlocal most
        for i in range(50_000):
            row = Row(fields)
            alive.add(row)
            most = max(most, len(alive))
            yield f"{i}/lm.pt", row

    pieces = index_lines(_totals(50_000), rows())
    longest = n = 0
    for piece in pieces:
        longest, n = max(longest, len(piece)), n + piece.count("<tr")
    assert n == 50_001
    assert most <= 3
    assert longest < 20_000


def test_a_larger_model_than_its_source_and_an_empty_batch_have_pages(batch: Batch) -> None:
    record = batch.record("good/lm.pt")
    assert record.size is not None
    size = record.size.model_copy(update={"nbytes_before": 10, "nbytes_after": 25})
    page = page_of(report_page(record.model_copy(update={"size": size}), None))
    assert "2.500" in page.text
    empty = _totals(0)
    assert "0 models" in page_of("".join(index_lines(empty, []))).text
    record = record.model_copy(update={"size": size.model_copy(update={"nbytes_before": 0})})
    page_of(report_page(record, None))
