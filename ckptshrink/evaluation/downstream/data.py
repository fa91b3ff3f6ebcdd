"""Data of the three tasks: checked line by line, cut to size, in the form that AllenNLP reads."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from ckptshrink.errors import EvaluationInputError, printable
from ckptshrink.evaluation.files import read_whole, strict_json

_MOST_BYTES: Final = 1 << 31
"""A thousand times the largest of the three."""

_SNLI_LABELS: Final = frozenset({"entailment", "neutral", "contradiction"})
_NO_LABEL: Final = "-"
"""Where SNLI's annotators did not agree; the reader leaves such pairs out."""

_TREE: Final = re.compile(r"\(\s*(\d+)\s")
_SENTENCE: Final = re.compile(r"([0-4])\s+(\S.*)")


@dataclass(frozen=True, slots=True)
class TaskData:
    """Examples of a task as AllenNLP reads them.

    Attributes
    ----------
    ids : tuple of str
        Of each example that the reader is given, in order; each once.
    text : str
        What the reader reads.
    notes : tuple of str
        What was left out, or changed.
    sentences_only : bool
        Whether labels are known of whole sentences only, not of phrases.
    """

    ids: tuple[str, ...]
    text: str
    notes: tuple[str, ...] = ()
    sentences_only: bool = False


Read = Callable[[Path, int | None], TaskData]
"""Read a file, or its first examples."""


def read_sst5(path: Path, most: int | None = None) -> TaskData:
    """Read sentences with one of five labels: trees, or the label and the words on a line.

    The second form becomes a tree with the label at its root and the neutral one at each word;
    parentheses in words become -LRB- and -RRB-, as they stand in the treebank.

    Raises
    ------
    EvaluationInputError
        A line is in neither form, or not in that of the first line.
    """
    lines = list(_lines(path))
    in_trees = bool(lines) and lines[0][1].startswith("(")
    convert = _tree if in_trees else _tree_of_words
    found = [(number, convert(line, number, path)) for number, line in lines[:most]]
    _some(found, path)
    return TaskData(
        ids=tuple(str(number) for number, _ in found),
        text="".join(f"{tree}\n" for _, tree in found),
        notes=_cut(len(found), len(lines), "sentences"),
        sentences_only=not in_trees,
    )


def read_snli(path: Path, most: int | None = None) -> TaskData:
    """Read pairs of sentences, a JSON object a line; those without a gold label don't count.

    Raises
    ------
    EvaluationInputError
        A line is no such pair.
    """
    pairs = [(number, _pair(line, number, path)) for number, line in _lines(path)]
    labelled = [(number, pair) for number, pair in pairs if pair["gold_label"] != _NO_LABEL]
    found = labelled[:most]
    _some(found, path)
    said = [pair.get("pairID") for _, pair in labelled]
    named = all(isinstance(one, str) for one in said) and len(set(said)) == len(said)
    keys = ("gold_label", "sentence1", "sentence2")
    unlabelled = len(pairs) - len(labelled)
    notes = [f"{unlabelled} pairs without a gold label are not scored"] if unlabelled else []
    return TaskData(
        ids=tuple(pair["pairID"] if named else str(number) for number, pair in found),
        text="".join(json.dumps({k: pair[k] for k in keys}) + "\n" for _, pair in found),
        notes=(*notes, *_cut(len(found), len(labelled), "pairs")),
    )


def read_squad(path: Path, most: int | None = None) -> TaskData:
    """Read questions on paragraphs, in the JSON form of SQuAD 1.1.

    Raises
    ------
    EvaluationInputError
        It is not in that form; the message says where.
    """
    try:
        whole = strict_json(_text(path).encode())
    except ValueError as error:
        raise EvaluationInputError(f"is no JSON: {_short(error)}", path=path) from error
    articles = _list(whole, "data", "the file", path)
    ids: list[str | None] = []
    kept: list[dict[str, Any]] = []
    n_all = 0
    for a, article in enumerate(articles, 1):
        paragraphs = []
        for p, paragraph in enumerate(_list(article, "paragraphs", f"article {a}", path), 1):
            where = f"paragraph {p} of article {a}"
            questions = _list(paragraph, "qas", where, path)
            _text_at(paragraph, "context", where, path)
            for q, question in enumerate(questions, 1):
                _check_question(question, f"question {q} of {where}", path)
            n_all += len(questions)
            left = len(questions) if most is None else max(0, most - len(ids))
            taken = questions[:left]
            ids += [question.get("id") for question in taken]
            if taken:
                paragraphs.append({"context": paragraph["context"], "qas": taken})
        if paragraphs:
            kept.append({"paragraphs": paragraphs})
    _some(ids, path)
    named = all(isinstance(one, str) for one in ids) and len(set(ids)) == len(ids)
    return TaskData(
        ids=tuple(str(one) if named else str(k) for k, one in enumerate(ids, 1)),
        text=json.dumps({"version": "1.1", "data": kept}),
        notes=_cut(len(ids), n_all, "questions"),
    )


