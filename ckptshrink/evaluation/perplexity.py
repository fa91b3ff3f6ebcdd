"""The task ``lm``: the perplexity of a recurrent language model on a text.

The text is one stream: the state goes on from line to line and is zero at its start only, and every
word but the first is predicted. With B streams the words that are predicted are cut into B runs of
equal length (to one word), each run behind the word before it and from a zero state, so that the
same words are predicted whatever B is; what a model says of them differs near the B starts.
"""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from ckptshrink.errors import EvaluationError, EvaluationInputError, PlanError
from ckptshrink.evaluation.corpus import Text, read_text, vocabulary_of_texts
from ckptshrink.evaluation.evaluator import Data, HoldsNothing, Scores, TaskOptions
from ckptshrink.evaluation.examples import Examples, examples_of
from ckptshrink.evaluation.metrics import Aggregate, Metric, metric
from ckptshrink.evaluation.subjects import Subject
from ckptshrink.evaluation.task_options import check_numbers, data_of, settings_of
from ckptshrink.evaluation.vocabulary import Vocabulary, read_vocabulary
from ckptshrink.events import Listener, Progress, silent
from ckptshrink.payload import Compute
from ckptshrink.runtime.language_model import LanguageModel, load_language_model

_SETTINGS: Final = ("vocab", "train_text", "splits", "unk", "eos")

_CHUNK: Final = 2048
"""Words that are scored between two looks at the clock: some seconds of a 24 M model on one CPU,
half a minute where it reads them one by one."""

NATS: Final = "nats"
"""Column of the summed negative log likelihood of a line's words, and name of its mean."""

TOKENS: Final = "tokens"
"""Column of how many words of a line were predicted."""


def evaluator(options: TaskOptions) -> "Perplexity":
    """Return the evaluator of the task ``lm``.

    Parameters
    ----------
    options : TaskOptions
        `data` is the text; `batch_size` is the number of streams (1 if not given); `max_examples`
        is a number of lines. Settings are ``vocab`` (a vocabulary file; see `read_vocabulary`) or
        ``train_text`` (texts to build it from; see `vocabulary_of_texts`), ``unk`` and ``eos``
        (special words where their names are not known ones), and ``splits`` (where a split softmax
        is split; see `load_language_model`).

    Raises
    ------
    EvaluationInputError
        Text or vocabulary can't be read, or do not fit each other.
    PlanError
        An option can't be, is not known, or is missing.
    """
    settings = settings_of(options, "lm", _SETTINGS)
    check_numbers(options)
    if options.data is None:
        raise PlanError("the task lm needs a text", hint="--data test.txt")
    vocabulary = _vocabulary(settings)
    text = read_text(options.data, vocabulary, options.max_examples)
    if len(text.ids) < 2:
        raise EvaluationInputError(
            "has one word, the end of its line, and nothing to predict", path=options.data
        )
    return Perplexity(
        data=data_of(options.data),
        text=text,
        vocabulary=vocabulary,
        n_streams=options.batch_size or 1,
        max_lines=options.max_examples,
        splits=_splits(settings.get("splits")),
        compute=Compute(options.device, options.threads),
        timeout=options.timeout,
        listen=options.listen,
    )


def _splits(given: Any) -> tuple[int, ...] | None:
    if given is not None and not all(type(split) is int for split in given):
        raise PlanError(f"the setting splits is whole numbers; got {given!r}")
    return None if given is None else tuple(given)


def _vocabulary(settings: Mapping[str, Any]) -> Vocabulary:
    file, texts = settings.get("vocab"), settings.get("train_text") or ()
    special = {"eos": settings.get("eos"), "unk": settings.get("unk")}
    if bool(file) == bool(texts):
        raise PlanError(
            "the task lm needs a vocabulary, from one place",
            hint="--vocab FILE, or --train-text for each text that the model was trained with: "
            "train.txt, valid.txt, test.txt",
        )
    if file:
        return read_vocabulary(Path(file), **special)
    paths = [texts] if isinstance(texts, str | Path) else texts
    return vocabulary_of_texts([Path(path) for path in paths], **special)


