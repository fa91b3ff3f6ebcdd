"""The perplexity of an ELMo as the language model it was trained as: a task for sweeps.

An ELMo's file has no softmax, so that users have nothing to score it with but a downstream task;
the models of ``fixtures/trained`` come with theirs.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ckptshrink.evaluation import Aggregate, Data, Scores, Subject, examples_of, metric
from ckptshrink.evaluation.evaluator import HoldsNothing
from ckptshrink.evaluation.task_options import data_of

TRAINED = Path(__file__).resolve().parent.parent / "fixtures" / "trained"
sys.path.insert(0, str(TRAINED))

from bilm_text import STREAMS, TextBothWays, bilm_of, score  # noqa: E402 - lies in that folder

SOFTMAX = "softmax.safetensors"


class BiLMPerplexity(HoldsNothing):
    """Scores ELMos on a text in both directions, sentence by sentence.

    Parameters
    ----------
    folder : Path
        Of train.txt, which has the vocabulary, and test.txt, which is scored.
    softmax : Path
        That of the model that artefacts were made of; a checkpoint has its own beside it.
    """

    def __init__(self, folder: Path, softmax: Path) -> None:
        self.text = TextBothWays.read(folder)
        self.softmax = softmax
        self.data: Data = data_of(folder / "test.txt")

    @property
    def protocol(self) -> Mapping[str, Any]:
        """Return what must be alike for two scores to be comparable."""
        return {"streams": STREAMS, "n_words": len(self.text.words), "directions": "both"}

    @property
    def environment(self) -> Mapping[str, str]:
        """Return versions of what does the scoring."""
        return {"torch": torch.__version__}

    def score(self, subject: Subject) -> Scores:
        """Return the perplexity over both directions, and nats by sentence."""
        own = subject.path.parent / SOFTMAX
        softmax = own if subject.kind == "source" and own.exists() else self.softmax
        ids = self.text.ids["test"]
        nats, counted, places = score(bilm_of(subject.path, self.text.words, softmax), ids)
        ends = torch.nonzero(ids == self.text.words.index("</S>"))[:, 0]
        lines = torch.searchsorted(ends, places[counted]).numpy()  # (words,)
        by_line = np.zeros(len(ends))
        np.add.at(by_line, lines, nats[counted].numpy())
        words = np.bincount(lines, minlength=len(ends)).astype(np.float64)
        shown = words > 0
        examples = examples_of(
            [str(i + 1) for i in np.flatnonzero(shown)],
            {"nats": by_line[shown], "tokens": words[shown]},
        )
        of = Aggregate(score="nats", weight="tokens", transform="exp")
        columns = (by_line[shown], words[shown])
        found = metric(
            "ppl", of.value(*columns), better="lower", n=len(examples),
            stderr=of.stderr(*columns), of=of,
        )  # fmt: skip
        return Scores((found,), examples=examples)
