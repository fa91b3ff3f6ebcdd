r"""A text as numbers of words, by the rules of the training scripts of awd-lstm-lm and PyTorch.

- A text is UTF-8. Lines end at ``\n``, ``\r\n`` or ``\r``; what follows the last of these is a
  line too, unless it is nothing.
- A line is split at white space, of Unicode too, and gets one end-of-line word (``<eos>``) after
  it. So does an empty line, which is that word alone.
- A vocabulary built from training text has each word in the order of its first appearance, the
  end-of-line word in its place among them. Several files are read in the order given:
  awd-lstm-lm and PyTorch's word_language_model read train, valid, test.
- A word that is not in the vocabulary becomes the vocabulary's word for unknown ones, and is
  counted; where there is no such word it is an error.
"""

import codecs
import io
import itertools
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ckptshrink.errors import EvaluationInputError
from ckptshrink.evaluation.files import opened
from ckptshrink.evaluation.vocabulary import EOS, Vocabulary, with_special_words

_LONGEST_WORD: Final = 1 << 20
"""Characters of a word that is none: a file without white space is no text, and is not to be read
into memory whole. A line may be as long as it likes (text8 is one of 100 MB)."""

_LINE_END: Final = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True, slots=True)
class Text:
    """A text as numbers of words.

    Attributes
    ----------
    ids : (N,) int32
        Every word in order, the end-of-line words among them.
    ends : (n_lines,) int64
        Where the words of each line end in `ids`: line i has those before ``ends[i]``.
    n_unknown : int
        Words that the vocabulary does not have.
    """

    ids: NDArray[np.int32]
    ends: NDArray[np.int64]
    n_unknown: int


def read_text(path: Path, vocabulary: Vocabulary, max_lines: int | None = None) -> Text:
    """Return a text as numbers of words.

    Parameters
    ----------
    max_lines : int, optional
        Read only so many lines.

    Raises
    ------
    EvaluationInputError
        It can't be read, is no text, has no line, or has a word that is not in the vocabulary,
        which has no word for unknown ones. The message names the line.
    """
    ids, ends = array("i"), array("q")
    numbers = _Numbers(vocabulary)
    number_of = numbers.__getitem__
    eos = numbers[vocabulary.eos]
    try:
        for words, ended in _pieces(path):
            ids.extend(map(number_of, words))
            if ended:
                ids.append(eos)
                ends.append(len(ids))
                if len(ends) == max_lines:
                    break
    except KeyError as error:
        word = str(error.args[0])[:40]
        raise EvaluationInputError(
            f"line {len(ends) + 1}: the vocabulary has no {word!r}, nor a word for unknown ones",
            path=path,
            hint="--unk WORD names it; or is it the vocabulary of another corpus?",
        ) from None
    if not ends:
        raise EvaluationInputError("is empty", path=path)
    return Text(np.frombuffer(ids, np.int32), np.frombuffer(ends, np.int64), numbers.n_unknown)


def vocabulary_of_texts(
    paths: Sequence[Path], *, eos: str | None = None, unk: str | None = None
) -> Vocabulary:
    """Return the vocabulary that a training script builds from texts.

    Parameters
    ----------
    paths : sequence of Path
        In the order in which the script reads them.
    eos : str, optional
        The end-of-line word; ``<eos>`` if not given.
    unk : str, optional
        The word for unknown ones; found among known names if not given.

    Raises
    ------
    EvaluationInputError
        One can't be read or has no line, or `unk` is no word of them.
    """
    last = EOS if eos is None else eos
    numbers: dict[str, int] = {}
    for path in paths:
        n_before = len(numbers)
        for words, ended in _pieces(path):
            for word in words:
                if word not in numbers:
                    numbers[word] = len(numbers)
            if ended and last not in numbers:
                numbers[last] = len(numbers)
        if len(numbers) == n_before == 0:
            raise EvaluationInputError("is empty", path=path)
    return with_special_words(tuple(numbers), eos=last, unk=unk, path=None)


class _Numbers(dict[str, int]):
    """Numbers of words; any other word has that of the word for unknown ones, and is counted."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__(zip(vocabulary.words, range(len(vocabulary.words)), strict=True))
        self.n_unknown = 0
        self._unknown = None if vocabulary.unk is None else self[vocabulary.unk]

    def __missing__(self, word: str) -> int:
        if self._unknown is None:
            raise KeyError(word)
        self.n_unknown += 1
        return self._unknown


def _pieces(path: Path) -> Iterator[tuple[list[str], bool]]:
    """Yield the words of a text, a line or a part of one at a time, and whether the line ends."""
    decode = _decoder(path)
    n_lines = 0
    begun = ""  # a word that may go on in the next chunk
    in_line = False
    with opened(path) as file:
        for chunk in itertools.chain(file.chunks(0, file.size), [memoryview(b"")]):
            text = decode(bytes(chunk), n_lines, not chunk)
            *lines, rest = (begun + text).split("\n")
            for line in lines:
                yield line.split(), True
            n_lines += len(lines)
            in_line = bool(rest) or (in_line and not lines)
            words = rest.split()
            begun = words.pop() if words and not rest[-1].isspace() else ""
            if len(begun) > _LONGEST_WORD:
                raise EvaluationInputError(
                    f"line {n_lines + 1} has a word of more than {_LONGEST_WORD:,} characters: "
                    "is it a text?",
                    path=path,
                )
            if words:
                yield words, False
    if in_line:
        yield [begun] if begun else [], True


def _decoder(path: Path) -> Callable[[bytes, int, bool], str]:
    r"""Return what turns chunks of UTF-8 into text whose lines end at ``\n``."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    newlines = io.IncrementalNewlineDecoder(decoder, translate=True)

    def decode(chunk: bytes, n_lines: int, final: bool) -> str:
        try:
            text: str = newlines.decode(chunk, final)
        except UnicodeDecodeError as error:
            before = error.object[: error.start].decode("utf-8", "replace")
            line = n_lines + len(_LINE_END.findall(before)) + 1
            raise EvaluationInputError(
                f"line {line} is no UTF-8", path=path, hint="iconv -t utf-8 converts a text"
            ) from error
        if "\0" in text:
            line = n_lines + text[: text.index("\0")].count("\n") + 1
            raise EvaluationInputError(f"line {line} has a NUL byte: is it a text?", path=path)
        return text

    return decode
