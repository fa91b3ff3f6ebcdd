"""Words as the character ids that ELMo reads: UTF-8 bytes between marks, 0 being padding."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

BEGIN: Final = "<S>"
END: Final = "</S>"
"""Words that stand for the borders of a sentence, in the original's vocabularies too."""

MAX_CHARACTERS: Final = 50
"""Ids a word of every published model; ``max_characters_per_token`` where options.json has it."""

# Byte b has the id b + 1, so that 0 is free for padding; the marks follow.
_BEGIN_SENTENCE: Final = 257
_END_SENTENCE: Final = 258
_BEGIN_WORD: Final = 259
_END_WORD: Final = 260
_REST_OF_WORD: Final = 261


class CharacterIds:
    """Turns sentences of words into character ids.

    Parameters
    ----------
    max_characters : int
        Ids a word, C; at least 3. Of longer words the first C - 2 bytes count, so that a character
        can be cut in two, as it was when the models were trained.

    Attributes
    ----------
    begin, end : (C,)
        Ids of the borders of a sentence.

    Examples
    --------
    >>> CharacterIds(6).word("né")
    [259, 111, 196, 170, 260, 261]
    """

    def __init__(self, max_characters: int = MAX_CHARACTERS) -> None:
        self.max_characters = max_characters
        self.begin = torch.tensor(self.word(BEGIN))
        self.end = torch.tensor(self.word(END))

    def word(self, word: str) -> list[int]:
        """Return the C ids of a word; lone surrogates, which UTF-8 has no bytes for, are left out.

        ``<S>`` and ``</S>`` are the borders of a sentence, as in the original.
        """
        if word in (BEGIN, END):
            inner = [_BEGIN_SENTENCE if word == BEGIN else _END_SENTENCE]
        else:
            inner = [b + 1 for b in word.encode("utf-8", "ignore")[: self.max_characters - 2]]
        ids = [_BEGIN_WORD, *inner, _END_WORD]
        return ids + [_REST_OF_WORD] * (self.max_characters - len(ids))

    def batch(self, sentences: Sequence[Sequence[str]]) -> Tensor:
        """Return ids (B, T, C) of sentences without their borders, T that of the longest."""
        places: dict[str, int] = {}
        table = [[0] * self.max_characters]
        for word in (word for sentence in sentences for word in sentence):
            if word not in places:
                places[word] = len(table)
                table.append(self.word(word))
        longest = max(map(len, sentences), default=0)
        index = torch.zeros(len(sentences), longest, dtype=torch.long)
        for row, sentence in zip(index, sentences, strict=True):
            row[: len(sentence)] = torch.tensor([places[w] for w in sentence], dtype=torch.long)
        return torch.tensor(table)[index]
