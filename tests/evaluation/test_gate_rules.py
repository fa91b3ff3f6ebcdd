"""Rules as people write them, on the command line and in a file."""

from pathlib import Path

import pytest

from ckptshrink.errors import EvaluationInputError, PlanError
from ckptshrink.evaluation.gate.rules import (
    DefaultRule,
    default_rule,
    parse_rule,
    parse_size,
    settled,
    spellings,
)
from ckptshrink.evaluation.gate.table import read_gate_table
from ckptshrink.evaluation.gate.verdict import Rule, Settings
from ckptshrink.evaluation.metrics import metric

ACCURACY = metric("accuracy", 0.8, better="higher", unit="fraction")
PPL = metric("ppl", 65.0, better="lower")


# -- the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "amount", "unit"),
    [
        ("accuracy=0.5pp", "accuracy", 0.5, "pp"),
        ("ppl=2%", "ppl", 2.0, "%"),
        ("f1=0.01", "f1", 0.01, ""),
        ("f1=.01", "f1", 0.01, ""),
        ("loss=0", "loss", 0.0, ""),
        (" bleu = 1e-3 ", "bleu", 0.001, ""),
        ("accuracy=1 pp", "accuracy", 1.0, "pp"),
        ("f1@k=5=0.1", "f1@k=5", 0.1, ""),
    ],
)
def test_rules_as_they_are_typed(text: str, name: str, amount: float, unit: str) -> None:
    rule = parse_rule("max_drop", text)
    assert isinstance(rule, Rule)
    assert (rule.kind, rule.metric, rule.amount, rule.unit) == ("max_drop", name, amount, unit)


def test_a_name_alone_asks_for_the_default() -> None:
    assert parse_rule("max_rise", "ppl") == DefaultRule(kind="max_rise", metric="ppl")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "names no metric"),
        ("=0.5pp", "names no metric"),
        ("accuracy=", "no amount"),
        ("accuracy=half", "no amount"),
        ("accuracy=-0.5pp", "without a sign"),
        ("accuracy=nan", "no amount"),
        ("accuracy=inf", "no amount"),
        ("accuracy=1e999", "no finite number"),
        ("accuracy=1,5pp", "no amount"),
        ("accuracy=0.5 points", "no amount"),
        ("accuracy=150pp", "more than a proportion"),
    ],
)
def test_rules_that_are_none(text: str, says: str) -> None:
    with pytest.raises(PlanError, match=says) as caught:
        parse_rule("max_drop", text)
    assert str(caught.value).startswith("--max-drop ")
    assert caught.value.hint is not None


@pytest.mark.parametrize(
    ("text", "share"), [("0.4", 0.4), ("40%", 0.4), ("33.3%", 0.333), ("1", 1.0), ("500%", 5.0)]
)
def test_sizes(text: str, share: float) -> None:
    rule = parse_size(text)
    assert (rule.kind, rule.metric, rule.amount, rule.unit) == ("max_size", "size", share, "")


