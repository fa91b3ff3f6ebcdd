"""Data of SST-5, SNLI and SQuAD: read, checked, cut, and given to AllenNLP in its form."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptshrink.errors import EvaluationInputError
from ckptshrink.evaluation.downstream.data import Read, TaskData, read_snli, read_squad, read_sst5

READERS: dict[str, Read] = {"sst5": read_sst5, "snli": read_snli, "squad": read_squad}


def write(folder: Path, data: bytes | str) -> Path:
    path = folder / "data"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def leaves(tree: str) -> tuple[str, list[str]]:
    """Return the label and the words of a tree, by AllenNLP's way to read one: parentheses."""
    (label,) = re.findall(r"^\((\d)", tree)
    return label, re.findall(r"\(\d ([^\s()]+)\)", tree)


# -- SST-5 ---------------------------------------------------------------------------------------


def test_a_sentence_on_a_line_becomes_a_tree(tmp_path: Path) -> None:
    data = read_sst5(write(tmp_path, "3 a good film .\n0 dull\n"))
    assert data.text == "(3 (2 a) (2 good) (2 film) (2 .))\n(0 (2 dull))\n"
    assert data.ids == ("1", "2")
    assert data.notes == ()
    assert data.sentences_only


def test_trees_stay_as_they_are(tmp_path: Path) -> None:
    trees = "(3 (2 a) (4 (4 good) (2 film)))\n\n(0 (2 dull))\n"
    data = read_sst5(write(tmp_path, trees))
    assert data.text == trees.replace("\n\n", "\n")
    assert data.ids == ("1", "3")  # lines of the file
    assert not data.sentences_only


def test_the_two_forms_of_a_sentence_are_one(tmp_path: Path) -> None:
    words = read_sst5(write(tmp_path, "1 not ( so ) good\r\n"))
    tree = read_sst5(write(tmp_path, "(1 (2 not) (2 -LRB-)\t(2 so) (2 -RRB-) (2 good))\r\n"))
    assert words.text == tree.text


WORD = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(
    lambda word: word.split() == [word]
)


