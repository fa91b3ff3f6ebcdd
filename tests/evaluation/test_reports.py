"""A verdict as JUnit, Markdown and workflow commands, whatever the names in it hold."""

import re
import unicodedata
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from ckptshrink.errors import printable
from ckptshrink.evaluation.gate import github, wording
from ckptshrink.evaluation.gate.junit import case_names, junit
from ckptshrink.evaluation.gate.markdown import markdown
from ckptshrink.evaluation.gate.verdict import SIZE, Check, Rule, Settings, Status, Verdict

STATUSES: tuple[Status, ...] = ("PASS", "FAIL", "INCONCLUSIVE")
HOSTILE = (
    "a\x00b",
    "a\nb",
    "a\r\n::error::x",
    "\x1b[31mred\x1b[0m",
    "a|b",
    r"a\|b",
    r"a\\|b",
    "`a`",
    "``",
    "<script>alert(1)</script>",
    "]]>",
    "<!--",
    "&amp;",
    "[x](https://example.org)",
    "@octocat",
    "::set-output name=status::PASS",
    "##[stop-commands]x",
    "%0A::error::x",
    "a: b, c",
    "\ufffe",
    "\u202egnp.exe",
    "ユニコード",
    "*x* _y_ ~z~",
    " padded ",
    "x" * 90,
)
names = st.one_of(st.sampled_from(HOSTILE), st.text(min_size=1))


def check(status: Status = "FAIL", metric: str = "accuracy", **more: Any) -> Check:
    fields: dict[str, Any] = {
        "rule": Rule(kind="max_drop", metric=metric, amount=0.5, unit="pp"),
        "status": status,
        "baseline": 0.52,
        "candidate": 0.499,
        "loss": 2.1,
        "low": 0.93,
        "high": 3.0,
        "method": "McNemar and score test",
        "n": 2210,
        "worse": 120,
        "better": 74,
        "detectable": 1.6,
        "because": "0.5 pp is allowed",
    }
    return Check(**fields | more)


def verdict(*checks: Check, **more: Any) -> Verdict:
    found = {one.status for one in checks}
    status = next(s for s in ("FAIL", "INCONCLUSIVE", "PASS") if s in found)
    fields: dict[str, Any] = {
        "status": status,
        "baseline": "elmo.hdf5",
        "candidate": "elmo.shrunk",
        "task": "sst5",
        "checks": checks,
        "settings": Settings(),
    }
    return Verdict(**fields | more)


checks = st.builds(check, st.sampled_from(STATUSES), names, because=names)
verdicts = st.builds(
    lambda several, one, other, task: verdict(
        *several, baseline=one, candidate=other, task=task, notes=(one,)
    ),
    st.lists(checks, min_size=1, max_size=6),
    names, names, names,
)  # fmt: skip


# JUnit ------------------------------------------------------------------------------------------

_ATTRIBUTES = {
    "testsuites": {"name", "tests", "failures", "errors", "time", "disabled"},
    "testsuite": {
        "name", "tests", "failures", "errors", "skipped", "time", "timestamp", "hostname", "id",
        "package", "disabled",
    },
    "testcase": {"name", "classname", "time", "assertions", "status"},
    "failure": {"type", "message"},
    "error": {"type", "message"},
}  # fmt: skip
"""What the schema that Jenkins publishes allows on each element."""

_CHILDREN = {
    "testsuites": {"testsuite"},
    "testsuite": {"testcase"},
    "testcase": {"failure", "error"},
    "failure": set(),
    "error": set(),
}


