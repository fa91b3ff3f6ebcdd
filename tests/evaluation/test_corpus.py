"""Texts and vocabularies, against what the training scripts themselves would read."""

import json
import os
import pickle
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckptshrink.errors import EvaluationInputError
from ckptshrink.evaluation import corpus
from ckptshrink.evaluation.corpus import Text, read_text, vocabulary_of_texts
from ckptshrink.evaluation.vocabulary import Vocabulary, read_vocabulary
from ckptshrink.io import files


def lines_of_script(path: Path) -> list[list[str]]:
    """Return the words of each line as the data.py of either training script takes them."""
    with path.open(encoding="utf-8") as file:
        return [[*line.split(), "<eos>"] for line in file]


def words_of_script(*paths: Path) -> list[str]:
    words: dict[str, int] = {}
    for path in paths:
        for line in lines_of_script(path):
            for word in line:
                words.setdefault(word, len(words))
    return list(words)


def spoken(text: Text, vocabulary: Vocabulary) -> list[list[str]]:
    """Return the words of each line, from their numbers."""
    lines = np.split(text.ids, text.ends[:-1])
    assert text.ends[-1] == len(text.ids)
    return [[vocabulary.words[i] for i in line] for line in lines]


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(EvaluationInputError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert text.isprintable()
    return text


# -- texts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["brown", "wikitext-2"])
def test_a_corpus_is_read_as_the_training_scripts_read_it(shared_data: Path, name: str) -> None:
    paths = [shared_data / name / f"{part}.txt" for part in ("train", "valid", "test")]
    paths = [path for path in paths if path.exists()]
    vocabulary = vocabulary_of_texts(paths)
    assert list(vocabulary.words) == words_of_script(*paths)
    assert (vocabulary.eos, vocabulary.unk) == ("<eos>", "<unk>")
    text = read_text(paths[-1], vocabulary)
    assert text.n_unknown == 0
    assert text.ids.dtype == np.int32
    assert spoken(text, vocabulary) == lines_of_script(paths[-1])


def test_brown_has_the_words_that_its_note_says(shared_data: Path) -> None:
    folder = shared_data / "brown"
    vocabulary = vocabulary_of_texts([folder / "train.txt"])
    assert len(vocabulary.words) == 10_000
    text = read_text(folder / "test.txt", vocabulary)
    assert (len(text.ids), len(text.ends)) == (50_700 + 2_972, 2_972)


TEXTS = st.lists(
    st.one_of(st.sampled_from(["\n", "\r\n", "\r", " ", "\t", "\x1c", "\x85", "\u2028", "\xa0", "a",
                               "the", "<eos>", "<unk>", "é", "\U0001f600", "\ufeff"]),
              st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]),
                      max_size=3)),
    max_size=30,
).map("".join)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(content=TEXTS, chunk=st.sampled_from([1, 2, 3, 7, 1 << 20]))
def test_any_text_is_read_as_the_training_scripts_read_it(
    content: str, chunk: int, tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content.encode())
    want = lines_of_script(path)
    before, files.CHUNK = files.CHUNK, chunk  # a part of a line, a word, or a character
    try:
        if not want:
            assert "is empty" in refused(lambda: vocabulary_of_texts([path]))
            return
        vocabulary = vocabulary_of_texts([path])
        assert list(vocabulary.words) == words_of_script(path)
        assert spoken(read_text(path, vocabulary), vocabulary) == want
        for n in (1, 2, len(want)):
            assert spoken(read_text(path, vocabulary, n), vocabulary) == want[:n]
    finally:
        files.CHUNK = before


def test_several_texts_give_their_words_in_their_order(tmp_path: Path) -> None:
    first, second = tmp_path / "train.txt", tmp_path / "valid.txt"
    first.write_text("b a\n\nc b\n")
    second.write_text("d a e")
    assert vocabulary_of_texts([first, second]).words == ("b", "a", "<eos>", "c", "d", "e")
    assert vocabulary_of_texts([second, first]).words == ("d", "a", "e", "<eos>", "b", "c")
    named = vocabulary_of_texts([second], eos="</s>", unk="e")
    assert (named.words, named.eos, named.unk) == (("d", "a", "e", "</s>"), "</s>", "e")
    second.write_text("")
    assert vocabulary_of_texts([first, second]).words == ("b", "a", "<eos>", "c")


