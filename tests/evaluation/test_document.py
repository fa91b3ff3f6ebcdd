"""The document of an evaluation: what is written comes back, and nothing else is taken for one."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckptshrink.errors import EvaluationInputError, OutputError
from ckptshrink.evaluation.document import (
    Change,
    DataRecord,
    Evaluation,
    Failure,
    ModelRecord,
    Outcome,
    ParameterCounts,
    ToolRecord,
    examples_beside,
    examples_paths,
    read_evaluation,
    write_evaluation,
)
from ckptshrink.evaluation.examples import examples_of
from ckptshrink.evaluation.metrics import Aggregate, metric

CORRECT = [1, 0, 1, 1]
OF = Aggregate(score="correct")


def outcome(name: str = "m", role: Any = "variant", **more: Any) -> Outcome:
    model = ModelRecord(
        name=name, kind="artefact", sha256="0" * 64, nbytes=10,
        n_params=ParameterCounts(model=5, lstm=None),
    )  # fmt: skip
    given = {"metrics": (metric("accuracy", 0.75, better="higher", n=4, of=OF),), **more}
    return Outcome(role=role, model=model, **given)


def document(*outcomes: Outcome) -> Evaluation:
    return Evaluation(
        task="command",
        data=DataRecord(name="dev.txt", sha256="1" * 64, nbytes=3),
        protocol={"command": "cat", "splits": [1, 2]},
        seed=0,
        tool=ToolRecord(name="ckptshrink", version="1"),
        outcomes=outcomes or (outcome(),),
    )


EXAMPLES = examples_of(["1", "2", "3", "4"], {"correct": CORRECT})


def test_a_document_comes_back_with_its_results(tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    both = document(
        outcome("base", "baseline"),
        outcome("bad", metrics=(), failure=Failure(reason="it crashed", log="one\ntwo")),
        outcome(
            "nan", metrics=(metric("accuracy", math.nan, better="higher"),),
            changes=(Change(metric="accuracy", difference=None, efficiency={"lstm": None}),),
            notes=("a note",), seconds=1.5,
        ),
    )  # fmt: skip
    other = examples_of(["1"], {"s": [2.5]})
    written = write_evaluation(both, {"base": EXAMPLES, "nan": other}, out)
    back = read_evaluation(out)
    assert back == written
    assert back.baseline == back.outcomes[0]
    assert back.outcomes[0].examples.n == 4
    assert back.outcomes[0].examples.path == "a.base.examples.jsonl"
    assert back.outcomes[2].metric("accuracy").nonfinite == "nan"
    found = examples_beside(out, back.outcomes[0])
    assert found.ids == EXAMPLES.ids
    assert found.columns["correct"].tolist() == CORRECT
    assert examples_beside(out, back.outcomes[1]) is None
    assert examples_beside(out, back.outcomes[2]).columns["s"].tolist() == [2.5]
    assert {path.name for path in tmp_path.iterdir()} == {
        "a.json", "a.base.examples.jsonl", "a.nan.examples.jsonl",
    }  # fmt: skip


def test_what_is_there_is_not_overwritten_unless_it_may_be(tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    results = {"m": EXAMPLES, "n": EXAMPLES}
    both = document(outcome("m"), outcome("n"))
    for standing in (out, tmp_path / "a.m.examples.jsonl", tmp_path / "a.n.examples.jsonl"):
        standing.write_text("precious")
        with pytest.raises(OutputError, match="exists already"):
            write_evaluation(both, results, out)
        assert standing.read_text() == "precious"
        assert list(tmp_path.iterdir()) == [standing], "all or nothing"
        standing.unlink()
    write_evaluation(both, results, out)
    results["n"] = examples_of(["1"], {"correct": [0.75]})
    write_evaluation(both, results, out, overwrite=True)
    assert [o.examples.n for o in read_evaluation(out).outcomes] == [4, 1]


def test_names_of_result_files_differ_and_fit_into_a_folder() -> None:
    names = ["a b", "a_b", "a/b", "../../etc", "é" * 200, "x" * 300, "", "."]
    paths = examples_paths(Path("runs/a.json"), names)
    assert len({str(path).casefold() for path in paths.values()}) == len(names)
    for path in paths.values():
        assert path.parent == Path("runs")
        assert len(os.fsencode(path.name)) < 200
        assert path.name.endswith(".examples.jsonl")
    assert paths["a_b"].name == "a.a_b.2.examples.jsonl"
    assert examples_paths(Path("a.json"), ["m"]) == {"m": Path("a.examples.jsonl")}


def test_results_that_were_changed_or_are_gone_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    (written,) = write_evaluation(document(), {"m": EXAMPLES}, out).outcomes
    file = tmp_path / written.examples.path
    text = file.read_bytes()
    for change in (text.replace(b"0.0", b"1.0"), text + b"\n", text[:-1], b""):
        file.write_bytes(change)
        with pytest.raises(EvaluationInputError, match="was changed since it was written"):
            examples_beside(out, written)
    file.unlink()
    with pytest.raises(EvaluationInputError, match="there is no such file"):
        examples_beside(out, written)
    os.mkfifo(file)
    with pytest.raises(EvaluationInputError, match="is a named pipe"):
        examples_beside(out, written)


def test_results_that_do_not_make_up_the_metric_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    better = outcome(metrics=(metric("accuracy", 0.99, better="higher", n=4, of=OF),))
    (written,) = write_evaluation(document(better), {"m": EXAMPLES}, out).outcomes
    with pytest.raises(EvaluationInputError, match=r"accuracy is 0\.99, and its examples make"):
        examples_beside(out, written)


@pytest.mark.parametrize("path", ["../secret.jsonl", "/etc/passwd", "x/../../y"])
def test_results_outside_of_the_folder_are_not_read(tmp_path: Path, path: str) -> None:
    out = tmp_path / "a.json"
    (written,) = write_evaluation(document(), {"m": EXAMPLES}, out).outcomes
    moved = written.model_copy(
        update={"examples": written.examples.model_copy(update={"path": path})}
    )
    with pytest.raises(EvaluationInputError, match="outside of its folder"):
        examples_beside(out, moved)


# -- hostile documents -----------------------------------------------------------------------------


def changed(change: Callable[[dict[str, Any]], Any]) -> bytes:
    value = json.loads(document().to_bytes())
    change(value)
    return json.dumps(value).encode()


def first(value: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = value["outcomes"][0]
    return found


WHOLE = document().to_bytes()
HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "half": WHOLE[: len(WHOLE) // 2],
    "two": WHOLE + WHOLE,
    "list": b"[]",
    "null": b"null",
    "no UTF-8": WHOLE.replace(b"dev.txt", b"dev\xff.txt"),
    "utf-16": WHOLE.decode().encode("utf-16"),
    "deep": b"[" * 100_000,
    "a key twice": WHOLE.replace(b'"value": 0.75', b'"value": 0.1, "value": 0.99'),
    "a key twice inside": WHOLE.replace(b'"command": "cat"', b'"command": 1, "command": 2'),
    "nan": WHOLE.replace(b"0.75", b"NaN"),
    "infinity": WHOLE.replace(b"0.75", b"Infinity"),
    "beyond float": WHOLE.replace(b"0.75", b"1e999"),
    "nan in the protocol": WHOLE.replace(b'"cat"', b"NaN"),
    "text": WHOLE.replace(b"0.75", b'"0.75"'),
    "boolean": WHOLE.replace(b"0.75", b"true"),
    "null value": WHOLE.replace(b"0.75", b"null"),
    "list value": WHOLE.replace(b"0.75", b"[0.75]"),
    "surrogate": WHOLE.replace(b'"accuracy"', b'"\\ud800"'),
    "n as text": WHOLE.replace(b'"n": 4', b'"n": "4"'),
    "n as a fraction": WHOLE.replace(b'"n": 4', b'"n": 4.5'),
    "n below zero": WHOLE.replace(b'"n": 4', b'"n": -4'),
    "other version": changed(lambda v: v.update(schema_version=2)),
    "no version of ours": changed(lambda v: v.update(schema_version="1")),
    "unknown key": changed(lambda v: v.update(extra=1)),
    "no outcomes": changed(lambda v: v.update(outcomes=[])),
    "no metrics": changed(lambda v: first(v).update(metrics=[])),
    "metric twice": changed(lambda v: first(v).update(metrics=first(v)["metrics"] * 2)),
    "model twice": changed(lambda v: v.update(outcomes=v["outcomes"] * 2)),
    "metrics and a failure": changed(lambda v: first(v).update(failure={"reason": "x", "log": ""})),
    "unknown unit of better": changed(lambda v: first(v)["metrics"][0].update(better="best")),
    "stderr nan": changed(lambda v: first(v)["metrics"][0].update(stderr="nan")),
    "seconds below zero": changed(lambda v: first(v).update(seconds=-1)),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_evaluation_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(HOSTILE[case])
    with pytest.raises(
        EvaluationInputError, match="is no evaluation of schema version 1"
    ) as caught:
        read_evaluation(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert said.isprintable()
    assert len(said) < 500


def test_the_cases_above_differ_from_a_document_by_their_fault_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content in (WHOLE, changed(lambda value: None), WHOLE.replace(b"0.75", b"1")):
        path.write_bytes(content)
        assert read_evaluation(path).outcomes[0].metric("accuracy").n == 4
    assert WHOLE not in HOSTILE.values()


def test_two_baselines_are_one_too_many() -> None:
    with pytest.raises(ValueError, match="more than one baseline"):
        document(outcome("a", "baseline"), outcome("b", "baseline"))


def test_what_is_no_plain_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", (1 << 28) + 1)
    for path, said in (
        (tmp_path, "is a folder"),
        (tmp_path / "pipe", "is a named pipe"),
        (tmp_path / "none", "there is no such file"),
        (tmp_path / "large", "is too large for an evaluation"),
        (Path("/dev/zero"), "is a character device"),
    ):
        with pytest.raises(EvaluationInputError, match=said):
            read_evaluation(path)