def read_junit(data: bytes) -> list[ET.Element]:
    """Read as a server does: check the structure and the sums, and return the cases."""
    root = ET.fromstring(data)
    assert root.tag == "testsuites"
    for element in root.iter():
        assert set(element.attrib) <= _ATTRIBUTES[element.tag]
        assert {child.tag for child in element} <= _CHILDREN[element.tag]
    (suite,) = root
    cases = list(suite)
    for parent in (root, suite):
        assert int(parent.attrib["tests"]) == len(cases)
        assert int(parent.attrib["failures"]) == len(root.findall(".//failure"))
        assert int(parent.attrib["errors"]) == len(root.findall(".//error"))
    assert all({"name", "classname"} <= set(case.attrib) and len(case) <= 1 for case in cases)
    assert all(
        one.text and {"type", "message"} == set(one.attrib) for case in cases for one in case
    )
    return cases


def test_a_junit_case_for_each_rule_green_only_where_it_passed() -> None:
    found = verdict(check("PASS", "f1"), check("FAIL", "em"), check("INCONCLUSIVE", "accuracy"))
    cases = read_junit(junit(found))
    assert [case.attrib["name"] for case in cases] == [
        "sst5: elmo.shrunk: f1", "sst5: elmo.shrunk: em", "sst5: elmo.shrunk: accuracy",
    ]  # fmt: skip
    assert [[child.tag for child in case] for case in cases] == [[], ["failure"], ["error"]]
    assert cases[2][0].attrib["type"] == "inconclusive"
    assert b"skipped>" not in junit(found)


def test_the_text_of_a_failed_case_has_the_numbers_and_the_reason_of_its_rule() -> None:
    rule = Rule(kind="max_drop", metric="em", amount=0.5, unit="pp", reason="the\n SLA allows it")
    (case,) = read_junit(junit(verdict(check("FAIL", "em", rule=rule))))
    assert (case[0].text or "").splitlines() == [
        "FAIL: em fell by 2.1 pp: 0.5 pp is allowed",
        "baseline: 0.52",
        "candidate: 0.499",
        "loss: 2.1 pp",
        "interval: 0.93 to 3 pp",
        "allowed: 0.5 pp lower",
        "examples: 2210",
        "smallest loss that would show: 1.6 pp",
        "decided by: McNemar and score test",
        "reason of the rule: the SLA allows it",
    ]


def test_names_of_cases_stay_the_same_from_run_to_run() -> None:
    one = verdict(check("FAIL", loss=2.0), check("PASS", SIZE))
    other = verdict(check("PASS", loss=0.1), check("PASS", SIZE))
    assert case_names(one) == case_names(other)


def test_two_rules_for_one_metric_are_two_cases() -> None:
    same = check("FAIL")
    rise = check("FAIL", rule=Rule(kind="max_rise", metric="accuracy", amount=1))
    assert case_names(verdict(same, rise, rise, same)) == (
        "sst5: elmo.shrunk: accuracy",
        "sst5: elmo.shrunk: accuracy (max_rise)",
        "sst5: elmo.shrunk: accuracy (max_rise) 2",
        "sst5: elmo.shrunk: accuracy (max_drop)",
    )


@given(verdicts)
def test_junit_is_well_formed_and_complete_whatever_the_names(found: Verdict) -> None:
    cases = read_junit(junit(found))
    seen = [case.attrib["name"] for case in cases]
    assert len(set(seen)) == len(seen) == len(found.checks)
    assert all(text.isprintable() for text in seen)
    tags = {"PASS": [], "FAIL": ["failure"], "INCONCLUSIVE": ["error"]}
    for case, one in zip(cases, found.checks, strict=True):
        assert [child.tag for child in case] == tags[one.status]


# Markdown ---------------------------------------------------------------------------------------


