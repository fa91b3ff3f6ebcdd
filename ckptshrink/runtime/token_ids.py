"""Words as ids by a vocabulary file, for ELMos that read whole tokens."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ckptshrink.errors import CheckpointError
from ckptshrink.runtime.characters import BEGIN, END

UNKNOWN = "<UNK>"


class TokenIds:
    """Turns sentences of words into token ids: the word's line in the vocabulary, counted from 1.

    Parameters
    ----------
    path : Path
        Text in UTF-8, a word a line, with ``<S>``, ``</S>`` and, where there are unknown words,
        ``<UNK>``. Lines ``!!!MAXTERMID`` aren't counted, as in the original.

    Raises
    ------
    CheckpointError
        The file can't be read, or lacks a border of sentences.

    Attributes
    ----------
    begin, end : ()
        Ids of the borders of a sentence.
    size : int
        Number of words.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        words = [word for word in _lines(path) if word != "!!!MAXTERMID"]
        self.size = len(words)
        # of a word that is there twice the last line counts, as in the original
        self._ids = {word: i for i, word in enumerate(words, start=1)}
        for word in (BEGIN, END):
            if word not in self._ids:
                raise CheckpointError(
                    f"has no {word} in it",
                    path=path,
                    hint="the vocabulary file that the model was trained with, a word a line",
                )
        self.begin = torch.tensor(self._ids[BEGIN])
        self.end = torch.tensor(self._ids[END])

    def word(self, word: str) -> int:
        """Return the id of a word, or of ``<UNK>``.

        Raises
        ------
        CheckpointError
            Neither is in the vocabulary.
        """
        found = self._ids.get(word, self._ids.get(UNKNOWN))
        if found is None:
            raise CheckpointError(f"has neither {word!r} nor {UNKNOWN} in it", path=self.path)
        return found

    def batch(self, sentences: Sequence[Sequence[str]]) -> Tensor:
        """Return ids (B, T) of sentences without their borders, T that of the longest."""
        ids = torch.zeros(len(sentences), max(map(len, sentences), default=0), dtype=torch.long)
        for row, sentence in zip(ids, sentences, strict=True):
            row[: len(sentence)] = torch.tensor([self.word(w) for w in sentence], dtype=torch.long)
        return ids


def _lines(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8") as file:
            return [line.strip() for line in file]
    except OSError as error:
        raise CheckpointError(f"can't be read: {error.strerror}", path=path) from error
    except UnicodeDecodeError as error:
        raise CheckpointError("is not UTF-8", path=path) from error
