"""What a zoo file may say, and what is said of one that can't be."""

import json
from pathlib import Path

import jsonschema
import pytest

from ckptshrink.errors import EvaluationInputError, PlanError
from ckptshrink.zoo.recipes import work_of
from ckptshrink.zoo.settings import Zoo, merged, read_zoo

MODEL = '[[model]]\npath = "x"\n'


def read(tmp_path: Path, text: str) -> Zoo:
    file = tmp_path / "zoo.toml"
    file.write_text(text)
    return read_zoo(file)


@pytest.mark.parametrize(
    ("text", "issue"),
    [
        ("", "the file: has no [[model]]"),
        ("model = []", "should have at least 1 item"),
        (f"[defualts]\nrank = 3\n{MODEL}", "unknown key 'defualts'; did you mean 'defaults'?"),
        (f"[defaults]\nrnak = 3\n{MODEL}", "defaults: unknown key 'rnak'; did you mean 'rank'?"),
        ('[[model]]\npaht = "x"', "[[model]] 1: unknown key 'paht'; did you mean 'path'?"),
        (f"{MODEL}[model.tasks.lm]\ndta = 'x'", "[[model]] 1.tasks.lm: unknown key 'dta'; did you"),
        (f"{MODEL}max-error = 0.1", "unknown key 'max-error'; did you mean 'max_error'?"),
        ("[[model]]\npath = 3", "path: is neither a text nor a list of texts"),
        (f"{MODEL}rank = 0", "rank: should be greater than or equal to 1"),
        (f"{MODEL}rank = 'many'", "rank: should be a valid integer"),
        (f"{MODEL}target = 'Wh'\nrank = 3\nratio = 0.5", "[[model]] 1: give one of rank, ratio"),
        (MODEL + "rank = 3", "[[model]] 1: has no target"),
        (f"{MODEL}target = 'Wh'\nrank = 3\ninto = '../up'", "is no folder below the output"),
    ],
)
def test_what_can_not_be_is_said_with_its_place(tmp_path: Path, text: str, issue: str) -> None:
    with pytest.raises(PlanError) as caught:
        read(tmp_path, text)
    assert any(issue in line for line in caught.value.issues), caught.value.issues


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"= 3", "is no TOML"), (b"\xff", "is no TOML"), (None, "can't be read")],
)
def test_what_is_no_toml(tmp_path: Path, content: bytes | None, said: str) -> None:
    file = tmp_path / "zoo.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(PlanError, match=said):
        read_zoo(file)


def test_a_model_has_what_the_defaults_have_and_it_lacks(tmp_path: Path) -> None:
    zoo = read(
        tmp_path,
        '[defaults]\ntarget = ["Wh"]\nrank = 7\nmethod = "prune"\nstrict = true\n'
        f'{MODEL}\n{MODEL}ratio = 0.5\ntarget = "Wi"\nstrict = false\n',
    )
    one, other = (merged(zoo.defaults, model) for model in zoo.model)
    assert (one.rank, one.target, one.method, one.strict) == (7, ("Wh",), "prune", True)
    assert (other.rank, other.ratio, other.target) == (None, 0.5, ("Wi",))
    assert (other.method, other.strict) == ("prune", False)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("method = 'svt'", "did you mean 'svd'"),
        ("target = 'Wh:rnk=3'", "unknown setting"),
        ("budget = 'a lot'", "is no size"),
        ("tasks = {sst6 = {}}", "did you mean 'sst5'"),
        ("tasks = {lm = {archive = 'x'}}", "archive goes with sst5, snli, squad"),
        ("gate = {metrics = {ppl = {max_rise = '2%'}}}", "has no reason"),
        ("gate = {metrics = {ppl = {max_rise = '2%', reason = 'r'}}}", "there are no tasks"),
        ("gate = {}", "there are no tasks"),
    ],
)
def test_a_recipe_that_can_not_be_followed(tmp_path: Path, more: str, said: str) -> None:
    size = "" if "budget" in more else "rank = 3\n"
    target = "" if "target" in more else "target = 'Wh'\n"
    zoo = read(tmp_path, MODEL + size + target + more)
    with pytest.raises((PlanError, EvaluationInputError)) as caught:
        work_of(merged(zoo.defaults, zoo.model[0]), tmp_path)
    error = caught.value
    assert said in f"{error} {getattr(error, 'hint', '')}"


def test_what_is_asked_for_in_other_words_has_the_same_hash(tmp_path: Path) -> None:
    texts = ("rank = 3\ntarget = 'Wh'", "target = ['Wh']\nrank = 3\nseed = 0\nmethod = 'svd'")
    works = []
    for text in (*texts, "rank = 4\ntarget = 'Wh'"):
        zoo = read(tmp_path, MODEL + text)
        works.append(work_of(merged(zoo.defaults, zoo.model[0]), tmp_path))
    hashes = [work.compression.sha256 for work in works]
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_schema_holds_for_what_is_read(tmp_path: Path) -> None:
    schema = Zoo.model_json_schema()
    good = {"model": [{"path": ["a", "b"], "rank": 3, "tasks": {"lm": {"data": "x"}}}]}
    jsonschema.validate(good, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"model": [{"path": "a", "rnak": 3}]}, schema)
    assert json.loads(json.dumps(schema)) == schema