@pytest.mark.parametrize("text", ["", "0", "0%", "-1", "25MB", "40", "1e999", "nan", "0.4pp"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(PlanError, match="--max-size"):
        parse_size(text)


@pytest.mark.parametrize("other", ["higher", "lower"])
def test_the_default_is_a_point_of_a_proportion_and_2_percent_of_the_rest(other: str) -> None:
    kind = "max_drop" if other == "higher" else "max_rise"
    for unit, amount, said in (("fraction", 1, "pp"), ("percent", 1, "pp"), ("1", 2, "%")):
        rule = default_rule(metric("m", 0.5, better=other, unit=unit))  # type: ignore[arg-type]
        assert (rule.kind, rule.amount, rule.unit) == (kind, amount, said)
        assert settled(DefaultRule(kind=rule.kind, metric="m"), None).metric == "m"


def test_a_rule_the_wrong_way_round_says_the_right_option() -> None:
    with pytest.raises(PlanError, match="lower is better") as caught:
        settled(Rule(kind="max_drop", metric="ppl", amount=2.5, unit="%"), PPL)
    assert caught.value.hint == "--max-rise ppl=2.5%"
    with pytest.raises(PlanError, match="higher is better") as caught:
        settled(DefaultRule(kind="max_rise", metric="accuracy"), ACCURACY)
    assert caught.value.hint == "--max-drop accuracy=1pp"


def test_points_of_what_is_no_proportion_are_refused() -> None:
    with pytest.raises(PlanError, match="ppl is in '1'"):
        settled(Rule(kind="max_rise", metric="ppl", amount=2, unit="pp"), PPL)


def test_ppl_and_perplexity_are_two_names_of_one_metric() -> None:
    assert spellings("ppl") == ("ppl", "perplexity")
    assert spellings("perplexity") == ("perplexity", "ppl")
    assert spellings("accuracy") == ("accuracy",)


# -- a file ---------------------------------------------------------------------------------------

WHOLE = """
[gate]
alpha = 0.025
alarm = 0.005
resamples = 19999
seed = 3

[gate.metrics.accuracy]
max_drop = "0.5pp"
reason = "half of what users noticed"

[gate.metrics.ppl]
max_rise = "2%"
reason = '''one line,
and another'''

[gate.metrics."f1 macro"]
max_drop = 0.01
reason = "as in the paper"

[gate.size]
max = "40%"
reason = "40 MB are free"
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "gate.toml"
    path.write_text(text)
    return path


def test_a_whole_file(tmp_path: Path) -> None:
    rules, settings = read_gate_table(written(tmp_path, WHOLE))
    assert settings == Settings(alpha=0.025, alarm=0.005, resamples=19_999, seed=3)
    assert [(r.kind, r.metric, r.amount, r.unit, r.reason) for r in rules] == [
        ("max_drop", "accuracy", 0.5, "pp", "half of what users noticed"),
        ("max_rise", "ppl", 2.0, "%", "one line, and another"),
        ("max_drop", "f1 macro", 0.01, "", "as in the paper"),
        ("max_size", "size", 0.4, "", "40 MB are free"),
    ]


def test_the_same_table_in_a_pyproject(tmp_path: Path) -> None:
    moved = WHOLE.replace("[gate", "[tool.ckptshrink.gate")
    ruff = "[tool.ruff]\nline-length = 100\n"
    assert read_gate_table(written(tmp_path, ruff + moved)) == read_gate_table(
        written(tmp_path, WHOLE)
    )


def test_an_empty_table_is_every_default(tmp_path: Path) -> None:
    assert read_gate_table(written(tmp_path, "[gate]\n")) == ((), Settings())


RULE = '[gate.metrics.accuracy]\nmax_drop = "0.5pp"\nreason = "why"\n'


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("", "has no \\[gate\\] table", ""),
        ("[gate\n", "is no TOML", ""),
        ("gate = 3\n", "\\[gate\\] is no table", ""),
        ("[gate]\n[tool.ckptshrink.gate]\n", "has both", ""),
        ("[gate]\nalhpa = 0.1\n", "unknown key 'alhpa'", "alpha"),
        ("[gate]\nalpha = 0.7\n", "alpha", ""),
        ('[gate]\nalpha = "0.05"\n', "alpha", ""),
        ("[gate]\nalpha = true\n", "alpha", ""),
        ("[gate]\nresamples = 10\n", "resamples", ""),
        ("[gate]\nalarm = nan\n", "alarm", ""),
        ("[gate]\nmetrics = 3\n", "gate.metrics\\] is no table", ""),
        ("[gate.metrics]\naccuracy = 3\n", "gate.metrics.accuracy\\] is no table", ""),
        (RULE.replace("max_drop", "maxdrop"), "unknown key 'maxdrop'", "max_drop"),
        (RULE.replace('max_drop = "0.5pp"\n', ""), "needs one of max_drop and max_rise", "0.5pp"),
        (RULE + 'max_rise = "1pp"\n', "needs one of max_drop and max_rise", ""),
        (RULE.replace('reason = "why"\n', ""), "has no reason", "reason ="),
        (RULE.replace('"why"', '" "'), "has no reason", ""),
        (RULE.replace('"why"', "3"), "has no reason", ""),
        (RULE.replace('"0.5pp"', "true"), "neither a number nor text", ""),
        (RULE.replace('"0.5pp"', "[1]"), "neither a number nor text", ""),
        (RULE.replace('"0.5pp"', "-1"), "without a sign", ""),
        (RULE.replace('"0.5pp"', "nan"), "no amount", ""),
        (RULE.replace('"0.5pp"', '"much"'), "no amount", ""),
        ("[gate.size]\nmax = 0.4\n", "has no reason", ""),
        ('[gate.size]\nreason = "why"\n', "needs max", ""),
        ('[gate.size]\nmax = 40\nreason = "why"\n', "40 times", ""),
        ('[gate.size]\nmaximum = 0.4\nreason = "why"\n', "unknown key 'maximum'", "max"),
    ],
)
def test_a_file_that_is_wrong_says_where(tmp_path: Path, text: str, says: str, hint: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(EvaluationInputError, match=says) as caught:
        read_gate_table(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert hint in (caught.value.hint or "")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(EvaluationInputError, match="can't be read"):
        read_gate_table(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b'[gate]\nx = "\xff"')
    with pytest.raises(EvaluationInputError, match="is no TOML"):
        read_gate_table(tmp_path / "latin.toml")
    (tmp_path / "large.toml").write_bytes(b"#" * (1 << 21))
    with pytest.raises(EvaluationInputError, match="too large"):
        read_gate_table(tmp_path / "large.toml")