@given(st.lists(st.tuples(st.sampled_from("01234"), st.lists(WORD, min_size=1)), min_size=1))
def test_every_word_is_in_the_tree(tmp_path_factory: Any, sentences: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("data")
    lines = [f"{label} {' '.join(words)}" for label, words in sentences]
    trees = read_sst5(write(folder, "\n".join(lines))).text.split("\n")[:-1]
    assert len(trees) == len(sentences)
    for tree, (label, words) in zip(trees, sentences, strict=True):
        escaped = [w.replace("(", "-LRB-").replace(")", "-RRB-") for w in words]
        assert leaves(tree) == (label, escaped)


def test_the_real_sentences_are_read(shared_data: Path) -> None:
    for name, n in (("dev", 1101), ("test", 2210), ("train", 8544)):
        path = shared_data / "sst5" / f"{name}.txt"
        data = read_sst5(path)
        lines = path.read_text("utf-8").splitlines()
        assert len(data.ids) == len(lines) == n
        for tree, line in zip(data.text.splitlines(), lines, strict=True):
            assert leaves(tree) == (line[0], line[1:].split())


# -- SNLI ----------------------------------------------------------------------------------------


def pair(**fields: Any) -> str:
    said = {"gold_label": "neutral", "sentence1": "One.", "sentence2": "Two.", **fields}
    return json.dumps(said) + "\n"


def test_pairs_without_a_label_are_left_out_and_said(tmp_path: Path) -> None:
    text = pair() + pair(gold_label="-") + pair(gold_label="entailment", sentence1="Drei — 3")
    data = read_snli(write(tmp_path, text))
    assert data.ids == ("1", "3")
    assert [json.loads(line)["gold_label"] for line in data.text.splitlines()] == [
        "neutral",
        "entailment",
    ]
    assert json.loads(data.text.splitlines()[1])["sentence1"] == "Drei — 3"
    assert data.notes == ("1 pairs without a gold label are not scored",)


def test_pairs_are_called_by_their_ids_where_each_has_its_own(tmp_path: Path) -> None:
    assert read_snli(write(tmp_path, pair(pairID="a") + pair(pairID="b"))).ids == ("a", "b")
    assert read_snli(write(tmp_path, pair(pairID="a") + pair(pairID="a"))).ids == ("1", "2")
    assert read_snli(write(tmp_path, pair(pairID="a") + pair())).ids == ("1", "2")
    assert read_snli(write(tmp_path, pair(pairID=7) + pair(pairID="b"))).ids == ("1", "2")


def test_the_real_pairs_are_read(shared_data: Path) -> None:
    for name in ("dev", "test"):
        path = shared_data / "snli" / f"{name}.jsonl"
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        data = read_snli(path)
        assert data.ids == tuple(row["pairID"] for row in rows if row["gold_label"] != "-")
        assert len(data.text.splitlines()) == len(data.ids) > 1000


# -- SQuAD ---------------------------------------------------------------------------------------


def question(one: str | None = "q", **fields: Any) -> dict[str, Any]:
    said = {"question": "Who?", "answers": [{"text": "Ann", "answer_start": 0}], **fields}
    return said if one is None else {"id": one, **said}


def squad(*paragraphs: list[dict[str, Any]]) -> str:
    found = [{"context": f"Ann {k}.", "qas": questions} for k, questions in enumerate(paragraphs)]
    return json.dumps({"data": [{"title": "t", "paragraphs": found}]})


def test_questions_are_called_by_their_ids_where_each_has_its_own(tmp_path: Path) -> None:
    data = read_squad(write(tmp_path, squad([question("a")], [question("b"), question("c")])))
    assert data.ids == ("a", "b", "c")
    data = read_squad(write(tmp_path, squad([question("a")], [question("a")])))
    assert data.ids == ("1", "2")
    assert read_squad(write(tmp_path, squad([question(None)]))).ids == ("1",)


def test_the_first_questions_keep_their_paragraphs_only(tmp_path: Path) -> None:
    path = write(tmp_path, squad([question("a"), question("b")], [question("c"), question("d")]))
    data = read_squad(path, 3)
    assert data.ids == ("a", "b", "c")
    assert data.notes == ("the first 3 of 4 questions",)
    (article,) = json.loads(data.text)["data"]
    assert [[q["id"] for q in p["qas"]] for p in article["paragraphs"]] == [["a", "b"], ["c"]]
    assert [p["context"] for p in article["paragraphs"]] == ["Ann 0.", "Ann 1."]
    (article,) = json.loads(read_squad(path, 1).text)["data"]
    assert len(article["paragraphs"]) == 1


def test_the_real_questions_are_read(shared_data: Path) -> None:
    path = shared_data / "squad" / "dev-part.json"
    data = read_squad(path)
    assert len(data.ids) == len(set(data.ids)) == 810
    assert data.notes == ()
    made, given = json.loads(data.text)["data"], json.loads(path.read_text("utf-8"))["data"]
    assert [a["paragraphs"] for a in made] == [a["paragraphs"] for a in given]


# -- all -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", READERS)
@pytest.mark.parametrize("n", [1, 7, 10**6])
def test_only_the_first_examples_are_taken(shared_data: Path, task: str, n: int) -> None:
    path = {
        "sst5": shared_data / "sst5" / "dev.txt",
        "snli": shared_data / "snli" / "dev.jsonl",
        "squad": shared_data / "squad" / "dev-part.json",
    }[task]
    whole = READERS[task](path, None)
    part = READERS[task](path, n)
    assert part.ids == whole.ids[:n]
    assert any("the first" in note for note in part.notes) == (n < len(whole.ids))


BAD: dict[str, tuple[str, bytes | str, str]] = {
    "no label": ("sst5", "3 fine\nfine\n", "line 2 is no label from 0 to 4 and a sentence"),
    "label alone": ("sst5", "3 fine\n2\n", "line 2 is no label"),
    "another label": ("sst5", "5 fine\n", "line 1 is no label"),
    "tree among words": ("sst5", "3 fine\n(3 (2 fine))\n", "line 2 is no label"),
    "words among trees": ("sst5", "(3 (2 fine))\n3 fine\n", "line 2 is no tree"),
    "open tree": ("sst5", "(3 (2 fine)\n", "line 1 is no tree: its parentheses differ"),
    "two trees": ("sst5", "(3 (2 a)) (3 (2 b))\n", "line 1 is no tree: its parentheses differ"),
    "more after a tree": ("sst5", "(3 (2 a)) b\n", "line 1 is no tree"),
    "empty": ("sst5", "", "holds no examples"),
    "blank": ("sst5", "\n \n", "holds no examples"),
    "not utf-8": ("sst5", b"3 fine\n3 caf\xe9\n", "is not UTF-8 at byte 12"),
    "no json": ("snli", pair() + "3 fine\n", "line 2 is no JSON"),
    "no object": ("snli", "[1]\n", "line 1 is no JSON object"),
    "no sentence": ("snli", '{"gold_label": "neutral", "sentence1": "a"}', "no text 'sentence2'"),
    "a number for a sentence": ("snli", pair(sentence1=3), "line 1 has no text 'sentence1'"),
    "label of another set": ("snli", pair(gold_label="true"), "line 1 has the gold label 'true'"),
    "no labels at all": ("snli", pair(gold_label="-"), "holds no examples"),
    "half a character": ("snli", pair(sentence1="\ud800"), "line 1 is no JSON"),
    "lines": ("squad", pair() * 2, "is no JSON"),
    "a list": ("squad", "[]", "the file has no list 'data'"),
    "no paragraphs": ("squad", '{"data": [{}]}', "article 1 has no list 'paragraphs'"),
    "no context": ("squad", squad([]).replace("context", "text"), "paragraph 1 of article 1"),
    "no answers": (
        "squad", squad([question(), question(answers=None)]),
        "question 2 of paragraph 1 of article 1 has no list 'answers'",
    ),
    "no start": (
        "squad", squad([question(answers=[{"text": "a"}])]), "has no answer_start",
    ),
    "start before the start": (
        "squad", squad([question(answers=[{"text": "a", "answer_start": -1}])]), "no answer_start",
    ),
    "nothing asked": ("squad", squad([]), "holds no examples"),
    "too deep": ("squad", "[" * 100_000, "is no JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_other_data_are_refused_in_one_line_that_says_where(name: str, tmp_path: Path) -> None:
    task, data, message = BAD[name]
    path = write(tmp_path, data)
    with pytest.raises(EvaluationInputError, match=re.escape(message)) as caught:
        READERS[task](path, None)
    assert caught.value.path == str(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_what_is_no_file_is_refused(
    read: Callable[[Path, int | None], TaskData], tmp_path: Path
) -> None:
    with pytest.raises(EvaluationInputError, match="no such file"):
        read(tmp_path / "nothing", None)
    with pytest.raises(EvaluationInputError, match="is a folder"):
        read(tmp_path, None)
