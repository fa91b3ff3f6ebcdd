"""The words of a language model by number, from a file: text, JSON, or fastai's pickled list."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ckptshrink.digest import value_sha256
from ckptshrink.errors import CheckpointError, EvaluationInputError, printable
from ckptshrink.evaluation.files import read_whole, strict_json
from ckptshrink.io.inert_pickle import decode
from ckptshrink.io.pickle_records import as_items

EOS: Final = "<eos>"
"""The end-of-line word of awd-lstm-lm and of PyTorch's word_language_model."""

_ENDS: Final = (EOS, "</s>", "<EOS>", "[EOS]", "xxeos", "\n", "xxbos", "xbos")
"""End-of-line words, the first one found is taken. fastai's vocabularies have no ``<eos>``: a line
ends in a newline word, or a text begins with ``xxbos``, which stands between two lines alike."""

_UNKNOWNS: Final = ("<unk>", "xxunk", "_unk_", "<UNK>", "[UNK]", "UNK", "@@UNKNOWN@@")
"""Words for unknown ones, the first one found is taken."""

_FILLER: Final = "xxfake"
"""What fastai fills a vocabulary up with to a multiple of 8: the one word that may repeat."""

_MOST_BYTES: Final = 128 << 20
"""Size above which a file is no vocabulary: four million words take less."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The words of a language model.

    Attributes
    ----------
    words : tuple of str
        By number.
    eos : str
        The word that ends a line.
    unk : str or None
        The word for unknown ones, where there is one.
    path : Path or None
        The file it is from; None where it was built from training text.
    """

    words: tuple[str, ...]
    eos: str
    unk: str | None
    path: Path | None

    @property
    def sha256(self) -> str:
        """Return the hash of the words in order, the same from any kind of file."""
        return value_sha256(list(self.words))


def read_vocabulary(path: Path, *, eos: str | None = None, unk: str | None = None) -> Vocabulary:
    r"""Read a vocabulary file.

    Parameters
    ----------
    path : Path
        One word a line, in order; a JSON list of words; a JSON object of numbers by word; or a
        pickled list of words (fastai's ``itos.pkl``), of which no code is run. Which of these it is
        follows from its content.
    eos, unk : str, optional
        The word that ends a line, and the one for unknown words. If not given, they are found
        by their names in use: ``<eos>``, ``</s>``, ``xxeos``, ``\n``, ``xxbos`` ...; ``<unk>``,
        ``xxunk``, ``_unk_`` ...

    Raises
    ------
    EvaluationInputError
        It can't be read, is no vocabulary, has a word twice, or lacks `eos` or `unk`.
    """
    data = read_whole(path, _MOST_BYTES, "a vocabulary")
    try:
        words = _words(path, data)
        _check(words)
    except ValueError as error:
        reason = printable(" ".join(str(error).split()))
        raise EvaluationInputError(
            f"is no vocabulary: {reason}",
            path=path,
            hint="one word a line, a JSON list of words, a JSON object of numbers by word, or "
            "fastai's itos.pkl",
        ) from error
    return with_special_words(words, eos=eos, unk=unk, path=path)


def with_special_words(
    words: tuple[str, ...], *, eos: str | None, unk: str | None, path: Path | None
) -> Vocabulary:
    """Return the vocabulary of these words, the special ones found where they are not given.

    Raises
    ------
    EvaluationInputError
        `eos` or `unk` is no word of it, or no end-of-line word is known.
    """
    known = set(words)
    end = _given(eos, words, "--eos", path) or next((w for w in _ENDS if w in known), None)
    if end is None:
        raise EvaluationInputError(
            f"has no end-of-line word: none of {', '.join(map(repr, _ENDS))}",
            path=path,
            hint="--eos WORD names it",
        )
    unknown = _given(unk, words, "--unk", path) or next((w for w in _UNKNOWNS if w in known), None)
    return Vocabulary(words, end, unknown, path)


def _given(word: str | None, words: Sequence[str], option: str, path: Path | None) -> str | None:
    if word is None or word in words:
        return word
    if word == "\\n" and "\n" in words:  # as a shell's quotes leave it
        return "\n"
    close = difflib.get_close_matches(word, words, n=1)
    raise EvaluationInputError(
        f"{option} {word!r} is no word of the vocabulary",
        path=path,
        hint=f"did you mean {close[0]!r}?" if close else None,
    )


def _words(path: Path, data: bytes) -> tuple[str, ...]:
    """Return the words of a file of any kind."""
    if data[:1] == b"\x80" or path.suffix in {".pkl", ".pickle"}:
        return _of_pickle(data)
    if path.suffix == ".json":
        return _of_json(strict_json(data))
    if data.lstrip()[:1] in (b"[", b"{"):  # or a list of words that begins with [PAD]
        try:
            return _of_json(strict_json(data))
        except ValueError:
            if b"\n" not in data.strip():
                raise
    return _of_lines(data)


def _of_lines(data: bytes) -> tuple[str, ...]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"line {line} is no UTF-8") from error
    if "\0" in text:
        raise ValueError("it has a NUL byte")
    words = [line.removesuffix("\r") for line in text.split("\n")]
    while words and not words[-1]:
        words.pop()
    for number, word in enumerate(words, 1):
        # Numbers or counts beside the words would make every word of the text an unknown one.
        if not word or word.split() != [word]:
            said = f"{word[:40]!r}, and not one word" if word else "empty"
            raise ValueError(f"line {number} is {said}")
    return tuple(words)


def _of_json(value: Any) -> tuple[str, ...]:
    if isinstance(value, list):
        return _texts(value)
    if not isinstance(value, dict):
        raise ValueError("its JSON is neither a list nor an object")
    numbers = range(len(value))
    by_number = {n: word for word, n in value.items() if type(n) is int}
    if by_number.keys() != set(numbers):
        raise ValueError(f"its numbers are not 0 to {len(value) - 1}, each once")
    return tuple(by_number[number] for number in numbers)


def _of_pickle(data: bytes) -> tuple[str, ...]:
    try:
        items = as_items(decode(data).value)
    except CheckpointError as error:
        raise ValueError(error.message) from error
    if items is None or items.kind not in {"list", "tuple"}:
        raise ValueError("the pickle is no list")
    return _texts(items.items)


def _texts(values: Iterable[object]) -> tuple[str, ...]:
    words = []
    for number, word in enumerate(values):
        if not isinstance(word, str):
            raise ValueError(f"entry {number} is {str(word)[:40]!r}, and no text")
        words.append(word)
    return tuple(words)


def _check(words: Sequence[str]) -> None:
    if not words:
        raise ValueError("it has no word")
    seen: set[str] = set()
    for number, word in enumerate(words):
        if word in seen and word != _FILLER:
            first = words.index(word)
            raise ValueError(f"{word[:40]!r} is there twice, as word {first} and {number}")
        seen.add(word)
    try:
        "\n".join(words).encode()
    except UnicodeEncodeError as error:
        raise ValueError("it holds half of a character (a lone surrogate)") from error