# -- lines ---------------------------------------------------------------------------------------


def _text(path: Path) -> str:
    data = read_whole(path, _MOST_BYTES, "the data of a task")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EvaluationInputError(f"is not UTF-8 at byte {error.start:,}", path=path) from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, with their numbers."""
    # only at line feeds: what else Unicode takes for the end of a line stands inside of sentences
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            yield number, line.strip()


def _some(found: Sequence[Any], path: Path) -> None:
    if not found:
        raise EvaluationInputError("holds no examples", path=path)


def _cut(taken: int, known: int, what: str) -> tuple[str, ...]:
    return (f"the first {taken:,} of {known:,} {what}",) if taken < known else ()


def _short(error: BaseException) -> str:
    return printable(" ".join(str(error).split()))[:200]


# -- sentences -----------------------------------------------------------------------------------


def _tree(line: str, number: int, path: Path) -> str:
    if not _TREE.match(line):
        raise EvaluationInputError(f"line {number} is no tree: no (LABEL at its start", path=path)
    depths = list(accumulate((c == "(") - (c == ")") for c in line))
    if depths[-1] != 0 or 0 in depths[:-1]:
        raise EvaluationInputError(f"line {number} is no tree: its parentheses differ", path=path)
    return " ".join(line.split())  # the reader would end the line at a carriage return


def _tree_of_words(line: str, number: int, path: Path) -> str:
    found = _SENTENCE.fullmatch(line)
    if found is None:
        raise EvaluationInputError(
            f"line {number} is no label from 0 to 4 and a sentence",
            path=path,
            hint="a line is a tree, (3 (2 good) (2 film)), or a label and words: 3 good film",
        )
    label, sentence = found.groups()
    words = (word.replace("(", "-LRB-").replace(")", "-RRB-") for word in sentence.split())
    return f"({label} {' '.join(f'(2 {word})' for word in words)})"


# -- pairs ---------------------------------------------------------------------------------------


def _pair(line: str, number: int, path: Path) -> dict[str, Any]:
    try:
        pair = strict_json(line.encode())
    except ValueError as error:
        raise EvaluationInputError(
            f"line {number} is no JSON: {_short(error)}", path=path
        ) from error
    if not isinstance(pair, dict):
        raise EvaluationInputError(f"line {number} is no JSON object", path=path)
    for key in ("gold_label", "sentence1", "sentence2"):
        _text_at(pair, key, f"line {number}", path)
    if pair["gold_label"] not in {*_SNLI_LABELS, _NO_LABEL}:
        label = printable(pair["gold_label"])[:40]
        raise EvaluationInputError(f"line {number} has the gold label {label!r}", path=path)
    return pair


# -- questions -----------------------------------------------------------------------------------


def _check_question(question: Any, where: str, path: Path) -> None:
    _text_at(question, "question", where, path)
    for answer in _list(question, "answers", where, path):
        _text_at(answer, "text", f"an answer to {where}", path)
        start = answer.get("answer_start")
        if not isinstance(start, int) or isinstance(start, bool) or start < 0:
            raise EvaluationInputError(f"an answer to {where} has no answer_start", path=path)


def _list(node: Any, key: str, where: str, path: Path) -> list[Any]:
    found = node.get(key) if isinstance(node, dict) else None
    if not isinstance(found, list):
        raise EvaluationInputError(f"{where} has no list {key!r}", path=path)
    return found


def _text_at(node: Any, key: str, where: str, path: Path) -> None:
    found = node.get(key) if isinstance(node, dict) else None
    if not isinstance(found, str):
        raise EvaluationInputError(f"{where} has no text {key!r}", path=path)
