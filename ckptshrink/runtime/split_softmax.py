"""The split softmax of awd-lstm-lm's large vocabularies: frequent words, and clusters of rare ones.

With splits s_1 < ... < s_K the words below s_1 and K clusters make up the head; cluster k holds the
words from s_k to s_{k+1}, and ``p(word) = p(cluster) p(word | cluster)``. Clusters have weights of
their own, which are the criterion's and not the model's.
"""

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import torch
from torch import Tensor, nn

from ckptshrink.errors import LayoutError
from ckptshrink.runtime.weights import Weight, apply, shape_of

LogitsOf: TypeAlias = Callable[[Tensor, int, int], Tensor]
"""Logits (N, stop - start) of a run of words, for (N, E), start and stop."""

_AWD_SPLITS: Final = ((500_000, (4200, 35_000, 180_000)), (75_000, (2800, 20_000, 76_000)))


def awd_splits(vocabulary: int) -> tuple[int, ...]:
    """Return where awd-lstm-lm's training script splits a vocabulary; nothing where it doesn't."""
    return next((splits for above, splits in _AWD_SPLITS if vocabulary > above), ())


class SplitSoftmax(nn.Module):
    """The clusters of a split softmax.

    Parameters
    ----------
    tail_vectors : Weight
        (K, E). Parameters and pairs are used as they are, tensors become parameters.
    tail_bias : (K,)
    splits : sequence of int
        Where cluster 1 .. K begins, ascending.

    Raises
    ------
    LayoutError
        The splits are not K ascending numbers from 0.
    """

    def __init__(self, tail_vectors: Weight, tail_bias: Tensor, splits: Sequence[int]) -> None:
        super().__init__()
        K = shape_of(tail_vectors)[0]
        bounds = [0, *splits]
        if len(splits) != K or bounds != sorted(bounds) or len(set(splits)) != K:
            raise LayoutError(f"has {K} clusters of words, and {list(splits)} are not {K} splits")
        self.splits = tuple(splits)
        self.tail_vectors: Weight
        if isinstance(tail_vectors, Tensor) and not isinstance(tail_vectors, nn.Parameter):
            tail_vectors = nn.Parameter(tail_vectors)
        self.tail_vectors = tail_vectors
        self.tail_bias = nn.Parameter(tail_bias)

    def log_probs(self, hidden: Tensor, logits_of: LogitsOf, vocabulary: int) -> Tensor:
        """Return log probabilities (N, V) of all words for (N, E)."""
        head = self._head(hidden, logits_of, vocabulary)
        K = len(self.splits)
        parts = [head[:, :-K]]
        for k, start, stop in self._clusters(vocabulary):
            parts.append(head[:, -k, None] + log_softmax(logits_of(hidden, start, stop)))
        return torch.cat(parts, dim=1)

    def log_prob_of(
        self, hidden: Tensor, targets: Tensor, logits_of: LogitsOf, vocabulary: int
    ) -> Tensor:
        """Return the log probability (N,) of each target, with no more logits than that takes."""
        head = self._head(hidden, logits_of, vocabulary)
        n_frequent = head.shape[1] - len(self.splits)
        found = head.new_zeros(len(targets))
        frequent = targets < n_frequent
        found[frequent] = head[frequent].gather(1, targets[frequent, None])[:, 0]
        for k, start, stop in self._clusters(vocabulary):
            here = (targets >= start) & (targets < stop)
            inner = log_softmax(logits_of(hidden[here], start, stop))
            of_word = inner.gather(1, targets[here, None] - start)[:, 0]
            found[here] = head[here, -k] + of_word
        return found

    def extra_repr(self) -> str:
        """Return the splits."""
        return f"splits={list(self.splits)}"

    def _head(self, hidden: Tensor, logits_of: LogitsOf, vocabulary: int) -> Tensor:
        """Return log probabilities of the frequent words and, behind them, of the clusters."""
        frequent = logits_of(hidden, 0, min(self.splits[0], vocabulary))
        clusters = apply(self.tail_vectors, hidden, self.tail_bias)
        return log_softmax(torch.cat([frequent, clusters], dim=1))

    def _clusters(self, vocabulary: int) -> list[tuple[int, int, int]]:
        """Return number, start and stop of each cluster that has words.

        The original takes cluster k's probability from the k-th column of the head *from the end*.
        """
        stops = [*self.splits[1:], vocabulary]
        bounds = zip(self.splits, (min(stop, vocabulary) for stop in stops), strict=True)
        return [(k, a, b) for k, (a, b) in enumerate(bounds, 1) if a < b]


def log_softmax(logits: Tensor) -> Tensor:
    """Return log probabilities along the last axis, in float32 for half precision."""
    half = logits.dtype in (torch.float16, torch.bfloat16)
    return nn.functional.log_softmax(logits, dim=-1, dtype=torch.float32 if half else None)
