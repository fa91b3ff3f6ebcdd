"""What a program printed: read where it makes sense, refused in one line where it makes none."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptshrink.errors import EvaluationError
from ckptshrink.evaluation.answers import Stated, scores_from
from ckptshrink.evaluation.evaluator import Scores
from ckptshrink.evaluation.metrics import Aggregate


def read(answer: Any, **stated: Any) -> Scores:
    text = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    return scores_from(text, Stated(**stated))


def refused(answer: Any, **stated: Any) -> str:
    with pytest.raises(EvaluationError) as caught:
        read(answer, **stated)
    said = str(caught.value)
    assert said.startswith("standard output ")
    assert said.isprintable()
    assert len(said) < 400
    assert '{"accuracy": 0.5}' in str(caught.value.hint)
    return said


# -- numbers by name -------------------------------------------------------------------------------


def test_numbers_by_name_are_metrics_with_the_direction_that_their_names_have() -> None:
    scores = read({"accuracy": 0.5, "loss": 1.25, "eval_F1": 61, "Perplexity": 70.5, "bleu": 27})
    assert [(m.name, m.value, m.better, m.unit) for m in scores.metrics] == [
        ("accuracy", 0.5, "higher", "fraction"),
        ("loss", 1.25, "lower", "1"),
        ("eval_F1", 61.0, "higher", "percent"),
        ("Perplexity", 70.5, "lower", "1"),
        ("bleu", 27.0, "higher", "1"),
    ]
    assert scores.examples is None
    assert all(m.n is None and m.stderr is None and m.of is None for m in scores.metrics)
    assert scores.notes == ("eval_F1 is taken as percent, since it is above 1",)


def test_a_direction_that_nothing_says_is_asked_for_and_may_be_stated() -> None:
    said = refused({"accuracy": 0.5, "speed": 3})
    assert "'speed' of which nothing says which way it is better" in said
    assert "--better speed=higher" in said
    scores = read({"accuracy": 0.5, "speed": 3}, better={"speed": "higher", "accuracy": "lower"})
    assert [m.better for m in scores.metrics] == ["lower", "higher"]
    scores = read({"accuracy": 50}, better={"acuracy": "higher"}, units={"accuracy": "percent"})
    assert scores.notes == ("no metric is called 'acuracy'; did you mean 'accuracy'?",)


@pytest.mark.parametrize(
    ("text", "nonfinite"),
    [("NaN", "nan"), ("Infinity", "inf"), ("-Infinity", "-inf"), ("1e999", "inf"),
     ("-1e999", "-inf"), ("1" + "0" * 400, "inf")],
)  # fmt: skip
def test_a_number_that_is_none_is_kept_as_what_it_is(text: str, nonfinite: str) -> None:
    for answer in (
        f'{{"accuracy": {text}}}',
        f'{{"metrics": [{{"name": "ppl", "value": {text}}}]}}',
    ):
        (metric,) = read(answer.encode()).metrics
        assert (metric.value, metric.nonfinite) == (None, nonfinite)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"accuracy: 0.5", "is no single JSON document"),
        (b'{"accuracy": 0.5', "is no single JSON document"),
        (b'{"accuracy": 0.5}\n{"accuracy": 0.6}', "is no single JSON document: Extra data"),
        (b'Loading ...\n{"accuracy": 0.5}', "is no single JSON document"),
        (b'{"accuracy": 0.5,}', "is no single JSON document"),
        (b'{"accuracy": 0.5, "accuracy": 0.9}', "the key 'accuracy' is there twice"),
        (b'{"accuracy": 0.5}\xff', "byte 17 is no UTF-8"),
        ('{"accuracy": 0.5}'.encode("utf-16"), "is no UTF-8"),
        (b'{"\\ud800": 0.5}', "lone surrogate"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"[0.5]", "is a JSON list, and no object"),
        (b"0.5", "is a JSON number, and no object"),
        (b"null", "is a JSON null, and no object"),
        (b'"0.5"', "is a JSON text, and no object"),
        (b"NaN", "is a JSON number, and no object"),
        (b"{}", "has no metric"),
        (b'{"metrics": []}', "has no metric"),
        (b'{"accuracy": "0.5"}', "'accuracy' whose value is text '0.5', and no number"),
        (b'{"accuracy": true}', "whose value is boolean 'True', and no number"),
        (b'{"accuracy": null}', "whose value is null 'None', and no number"),
        (b'{"accuracy": [0.5]}', "whose value is list '[0.5]', and no number"),
        (b'{"metrics": {"accuracy": 0.5}}', "'metrics' whose value is object"),
        (b'{"": 0.5}', "has a metric without a name"),
        (b'{"  ": 0.5}', "has a metric without a name"),
        (b'{"a\\u001b[2J": 0.5}', "whose name can't be shown"),
        (json.dumps({"x" * 300: 1}).encode(), "whose name can't be shown"),
        (b'{"accuracy": -1}', "'accuracy' of -1.0, and a fraction is from 0 to 1"),
        (b'{"accuracy": 101}', "'accuracy' of 101.0, and a fraction is from 0 to 1"),
        (b'{"accuracy": 1' + b"0" * 5000 + b"}", "is no single JSON document"),
    ],
)
def test_nonsense_is_refused_by_what_is_wrong_with_it(answer: bytes, said: str) -> None:
    assert said in refused(answer)


def test_a_proportion_stays_in_its_range_up_to_rounding() -> None:
    (metric,) = read({"accuracy": 1.0000000000000002}).metrics
    assert (metric.unit, metric.value) == ("fraction", 1.0000000000000002)
    assert read({"accuracy": 100.00000000000001}).metrics[0].unit == "percent"
    assert "and a percent is from 0 to 100" in refused({"wer": 120}, units={"wer": "percent"})
    assert "and a fraction is from 0 to 1" in refused({"f1": 60}, units={"f1": "fraction"})
    assert read({"wer": 120}).metrics[0].unit == "1"


# -- metrics with examples -------------------------------------------------------------------------

ROWS = [{"id": "1", "correct": 1}, {"id": "2", "correct": 0}, {"id": "3", "correct": True}]


def one(examples: Any = ROWS, **metric: Any) -> dict[str, Any]:
    said = {"name": "accuracy", "value": 2 / 3, **metric}
    return {"metrics": [said], "examples": examples}


def test_everything_that_is_said_of_a_metric_is_kept() -> None:
    said = {"name": "quality", "value": -2.5, "better": "higher", "unit": "dB", "n": 7,
            "stderr": 0.25}  # fmt: skip
    (metric,) = read({"metrics": [said]}).metrics
    assert metric.model_dump(exclude={"nonfinite", "of"}) == said
    (metric,) = read(
        {"metrics": [said]}, better={"quality": "lower"}, units={"quality": "B"}
    ).metrics
    assert (metric.better, metric.unit) == ("lower", "B"), "the user goes first"


def test_examples_are_columns_and_what_a_metric_is_made_of_is_checked() -> None:
    scores = read(one([{**row, "said": "yes"} for row in ROWS], of={"score": "correct"}))
    assert scores.examples is not None
    assert scores.examples.ids == ("1", "2", "3")
    assert scores.examples.columns["correct"].tolist() == [1, 0, 1]
    assert scores.examples.labels == {"said": ("yes", "yes", "yes")}
    (metric,) = scores.metrics
    assert (metric.n, metric.of) == (3, Aggregate(score="correct"))
    assert metric.stderr == pytest.approx(math.sqrt(2 / 9 / 2))
    assert read(one(of={"score": "correct"}, stderr=0.125, n=3)).metrics[0].stderr == 0.125


def test_a_perplexity_may_be_made_of_nats_and_words() -> None:
    rows = [{"id": i, "nats": 3.5 * i, "words": i} for i in (1, 2, 5)]
    of = {"score": "nats", "weight": "words", "transform": "exp"}
    scores = read(one(rows, name="ppl", value=math.exp(3.5), of=of))
    assert scores.examples.ids == ("1", "2", "5"), "numbers are ids too"
    assert scores.metrics[0].of == Aggregate(**of)
    assert "its examples make it 33.1" in refused(one(rows, name="ppl", value=3.5, of=of))


def test_a_metric_that_is_the_mean_of_a_column_of_its_name_is_made_of_it() -> None:
    rows = [{"id": "a", "f1": 0.25}, {"id": "b", "f1": 0.5}]
    (metric,) = read(one(rows, name="f1", value=0.375)).metrics
    assert (metric.of, metric.n) == (Aggregate(score="f1"), 2)
    scores = read(one(rows, name="f1", value=0.4))
    assert scores.metrics[0].of is None
    assert scores.notes == ("f1 is not the mean of the examples' f1, and is taken as one number",)


def test_an_accuracy_that_is_the_mean_of_correct_is_made_of_it() -> None:
    assert read(one()).metrics[0].of == Aggregate(score="correct")
    assert read(one(name="test_acc")).metrics[0].of == Aggregate(score="correct")
    for other in ({"value": 0.6}, {"name": "f1"}, {"name": "loss"}, {"n": 2}):
        assert read(one(**other)).metrics[0].of is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"value": 0.667, "of": {"score": "correct"}}, "is 0.667, and its examples make it 0.666"),
        ({"value": 2 / 3 + 3e-9, "of": {"score": "correct"}}, "contradicts itself"),
        ({"value": math.nan, "of": {"score": "correct"}}, "accuracy is nan, and its examples"),
        ({"of": {"score": "wrong"}}, "is made of 'wrong', and examples have correct"),
        ({"of": {"score": "correct", "weight": "w"}}, "is made of 'w', and examples have correct"),
        ({"of": {"score": "correct"}, "n": 4}, "is of 4 examples, and there are 3"),
        ({"of": {"score": "correct", "transform": "log"}}, "`of` makes no sense"),
        ({"of": "correct"}, "`of` makes no sense: correct"),
        ({"of": {"score": "correct"}, "examples": None}, "names examples, and there are none"),
        ({"of": {"score": "correct"}, "examples": []}, "names examples, and there are none"),
        ({"better": "up"}, "'accuracy' that is better 'up'"),
        ({"better": 1}, "that is better '1'"),
        ({"unit": 7}, "whose unit is '7'"),
        ({"unit": ""}, "whose unit is ''"),
        ({"n": -1}, "whose n is '-1', and no number of examples"),
        ({"n": 3.0}, "whose n is '3.0'"),
        ({"n": True}, "whose n is 'True'"),
        ({"stderr": -0.1}, "whose stderr is -0.1"),
        ({"stderr": math.nan}, "whose stderr is nan"),
        ({"stderr": "0.1"}, "whose stderr is text '0.1', and no number"),
        ({"values": 1}, "a metric with an unknown key 'values'"),
        ({"name": 3}, "has a metric without a name"),
        ({"name": None}, "has a metric without a name"),
        ({"value": None}, "whose value is null"),
    ],
)
def test_a_metric_that_makes_no_sense_is_refused(change: dict[str, Any], said: str) -> None:
    answer = one(**{k: v for k, v in change.items() if k != "examples"})
    answer["examples"] = change.get("examples", ROWS)
    assert said in refused(answer)


@pytest.mark.parametrize(
    ("examples", "said"),
    [
        ({"1": 1}, "has examples that are no list of objects"),
        ([1, 2], "has examples that are no list of objects"),
        ([{"correct": 1}], "example 1 has no text under \"id\""),
        ([{"id": None, "correct": 1}], "example 1 has no text under \"id\""),
        ([{"id": True, "correct": 1}], "example 1 has no text under \"id\""),
        ([{"id": "1", "correct": 1}, {"id": "1", "correct": 1}], "the id '1' is there twice"),
        ([{"id": "1", "correct": 1}, {"id": 1, "correct": 1}], "the id '1' is there twice"),
        ([{"id": "1", "correct": 1}, {"id": "2"}], "example 2 has other keys"),
        ([{"id": "1", "correct": 1}, {"id": "2", "right": 1}], "example 2 has other keys or"),
        ([{"id": "1", "correct": 1}, {"id": "2", "correct": "1"}], "2: 'correct' is '1', and no f"),
        ([{"id": "1", "correct": math.nan}], "is 'nan', and no finite number"),
        ([{"id": "1", "correct": 10**400}], "and no finite number"),
        ([{"id": "1", "correct": None}], "is 'None', and no finite number"),
        ([{"id": "1", "correct": [1]}], "and no finite number"),
    ],
)  # fmt: skip
def test_examples_that_make_no_sense_are_refused(examples: Any, said: str) -> None:
    assert said in refused(one(examples))


def test_a_metric_that_is_there_twice_and_keys_beside_are_refused() -> None:
    metric = {"name": "accuracy", "value": 0.5}
    assert "has the metric 'accuracy' twice" in refused({"metrics": [metric, metric]})
    assert "has 'config' beside metrics and examples" in refused({"metrics": [metric], "config": 1})
    assert "has a number among its metrics" in refused({"metrics": [0.5]})


@given(st.binary(max_size=60))
def test_no_bytes_give_anything_but_scores_or_a_refusal(answer: bytes) -> None:
    try:
        scores = read(answer)
    except EvaluationError:
        return
    assert scores.metrics


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["id", "name", "value", "of", "n", "accuracy"]), inner),
    max_leaves=8,
)  # fmt: skip


@given(st.fixed_dictionaries({"metrics": st.lists(JSON, max_size=3)}, optional={"examples": JSON}))
def test_no_document_gives_anything_but_scores_or_a_refusal(answer: Any) -> None:
    try:
        scores = read(answer)
    except EvaluationError:
        return
    assert scores.metrics
    for metric in scores.metrics:
        assert metric.better in ("higher", "lower")