def test_unknown_words_are_counted_as_the_word_for_them(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a <unk> b\n")
    (tmp_path / "test.txt").write_text("a x\n<unk> y x\n\nb")
    vocabulary = vocabulary_of_texts([tmp_path / "train.txt"])
    text = read_text(tmp_path / "test.txt", vocabulary)
    assert text.n_unknown == 3
    assert spoken(text, vocabulary) == [
        ["a", "<unk>", "<eos>"], ["<unk>", "<unk>", "<unk>", "<eos>"], ["<eos>"], ["b", "<eos>"],
    ]  # fmt: skip
    assert read_text(tmp_path / "test.txt", vocabulary, 1).n_unknown == 1


def test_an_unknown_word_without_a_word_for_it_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a b\n")
    (tmp_path / "test.txt").write_text("a b\n\nb wr\x1bong a\n")
    vocabulary = vocabulary_of_texts([tmp_path / "train.txt"])
    said = refused(lambda: read_text(tmp_path / "test.txt", vocabulary))
    assert said.endswith("line 3: the vocabulary has no 'wr\\x1bong', nor a word for unknown ones")
    assert said.startswith(str(tmp_path / "test.txt"))


@pytest.mark.parametrize("read", [lambda p: vocabulary_of_texts([p]), lambda p: read_text(p, V)])
@pytest.mark.parametrize("chunk", [5, 1 << 20])
def test_what_is_no_text_is_refused_by_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], Any], chunk: int
) -> None:
    monkeypatch.setattr(files, "CHUNK", chunk)
    path = tmp_path / "text.txt"
    for content, said in [
        (b"a a\n\xe9t\xe9 a\n", "line 2 is no UTF-8"),
        (b"a a\r\n\ra\n\n\nb\xff", "line 6 is no UTF-8"),
        (b"a a\na \xf0\x9f\x98", "line 2 is no UTF-8"),
        ("a b\n".encode("utf-16"), "line 1 is no UTF-8"),
        (b"a a\na\na\0b\n", "line 3 has a NUL byte: is it a text?"),
        (b"", "is empty"),
    ]:
        path.write_bytes(content)
        assert refused(lambda: read(path)) == f"{path}: {said}"
    assert "there is no such file" in refused(lambda: read(tmp_path / "txet.txt"))
    assert "is a folder" in refused(lambda: read(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    assert "is a named pipe" in refused(lambda: read(tmp_path / "pipe"))
    assert "is a character device" in refused(lambda: read(Path("/dev/zero")))


V = Vocabulary(("a", "<unk>", "<eos>"), "<eos>", "<unk>", None)


def test_a_line_may_be_as_long_as_it_likes_and_a_word_may_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "CHUNK", 64)
    monkeypatch.setattr(corpus, "_LONGEST_WORD", 100)
    path = tmp_path / "text8"
    path.write_text("a b " * 5000)
    text = read_text(path, V)
    assert (len(text.ids), list(text.ends), text.n_unknown) == (10_001, [10_001], 5_000)
    path.write_text("a a\n" + "a" * 500)
    assert "line 2 has a word of more than 100 characters" in refused(lambda: read_text(path, V))


# -- vocabularies from files -----------------------------------------------------------------------

WORDS = ["the", "<eos>", "<unk>", "é", "[PAD]", "\U0001f600", "it's", "{"]


def as_text(path: Path, words: list[str]) -> None:
    path.write_text("\n".join(words) + "\n", encoding="utf-8")


def as_text_of_windows(path: Path, words: list[str]) -> None:
    path.write_bytes(("\ufeff" + "\r\n".join(words)).encode())


def as_list(path: Path, words: list[str]) -> None:
    path.write_text(json.dumps(words))


def as_object(path: Path, words: list[str]) -> None:
    pairs = list(enumerate(words))
    random.Random(0).shuffle(pairs)
    path.write_text(json.dumps({word: i for i, word in pairs}, indent=1, ensure_ascii=False))


def as_pickle(protocol: int) -> Callable[[Path, list[str]], None]:
    return lambda path, words: path.write_bytes(pickle.dumps(words, protocol)) and None


KINDS: dict[str, Callable[[Path, list[str]], None]] = {
    "vocab.txt": as_text, "vocab": as_text_of_windows, "words.json": as_list, "words": as_list,
    "stoi.json": as_object, "stoi": as_object, "itos.pkl": as_pickle(4), "itos": as_pickle(2),
    "old.pkl": as_pickle(0),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("first", ["the", "[PAD]", "{"])
def test_every_kind_of_file_gives_the_same_vocabulary(
    tmp_path: Path, name: str, first: str
) -> None:
    words = [first, *(word for word in WORDS if word != first)]
    KINDS[name](tmp_path / name, words)
    vocabulary = read_vocabulary(tmp_path / name)
    assert list(vocabulary.words) == words
    assert (vocabulary.eos, vocabulary.unk) == ("<eos>", "<unk>")
    assert vocabulary.sha256 == Vocabulary(tuple(words), "x", None, None).sha256
    assert vocabulary.sha256 != Vocabulary(tuple(words[1:]), "x", None, None).sha256


@pytest.mark.parametrize(
    ("words", "eos", "unk"),
    [
        (["xxunk", "xxpad", "xxbos", "xxmaj", "the", "\n", "xxfake", "xxfake"], "\n", "xxunk"),
        (["xxunk", "xxpad", "xxbos", "the"], "xxbos", "xxunk"),
        (["_unk_", "_pad_", "the", "<eos>", "\n"], "<eos>", "_unk_"),
        (["<s>", "</s>", "the", "[UNK]"], "</s>", "[UNK]"),
        (["the", "xbos"], "xbos", None),
    ],
)
def test_the_special_words_of_other_trainers_are_found(
    tmp_path: Path, words: list[str], eos: str, unk: str | None
) -> None:
    as_pickle(3)(tmp_path / "itos.pkl", words)
    vocabulary = read_vocabulary(tmp_path / "itos.pkl")
    assert (vocabulary.eos, vocabulary.unk, list(vocabulary.words)) == (eos, unk, words)


def test_special_words_may_be_named_and_must_be_words(tmp_path: Path) -> None:
    path = tmp_path / "words.json"
    as_list(path, ["the", "END", "OOV", "\n"])
    named = read_vocabulary(path, eos="END", unk="OOV")
    assert (named.eos, named.unk) == ("END", "OOV")
    assert read_vocabulary(path, eos="\\n").eos == "\n"
    with pytest.raises(EvaluationInputError, match="--unk 'OOW' is no word") as caught:
        read_vocabulary(path, unk="OOW")
    assert caught.value.hint == "did you mean 'OOV'?"
    as_list(path, ["the", "of"])
    assert "has no end-of-line word" in refused(lambda: read_vocabulary(path))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("v.txt", b"", "it has no word"),
        ("v.txt", b"\n\n", "it has no word"),
        ("v.txt", b"the 120\nof 80\n", "line 1 is 'the 120', and not one word"),
        ("v.txt", b"the\nof\t80\n", "line 2 is 'of\\t80', and not one word"),
        ("v.txt", b"the\n\nof\n", "line 2 is empty"),
        ("v.txt", b"the\nof\nthe\n", "'the' is there twice, as word 0 and 2"),
        ("v.txt", b"the\n\xff\n", "line 2 is no UTF-8"),
        ("v.txt", b"the\0\n", "NUL byte"),
        ("v.txt", b"[1, 2]", "entry 0 is '1', and no text"),
        ("v.json", b"[]", "it has no word"),
        ("v.json", b"the\nof\n", "Expecting value"),
        ("v.json", b'["a", "a"]', "'a' is there twice"),
        ("v.json", b'["a", "\\ud800"]', "lone surrogate"),
        ("v.json", b'"a"', "neither a list nor an object"),
        ("v.json", b'{"a": 0, "b": 2}', "its numbers are not 0 to 1, each once"),
        ("v.json", b'{"a": 0, "b": 0}', "its numbers are not 0 to 1, each once"),
        ("v.json", b'{"a": 0, "b": true}', "its numbers are not 0 to 1, each once"),
        ("v.json", b'{"a": 0, "b": [1]}', "its numbers are not 0 to 1, each once"),
        ("v.json", b'{"a": 0, "a": 1}', "the key 'a' is there twice"),
        ("v.json", b"[" * 100_000, "nested too deeply"),
        ("v.pkl", pickle.dumps({"a": 0}), "the pickle is no list"),
        ("v.pkl", pickle.dumps(["a", b"b"]), "entry 1 is"),
        ("v.pkl", pickle.dumps(["a", "b"])[:-2], "is no vocabulary"),
        ("v.pkl", b"not a pickle", "is no vocabulary"),
    ],
)
def test_what_is_no_vocabulary_is_refused(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert said in refused(lambda: read_vocabulary(path))


def test_no_code_of_a_pickled_vocabulary_is_run(tmp_path: Path) -> None:
    made = tmp_path / "made"

    class Evil:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(made),))

    for content in (Evil(), ["the", Evil()]):
        (tmp_path / "itos.pkl").write_bytes(pickle.dumps(content))
        assert "is no vocabulary" in refused(lambda: read_vocabulary(tmp_path / "itos.pkl"))
    assert not made.exists()


def test_a_vocabulary_file_is_held_to_a_text_by_counting(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "wikitext-2" / "valid.txt"
    counts = Counter(word for line in lines_of_script(path) for word in line)
    kept = [word for word, _ in counts.most_common(500)]
    assert {"<unk>", "<eos>"} <= set(kept)
    as_text(tmp_path / "vocab.txt", kept)
    text = read_text(path, read_vocabulary(tmp_path / "vocab.txt"))
    assert len(text.ids) == sum(counts.values())
    assert text.n_unknown == sum(n for word, n in counts.items() if word not in kept)
    where = np.bincount(text.ids, minlength=500)
    assert where[kept.index("the")] == counts["the"]
    assert where[kept.index("<unk>")] == counts["<unk>"] + text.n_unknown