@dataclass(frozen=True, slots=True)
class Perplexity(HoldsNothing):
    """The task ``lm``, set up on one text with one vocabulary.

    Attributes
    ----------
    data : Data
    text : Text
        At least two words.
    vocabulary : Vocabulary
    n_streams : int
    max_lines : int or None
        What the text was cut to.
    splits : tuple of int or None
    compute : Compute
    timeout : float or None
        Seconds that scoring one model may take.
    listen : callable
        Told how many words of a model are scored.
    """

    data: Data
    text: Text
    vocabulary: Vocabulary
    n_streams: int
    max_lines: int | None
    splits: tuple[int, ...] | None
    compute: Compute
    timeout: float | None
    listen: Listener = silent

    @property
    def protocol(self) -> Mapping[str, Any]:
        """Return, as JSON, all that must be alike for two scores to be comparable."""
        return {
            "vocabulary_sha256": self.vocabulary.sha256,
            "n_words": len(self.vocabulary.words),
            "eos": self.vocabulary.eos,
            "unk": self.vocabulary.unk,
            "n_unknown": self.text.n_unknown,
            "n_predicted": len(self.text.ids) - 1,
            "batch_size": self.n_streams,
            "max_examples": self.max_lines,
            "splits": None if self.splits is None else list(self.splits),
            "state": "carried from line to line, zero at the start of each stream",
        }

    @property
    def environment(self) -> Mapping[str, str]:
        """Return versions of what does the scoring, and where it does it."""
        return {
            "python": ".".join(map(str, sys.version_info[:3])),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "device": self.compute.resolve().type,
        }

    def score(self, subject: Subject) -> Scores:
        """Score a model, from its file.

        Returns
        -------
        Scores
            ``ppl``, and ``nats`` a word; by line of the text, by its number, the `NATS` and
            `TOKENS` of its predicted words. A first line that is empty has none of these, and no
            result. A model that gives no finite number has metrics that say so, and no results.

        Raises
        ------
        EvaluationError
            It took longer than `timeout`, or more memory than there is.
        CheckpointError, EvaluationInputError
            It is no language model, or not one of this vocabulary.
        """
        stop_at = None if self.timeout is None else time.monotonic() + self.timeout
        with self.compute.limits(), _exactly():
            model = load_language_model(subject.path, splits=self.splits)
            self._check(model, subject.path)
            notes = self._notes(model)
            if _stored_half(model):
                # exact, and what a CPU is quick in
                model = model.float()
            nats = self._nats_by_line(model.to(self.compute.resolve()), stop_at)  # (n_lines,)
        return self._scores(nats, notes)

    def _check(self, model: LanguageModel, path: Path) -> None:
        if model.unknown_splits:
            raise EvaluationInputError(
                f"its softmax is split into {model.unknown_splits + 1} clusters of words, and the "
                "checkpoint does not say where",
                path=path,
                hint="--splits N,N,... as its training gave them to the criterion",
            )
        n_words, n_rows = len(self.vocabulary.words), model.vocab_size
        if n_words == n_rows or (n_words < n_rows and self.vocabulary.path is not None):
            return
        if self.vocabulary.path is None:
            hint = (
                "--train-text takes every text that its training read its words from, in that "
                "order (train, valid, test); or give --vocab"
            )
        else:
            hint = f"{self.vocabulary.path} is the vocabulary of another model"
        raise EvaluationInputError(
            f"the vocabulary has {n_words:,} words, and the model {n_rows:,}", path=path, hint=hint
        )

    def _notes(self, model: LanguageModel) -> tuple[str, ...]:
        notes = []
        n_words = len(self.vocabulary.words)
        if n_words < model.vocab_size:
            notes.append(
                f"the vocabulary has {n_words:,} words and the model {model.vocab_size:,}: the "
                "last ones have no name, and are never right"
            )
        if _stored_half(model):
            dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
            notes.append(f"its weights are stored in {dtype}, and were run in float32")
        if self.text.n_unknown:
            notes.append(
                f"{self.text.n_unknown:,} of {len(self.text.ids):,} words are not in the "
                f"vocabulary, and count as {self.vocabulary.unk!r}"
            )
        return tuple(notes)

    def _nats_by_line(self, model: LanguageModel, stop_at: float | None) -> NDArray[np.float64]:
        """Return the summed negative log likelihood of each line's words (n_lines,)."""
        device = next(model.parameters()).device
        nats = np.zeros(len(self.text.ends))
        state, done, total = None, 0, len(self.text.ids) - 1
        try:
            for before, inside in _steps(total, self.n_streams):
                self.listen(Progress(f"{done:,} of {total:,} words", done, total))
                done += int(inside.sum())
                if stop_at is not None and time.monotonic() > stop_at:
                    raise EvaluationError(f"took longer than {self.timeout:g} seconds")
                tokens, targets = (
                    torch.from_numpy(self.text.ids[at].astype(np.int64)).to(device)  # (T, B)
                    for at in (before, before + 1)
                )
                found, state = model.score_words(tokens, targets, state)  # (T, B)
                lines = np.searchsorted(self.text.ends, before[inside] + 1, side="right")
                np.add.at(nats, lines, found.cpu().numpy()[inside])
        except RuntimeError as error:
            if "memory" not in str(error):
                raise
            raise EvaluationError(
                f"there is no memory for {self.n_streams:,} streams",
                hint="a smaller --batch-size",
                log=str(error),
            ) from error
        return nats

    def _scores(self, nats: NDArray[np.float64], notes: tuple[str, ...]) -> Scores:
        tokens = np.diff(self.text.ends, prepend=1).astype(np.float64)  # the first word is given
        shown = tokens > 0
        finite = bool(np.isfinite(nats).all())
        examples: Examples | None = None
        if finite:
            ids = [str(line) for line in np.flatnonzero(shown) + 1]
            examples = examples_of(ids, {NATS: nats[shown], TOKENS: tokens[shown]})
        else:
            line = int(np.flatnonzero(~np.isfinite(nats))[0]) + 1
            notes = (*notes, f"line {line} is the first whose score is no finite number")
        return Scores(
            metrics=(
                _metric("ppl", "1", Aggregate(score=NATS, weight=TOKENS, transform="exp"),
                        nats[shown], tokens[shown]),
                _metric(NATS, "nats", Aggregate(score=NATS, weight=TOKENS),
                        nats[shown], tokens[shown]),
            ),
            examples=examples,
            notes=notes,
        )  # fmt: skip


