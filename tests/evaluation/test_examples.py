"""Per-example results: written and read back exactly, refused by line where they make no sense."""

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckptshrink.errors import EvaluationInputError
from ckptshrink.evaluation.examples import (
    Examples,
    disagreement,
    examples_of,
    examples_of_rows,
    read_examples,
)
from ckptshrink.evaluation.metrics import Aggregate, metric


def written(path: Path, examples: Examples) -> Path:
    path.write_bytes(b"".join(examples.lines()))
    return path


def refused(path: Path) -> str:
    with pytest.raises(EvaluationInputError) as caught:
        read_examples(path)
    said = str(caught.value)
    assert said.isprintable()
    assert len(said) < 300 + len(str(path))
    return said.removeprefix(f"{path}: ")


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(TEXT, st.floats(allow_nan=False, allow_infinity=False), TEXT),
        max_size=8, unique_by=lambda row: row[0],
    )
)  # fmt: skip
def test_results_come_back_as_they_were_written(
    rows: list[tuple[str, float, str]], tmp_path: Path
) -> None:
    examples = examples_of(
        [r[0] for r in rows], {"score": [r[1] for r in rows]}, {"said": [r[2] for r in rows]}
    )
    path = written(tmp_path / "e.jsonl", examples)
    back = read_examples(path, hashlib.sha256(path.read_bytes()).hexdigest())
    assert back.ids == examples.ids
    assert len(back) == len(rows)
    if rows:
        assert back.columns["score"].tobytes() == examples.columns["score"].tobytes()
        assert back.labels == examples.labels


def test_one_example_is_one_line_in_the_order_of_the_data(tmp_path: Path) -> None:
    examples = examples_of(["b", "a"], {"correct": [1, 0]}, {"said": ["x\ny", "\u2028"]})
    assert [json.loads(line) for line in examples.lines()] == [
        {"id": "b", "correct": 1.0, "said": "x\ny"},
        {"id": "a", "correct": 0.0, "said": "\u2028"},
    ]
    back = read_examples(written(tmp_path / "e.jsonl", examples))
    assert back.ids == ("b", "a")


def test_booleans_are_numbers_and_whole_numbers_too(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    path.write_text('{"id": "1", "right": true, "n": 3}\n{"right": 0, "n": 2.5, "id": "2"}')
    back = read_examples(path)
    assert back.columns["right"].tolist() == [1, 0]
    assert back.columns["n"].tolist() == [3, 2.5]


def test_another_content_than_was_hashed_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "e.jsonl", examples_of(["a"], {"s": [1]}))
    with pytest.raises(EvaluationInputError, match="was changed since it was written"):
        read_examples(path, "0" * 64)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["[1]"], "line 1 is no result: it is no object"),
        (["", '{"id": "1"}'], "line 1 is no result: Expecting value"),
        (['{"id": "1"}', "{"], "line 2 is no result: Expecting"),
        (['{"id": "1", "s": 0, "s": 1}'], "line 1 is no result: the key 's' is there twice"),
        (['{"s": 1}'], 'line 1 has no text under "id"'),
        (['{"id": 1, "s": 1}'], 'line 1 has no text under "id"'),
        (['{"id": "1", "s": NaN}'], "line 1 is no result: NaN is no finite number"),
        (['{"id": "1", "s": 1e999}'], "line 1: 's' is 'inf', and no finite number"),
        (['{"id": "1", "s": null}'], "line 1: 's' is 'None', and no finite number"),
        (['{"id": "1", "s": {}}'], "line 1: 's' is '{}', and no finite number"),
        (['{"id": "1", "s": 1' + "0" * 400 + "}"], "and no finite number"),
        (['{"id": "1", "s": 1' + "0" * 5000 + "}"], "line 1 is no result"),
        (['{"id": "1", "s": 1}', '{"id": "2", "s": "1"}'], "line 2: 's' is '1', and no finite"),
        (['{"id": "1", "s": "1"}', '{"id": "2", "s": 1}'], "line 2 has other keys or kinds"),
        (['{"id": "1", "s": 1}', '{"id": "2"}'], "line 2 has other keys than line 1"),
        (['{"id": "1"}', '{"id": "2", "s": 1}'], "line 2 has other keys than line 1"),
        (['{"id": "1", "s": 1}', '{"id": "2", "t": 1}'], "line 2 has other keys or kinds"),
        (['{"id": "1", "s": 1}', '{"id": "1", "s": 1}'], "the id '1' is there twice"),
        (["[" * 100_000], "line 1 is no result: it is nested too deeply"),
        (['{"id": "\\ud800", "s": 1}'], "line 1 is no result: it holds half of a character"),
        (['{"id": "\\u001b[2J"}', '{"id": "\\u001b[2J"}'], "the id '\\x1b[2J' is there twice"),
    ],
)
def test_what_is_no_result_is_refused_by_its_line(
    tmp_path: Path, lines: list[str], said: str
) -> None:
    path = tmp_path / "e.jsonl"
    path.write_text("\n".join(lines))
    assert said in refused(path)