def table_of(text: str) -> list[list[str]]:
    """Split the cells of a GFM table as cmark-gfm does: at bars with no backslash before them."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in lines)
    return [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]


def test_markdown_has_a_row_for_each_rule_and_a_line_for_what_did_not_pass() -> None:
    rule = Rule(kind="max_rise", metric="ppl", amount=2, unit="%", reason="see issue 7")
    found = verdict(check("PASS", "ppl", rule=rule, loss=0.31), check("FAIL"))
    text = markdown(found)
    assert text.startswith("### ckptshrink gate: FAIL\n\n`elmo.shrunk` beside `elmo.hdf5` on ")
    header, _, ppl, accuracy = table_of(text)
    assert [cell.strip() for cell in ppl[:2]] == ["PASS", "`ppl`"]
    assert [cell.strip() for cell in accuracy] == [
        "FAIL", "`accuracy`", "0.52", "0.499", "2.1 pp", "0.93 to 3 pp", "0.5 pp lower", "2,210",
        "1.6 pp",
    ]  # fmt: skip
    assert len(header) == len(ppl) == len(accuracy)
    assert "\n- FAIL: accuracy fell by 2.1 pp: 0.5 pp is allowed\n" in text
    assert "\n- `ppl`, 2 % higher: see issue 7\n" in text
    assert "- PASS" not in text


def test_markdown_says_how_sure_the_gate_is() -> None:
    text = markdown(verdict(check("PASS"), settings=Settings(alpha=0.1, alarm=0.002)))
    assert "the lower end of its interval at 99.8 % confidence" in text
    assert "the upper end at 90 %" in text


_OWN = {
    "heading_open", "heading_close", "paragraph_open", "paragraph_close", "inline", "text",
    "code_inline", "html_inline", "bullet_list_open", "bullet_list_close", "list_item_open",
    "list_item_close", "table_open", "table_close", "thead_open", "thead_close", "tbody_open",
    "tbody_close", "tr_open", "tr_close", "th_open", "th_close", "td_open", "td_close",
}  # fmt: skip
"""What a report is made of: no link, image, emphasis, quote, rule, fence or block of HTML."""


@given(verdicts)
def test_markdown_is_its_own_markup_and_the_names_as_text(found: Verdict) -> None:
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown(found))
    inner = [child for token in tokens for child in token.children or ()]
    assert {token.type for token in (*tokens, *inner)} <= _OWN
    html = {token.content for token in inner if token.type == "html_inline"}
    assert html <= {"<code>", "</code>", "<!-- -->"}
    assert sum(token.type == "heading_open" for token in tokens) == 1
    assert sum(token.type == "tr_open" for token in tokens) == 1 + len(found.checks)
    # what is read is what the names are, mentions aside
    plain = "".join(t.content for t in inner if t.type in {"text", "code_inline"})
    for one in found.checks:
        assert printable(one.rule.metric) in plain
    assert printable(found.candidate) in plain
    assert not any(token.type == "text" and re.search("@.", token.content) for token in inner)


# Workflow commands ------------------------------------------------------------------------------


def parse_command(line: str) -> tuple[str, dict[str, str], str]:
    """Parse a workflow command as the runner does."""
    assert line.startswith("::")
    info, separator, data = line[2:].partition("::")
    assert separator
    name, _, rest = info.partition(" ")

    def plain(text: str, codes: dict[str, str]) -> str:
        for code, character in codes.items():
            text = text.replace(code, character)
        return text.replace("%25", "%")

    lines = {"%0D": "\r", "%0A": "\n"}
    properties = dict(pair.split("=", 1) for pair in rest.split(",") if pair)
    return (
        name,
        {k: plain(v, lines | {"%3A": ":", "%2C": ","}) for k, v in properties.items()},
        plain(data, lines),
    )


def runner_would_obey(line: str) -> bool:
    """Return whether a runner takes a line for a command: it tries both forms."""
    return line.lstrip().startswith("::") or "##[" in line


def test_a_failure_is_an_error_and_what_stays_open_a_warning() -> None:
    found = verdict(check("PASS", "f1"), check("INCONCLUSIVE", "em"), check("FAIL"))
    assert github.annotations(found) == (
        "::error title=FAIL%3A elmo.shrunk accuracy::accuracy fell by 2.1 pp: 0.5 pp is allowed",
        "::warning title=INCONCLUSIVE%3A elmo.shrunk em::em fell by 2.1 pp: 0.5 pp is allowed",
    )


def test_a_pass_is_one_notice() -> None:
    found = verdict(check("PASS"), check("PASS", SIZE))
    assert github.annotations(found) == (
        "::notice title=PASS%3A elmo.shrunk::PASS: elmo.shrunk keeps all 2 rules",
    )


def test_at_most_ten_annotations_of_a_kind_and_the_last_says_how_many_there_are_more() -> None:
    def of(n: int) -> list[tuple[str, dict[str, str], str]]:
        failed = [check("FAIL", f"metric {i}") for i in range(n)]
        open_ = [check("INCONCLUSIVE", f"other {i}") for i in range(n)]
        return list(map(parse_command, github.annotations(verdict(*failed, *open_))))

    assert [kind for kind, _, _ in of(10)] == ["error"] * 10 + ["warning"] * 10
    many = of(37)
    assert [kind for kind, _, _ in many] == ["error"] * 10 + ["warning"] * 10
    assert many[9][2].startswith("28 more rules are FAIL")
    assert many[19][2].startswith("28 more rules are INCONCLUSIVE")


@given(verdicts)
def test_annotations_are_one_command_a_line_whatever_the_names(found: Verdict) -> None:
    lines = github.annotations(found)
    kinds = []
    for line in lines:
        assert line.isprintable()  # and so has no end of a line in it
        kind, properties, message = parse_command(line)
        kinds.append(kind)
        assert set(properties) == {"title"}
        assert properties["title"].startswith(f"{found.status}: ") or kind == "warning"
        assert message
    n_failed = sum(one.status == "FAIL" for one in found.checks)
    n_open = sum(one.status == "INCONCLUSIVE" for one in found.checks)
    passed = found.status == "PASS"
    assert kinds == ["error"] * n_failed + ["warning"] * n_open + ["notice"] * passed


def test_percent_signs_and_separators_survive_the_way_through_the_runner() -> None:
    found = verdict(check(metric="100%: a, b", because="1%: a, b"), candidate="x,y:z")
    kind, properties, message = parse_command(github.annotations(found)[0])
    assert (kind, properties, message) == (
        "error", {"title": "FAIL: x,y:z 100%: a, b"}, "100%: a, b fell by 2.1 pp: 1%: a, b"
    )  # fmt: skip


@given(names)
def test_an_inert_line_is_no_command(name: str) -> None:
    for line in (name, f"  {name}", f"FAIL: {name}", f"::{name}", f"{name}##[{name}]"):
        assert not any(map(runner_would_obey, github.inert(line).splitlines()[:1]))


def test_lines_without_a_command_stay_as_they_are() -> None:
    for line in ("", "ppl\t61.2", "a::b", "# #[x]", "FAIL: accuracy"):
        assert github.inert(line) == line


def test_the_summary_is_the_whole_markdown_where_it_fits() -> None:
    found = verdict(check())
    text = markdown(found)
    assert github.summary(found) == text
    assert github.summary(found, len(text.encode())) == text


def test_a_summary_without_room_drops_what_passed_first_and_says_so() -> None:
    passed = [check("PASS", f"p{i}") for i in range(300)]
    found = verdict(*passed, check("INCONCLUSIVE", "open"), check("FAIL", "failed"))
    text = github.summary(found, 6_000)
    assert len(text.encode()) <= 6_000
    rows = [[cell.strip() for cell in row[:2]] for row in table_of(text)[2:]]
    assert rows[:3] == [["FAIL", "`failed`"], ["INCONCLUSIVE", "`open`"], ["PASS", "`p0`"]]
    assert f"{302 - len(rows)} of 302 rules are left out here." in text
    more = github.summary(found, 6_000 + 200)
    assert len(table_of(more)) > len(table_of(text))  # as many as there is room for


@given(verdicts, st.integers(0, 4_000))
def test_a_summary_never_takes_more_room_than_there_is(found: Verdict, room: int) -> None:
    text = github.summary(found, room)
    assert len(text.encode()) <= room
    assert text == "" or text.startswith(f"### ckptshrink gate: {found.status}\n")


def test_a_thousand_rules_with_long_names_fit_into_a_step() -> None:
    found = verdict(*(check("FAIL", f"{i}" + "ß*" * 500) for i in range(1_000)))
    assert len(markdown(found).encode()) > 1 << 20
    text = github.summary(found)
    assert 900_000 < len(text.encode()) < 1 << 20


def test_the_output_is_the_status_alone() -> None:
    assert [github.output(verdict(check(status))) for status in STATUSES] == [
        "status=PASS\n", "status=FAIL\n", "status=INCONCLUSIVE\n",
    ]  # fmt: skip


# Words ------------------------------------------------------------------------------------------


def test_sentences_say_what_did_not_pass_the_worst_first() -> None:
    found = verdict(check("PASS", "f1"), check("INCONCLUSIVE", "em"), check("FAIL"))
    assert wording.sentences(found) == (
        "FAIL: accuracy fell by 2.1 pp: 0.5 pp is allowed",
        "INCONCLUSIVE: em fell by 2.1 pp: 0.5 pp is allowed",
    )
    alone = verdict(check("PASS", loss=-0.1, because="so be it"))
    assert wording.sentences(alone) == ("PASS: accuracy rose by 0.1 pp: so be it",)


@pytest.mark.parametrize(
    ("kind", "loss", "said"),
    [
        ("max_drop", 2.0, "m fell by 2 %: x"),
        ("max_drop", -2.0, "m rose by 2 %: x"),
        ("max_rise", 2.0, "m rose by 2 %: x"),
        ("max_rise", -2.0, "m fell by 2 %: x"),
        ("max_rise", 0.0, "m did not change: x"),
        ("max_rise", None, "m: x"),
        ("max_size", 0.4, "m: x"),
    ],
)
def test_a_sentence_says_which_way_the_metric_went(
    kind: Any, loss: float | None, said: str
) -> None:
    rule = Rule(kind=kind, metric="m", amount=1, unit="%")
    assert wording.because(check(rule=rule, loss=loss, because="x")) == said


@pytest.mark.parametrize("amount", [0.5, 1e-9, 40.0, 0.1 + 0.2])
def test_a_loss_next_to_the_limit_never_looks_like_it(amount: float) -> None:
    rule = Rule(kind="max_drop", metric="m", amount=amount)
    for shift in (1 + 1e-15, 1 - 1e-15, 1 + 1e-6, 1):
        near = check(rule=rule, loss=amount * shift)
        assert near.loss == amount or float(wording.loss(near)) != amount
    assert wording.loss(check(rule=rule, loss=amount)) == f"{amount:.3g}"


def test_numbers_that_are_not_there_are_not_made_up() -> None:
    bare = Check(rule=check().rule, status="FAIL", because="accuracy is missing")
    assert wording.value(bare, None) == "-"
    assert (wording.loss(bare), wording.interval(bare), wording.detectable(bare)) == ("", "", "")
    assert wording.interval(check(high=None)) == "above 0.93 pp"
    assert wording.interval(check(low=None)) == "below 3 pp"
    data = junit(verdict(bare)).decode()
    assert "loss" not in data
    assert "nan" not in data.lower()


def test_a_size_is_said_in_bytes_and_as_a_share() -> None:
    rule = Rule(kind="max_size", metric=SIZE, amount=0.4)
    size = check("PASS", SIZE, rule=rule, baseline=374434792, candidate=121000000, loss=0.3231)
    assert wording.value(size, size.baseline) == "374,434,792 bytes"
    assert (wording.loss(size), wording.allowed(rule)) == ("0.323", "0.4 of its bytes")


def test_no_text_that_people_read_holds_a_control_character() -> None:
    for name in HOSTILE:
        found = verdict(check(metric=name, because=name), candidate=name, task=name)
        for line in (*wording.sentences(found), *github.annotations(found), *case_names(found)):
            assert not any(unicodedata.category(c) in {"Cc", "Cf", "Cs", "Cn"} for c in line)