@contextmanager
def _exactly() -> Iterator[None]:
    """Have cuDNN compute in full float32 and the same way each time; it has 10 bits by default."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


def _metric(
    name: str, unit: str, of: Aggregate, nats: NDArray[np.float64], tokens: NDArray[np.float64]
) -> Metric:
    return metric(
        name, of.value(nats, tokens), better="lower", unit=unit, n=len(nats),
        stderr=of.stderr(nats, tokens), of=of,
    )  # fmt: skip


def _steps(n: int, n_streams: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    """Yield where the words are that predict n words in B streams, a chunk of steps at a time.

    Yields
    ------
    before : (T, B)
        Places in the text; the word at each predicts the one behind it.
    inside : (T, B)
        False where a stream has ended: the longer ones have one step more.
    """
    n_streams = min(n_streams, n)
    least, longer = divmod(n, n_streams)
    lengths = np.full(n_streams, least, dtype=np.int64)
    lengths[:longer] += 1
    starts = np.cumsum(lengths) - lengths  # (B,)
    size = max(1, _CHUNK // n_streams)
    for first in range(0, int(lengths[0]), size):
        steps = np.arange(first, min(first + size, int(lengths[0])))[:, None]  # (T, 1)
        inside = steps < lengths
        yield np.where(inside, starts + steps, 0), inside


def _stored_half(model: LanguageModel) -> bool:
    return next(model.parameters()).dtype in (torch.float16, torch.bfloat16)