def test_what_is_no_file_of_results_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    path.write_bytes(b'{"id": "\xff"}\n')
    assert refused(path) == "line 1 is no result: byte 8 is no UTF-8"
    assert "there is no such file" in refused(tmp_path / "none")
    assert "is a folder" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "is a named pipe" in refused(tmp_path / "pipe")
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", (1 << 30) + 1)
    assert refused(tmp_path / "large") == "is too large for per-example results"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=50))
def test_no_bytes_give_anything_but_results_or_a_refusal(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    path.write_bytes(content)
    try:
        read_examples(path)
    except EvaluationInputError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("ids", "columns", "labels", "said"),
    [
        (["a", "a"], {"s": [1, 2]}, {}, "'a' is there twice"),
        (["a"], {"s": [1, 2]}, {}, "'s' has 2 values for 1 examples"),
        (["a"], {"s": [1]}, {"t": []}, "'t' has 0 values for 1 examples"),
        (["a"], {"s": [math.nan]}, {}, "'s' holds something else than finite numbers"),
        (["a"], {"s": [[1.0]]}, {}, "'s' holds something else than finite numbers"),
        (["a"], {"s": 1.0}, {}, "'s' holds something else than finite numbers"),
        ([1], {"s": [1]}, {}, "'id' holds something else than text"),
        (["\ud800"], {"s": [1]}, {}, "'id' holds something else than text"),
        (["a"], {"s": [1]}, {"t": [None]}, "'t' holds something else than text"),
        (["a"], {"s": [1]}, {"s": ["b"]}, "the column 's' is there twice"),
        (["a"], {"id": [1]}, {}, "the column 'id' is there twice"),
        (["a"], {}, {"id": ["a"]}, "the column 'id' is there twice"),
    ],
)
def test_columns_that_do_not_fit_are_refused(
    ids: Any, columns: Any, labels: Any, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        examples_of(ids, columns, labels)


def test_rows_may_come_one_by_one() -> None:
    rows = ({"id": str(i), "s": i} for i in range(1000))
    assert examples_of_rows(rows).columns["s"].sum() == 499_500
    assert len(examples_of_rows([])) == 0


# -- metrics that examples make up -----------------------------------------------------------------

EXAMPLES = examples_of(["a", "b", "c"], {"s": [1, 0, 1], "w": [1, 2, 4], "minus": [1, -1, 1]})


def test_a_metric_agrees_with_the_examples_that_make_it_up() -> None:
    of = Aggregate(score="s", weight="w", transform="exp")
    for found in (
        metric("m", 2 / 3, better="higher", of=Aggregate(score="s")),
        metric("m", 2 / 3 * (1 + 9e-10), better="higher", n=3, of=Aggregate(score="s")),
        metric("m", math.exp(2 / 7), better="higher", of=of),
        metric("m", 77.0, better="higher", n=12),
    ):
        assert disagreement(found, EXAMPLES) is None
    nothing = metric("m", math.nan, better="higher", of=Aggregate(score="s"))
    one = metric("m", 1.0, better="higher", of=Aggregate(score="s"))
    for none in (examples_of([], {"s": []}), examples_of([], {})):
        assert disagreement(nothing, none) is None
        assert disagreement(one, none) == "m is of no examples"


@pytest.mark.parametrize(
    ("value", "more", "said"),
    [
        (0.667, {}, "m is 0.667, and its examples make it 0.6666666666666666"),
        (2 / 3 * (1 + 3e-9), {}, "and its examples make it"),
        (math.nan, {}, "m is nan, and its examples make it 0.6"),
        (math.inf, {}, "m is inf, and its examples make it 0.6"),
        (2 / 3, {"n": 4}, "m is of 4 examples, and there are 3"),
        (2 / 3, {"of": Aggregate(score="x")}, "m is made of 'x', and examples have s, w, minus"),
        (2 / 3, {"of": Aggregate(score="s", weight="x")}, "m is made of 'x'"),
        (2.0, {"of": Aggregate(score="s", weight="minus")}, "'minus', which is below zero"),
    ],
)
def test_a_metric_that_its_examples_contradict_is_seen(
    value: float, more: dict[str, Any], said: str
) -> None:
    found = metric("m", value, better="higher", **{"of": Aggregate(score="s"), **more})
    assert said in (disagreement(found, EXAMPLES) or "")


def test_results_of_many_examples_are_read_in_their_columns(tmp_path: Path) -> None:
    n = 20_000
    rng = np.random.default_rng(0)
    examples = examples_of([str(i) for i in range(n)], {"s": rng.normal(size=n)})
    back = read_examples(written(tmp_path / "e.jsonl", examples))
    assert back.columns["s"].dtype == np.float64
    assert np.array_equal(back.columns["s"], examples.columns["s"])
