"""The task ``lm``, against computations that share no code with it, and against closed forms."""

import itertools
import math
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_gold
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from ckptshrink.errors import (
    CheckpointError,
    EvaluationError,
    EvaluationInputError,
    LayoutError,
    PlanError,
)
from ckptshrink.evaluation import perplexity
from ckptshrink.evaluation.evaluator import EVALUATORS, Scores, TaskOptions
from ckptshrink.evaluation.examples import disagreement
from ckptshrink.evaluation.perplexity import Perplexity, evaluator
from ckptshrink.evaluation.subjects import subject_of
from ckptshrink.payload import Compute
from ckptshrink.planning.request import Request, Size, parse_target
from ckptshrink.rewrite import compress, restore
from ckptshrink.runtime.language_model import LanguageModel

Array = NDArray[np.float64]


def lm(data: Path, n_streams: int | None = None, lines: int | None = None, **more: Any) -> Any:
    """Return an evaluator; everything but its text, streams and lines is a setting."""
    return evaluator(
        TaskOptions(
            data=data, batch_size=n_streams, max_examples=lines, device="cpu", threads=1,
            settings=more,
        )
    )  # fmt: skip


def shrunk(path: Path, out: Path, targets: str = "Wh", rank: int = 3, **how: Any) -> Path:
    request = Request(tuple(map(parse_target, targets.split())), size=Size(rank=rank), **how)
    compress(path, out, request, compute=Compute("cpu", 1))
    return out


def value(scores: Scores, name: str) -> float:
    (found,) = (one for one in scores.metrics if one.name == name)
    return found.number


# -- an independent computation, in numpy and float64 ----------------------------------------------


def weights(path: Path) -> dict[str, Array]:
    """Return the weights of a torch file in float64, by the names that awd-lstm-lm gives them."""
    saved = torch_gold.load(path)
    if isinstance(saved, list) and isinstance(saved[0], dict):  # as restore writes it
        found = saved[0] | {f"criterion.{name}": value for name, value in saved[1].items()}
    elif isinstance(saved, dict) and saved.keys() == {"model"}:
        found = saved["model"]
    else:
        found = torch_gold.tensors_of(saved)
    found = {
        name: value
        for name, value in found.items()
        if not name.startswith(("optimizer.", "opt.")) and "_flat_weights" not in name
        and "prevX" not in name
    }  # fmt: skip
    raw_last = sorted(found.items(), key=lambda item: item[0].endswith("_raw"))
    return {plain(name): value.detach().double().numpy() for name, value in raw_last}


def plain(name: str) -> str:
    name = name.removesuffix("_raw").removeprefix("0.").removeprefix("1.")
    for wrapper in (".linear", ".module"):
        name = name.replace(wrapper, "")
    head, _, layer = name.rpartition("_l")
    return f"rnns.{layer}.{head.removeprefix('rnn.')}_l0" if name.startswith("rnn.") else name


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def hidden_of(W: Mapping[str, Array], ids: list[int]) -> Array:
    """Return the last layer's output (T, E), one word after the other from a zero state."""
    n_layers = len({name.split(".")[1] for name in W if name.startswith("rnns.")})
    h: dict[int, Any] = {}
    c: dict[int, Any] = {}
    before: dict[int, Any] = {}
    out = []
    for word in ids:
        x = W["encoder.weight"][word]
        for i in range(n_layers):
            own = f"rnns.{i}."
            if own + "weight" in W:  # QRNN
                G, b = W[own + "weight"], W[own + "bias"]
                both = x
                if G.shape[1] == 2 * len(x):
                    both = np.concatenate([x, before.get(i, np.zeros_like(x))])
                before[i] = x
                z, f, o = np.split(G @ both + b, 3)
                c[i] = sigmoid(f) * np.tanh(z) + (1 - sigmoid(f)) * c.get(i, 0.0)
                x = sigmoid(o) * c[i]
                continue
            H = W[own + "weight_hh_l0"].shape[1]
            last = h.get(i, np.zeros(H))
            a = W[own + "weight_ih_l0"] @ x + W[own + "bias_ih_l0"]
            b = W[own + "weight_hh_l0"] @ last + W[own + "bias_hh_l0"]
            if len(a) == 4 * H:
                j, f, g, o = np.split(a + b, 4)
                c[i] = sigmoid(f) * c.get(i, 0.0) + sigmoid(j) * np.tanh(g)
                h[i] = sigmoid(o) * np.tanh(c[i])
            else:
                r, z = sigmoid(a[: 2 * H] + b[: 2 * H]).reshape(2, H)
                n = np.tanh(a[2 * H :] + r * b[2 * H :])
                h[i] = (1 - z) * n + z * last
            x = h[i]
        out.append(x)
    return np.stack(out)


def log_softmax(x: Array) -> Array:
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def nats_of(W: Mapping[str, Array], ids: list[int], splits: list[int] | None = None) -> Array:
    """Return the negative log likelihood of every word but the first, from a zero state."""
    hidden = hidden_of(W, ids[:-1])
    logits = hidden @ W["decoder.weight"].T + W["decoder.bias"]
    if splits is None:
        log_p = log_softmax(logits)
    else:
        K, bounds = len(splits), [*splits, logits.shape[1]]
        tails = hidden @ W["criterion.tail_vectors"].T + W["criterion.tail_bias"]
        head = log_softmax(np.concatenate([logits[:, : splits[0]], tails], axis=1))
        parts = [head[:, : splits[0]]]
        for k in range(1, K + 1):
            inner = log_softmax(logits[:, bounds[k - 1] : bounds[k]])
            parts.append(head[:, -k, None] + inner)
        log_p = np.concatenate(parts, axis=1)
    return -log_p[np.arange(len(ids) - 1), ids[1:]]


def nats_in_streams(W: Mapping[str, Array], ids: list[int], B: int, **how: Any) -> Array:
    """Return the same for words cut into B runs of nearly equal length, the longer ones first."""
    n, found, start = len(ids) - 1, [], 0
    for b in range(B):
        length = n // B + (b < n % B)
        found.append(nats_of(W, ids[start : start + length + 1], **how))
        start += length
    assert start == n
    return np.concatenate(found)


# -- small texts and fixtures ----------------------------------------------------------------------


def numbered(n_words: int) -> list[str]:
    return [*(f"w{i}" for i in range(n_words - 2)), "<unk>", "<eos>"]


@pytest.fixture
def vocab(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(numbered(120)))
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Write 40 lines of 0 to 9 words, some of them not in the vocabulary."""
    rng = np.random.default_rng(3)
    lines = [" ".join(f"w{i}" for i in rng.integers(0, 125, n)) for n in rng.integers(0, 10, 40)]
    path = tmp_path / "text.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def ids_of(text: Path, words: list[str]) -> list[int]:
    number = {word: i for i, word in enumerate(words)}
    return [
        number.get(word, number["<unk>"])
        for line in text.read_text().splitlines()
        for word in [*line.split(), "<eos>"]
    ]


FIXTURES = {
    "awd_lstm_bare.zip.pt": None, "awd_lstm_masked.legacy.pt": None, "awd_gru.zip.pt": None,
    "awd_qrnn.zip.pt": None, "fastai_v1.zip.pt": None, "word_language_model.zip.pt": None,
    "awd_lstm.zip.pt": [60, 90],
}  # fmt: skip


@pytest.mark.parametrize("name", FIXTURES)
def test_perplexity_is_that_of_an_independent_computation(
    fixtures: Path, tmp_path: Path, text: Path, vocab: Path, name: str
) -> None:
    splits = FIXTURES[name]
    source = fixtures / "torch" / name
    recurrent = "Wi" if "qrnn" in name else "Wh Wi"
    made = shrunk(source, tmp_path / "made", f"{recurrent} embedding")
    dense, _ = restore(made, tmp_path / f"back{source.suffix}")
    ids = ids_of(text, numbered(120))
    found: dict[tuple[str, int], float] = {}
    for (which, path, reference), B in itertools.product(
        [("source", source, source), ("artefact", made, dense)], (1, 10)
    ):
        scores = lm(text, B, vocab=vocab, splits=splits).score(subject_of(path))
        want = nats_in_streams(weights(reference), ids, B, splits=splits)
        assert value(scores, "nats") == pytest.approx(want.mean(), rel=1e-6)
        assert value(scores, "ppl") == pytest.approx(math.exp(want.mean()), rel=1e-4)
        found[which, B] = value(scores, "ppl")
    assert len(set(found.values())) == 4, "the streams or the factors had no effect"


def test_results_by_line_are_those_of_its_words(fixtures: Path, text: Path, vocab: Path) -> None:
    source = fixtures / "torch" / "awd_lstm_bare.zip.pt"
    ids = ids_of(text, numbered(120))
    lines = [len(line.split()) + 1 for line in text.read_text().splitlines()]
    for B in (1, 4):
        scores = lm(text, B, vocab=vocab).score(subject_of(source))
        want = nats_in_streams(weights(source), ids, B)
        ends = np.cumsum(lines) - 1
        by_line = [part.sum() for part in np.split(want, ends[:-1])]
        examples = scores.examples
        assert examples is not None
        assert examples.ids == tuple(str(i) for i in range(1, 41))
        assert examples.columns["tokens"].tolist() == [lines[0] - 1, *lines[1:]]
        assert examples.columns["nats"] == pytest.approx(by_line, rel=1e-5)
        for one in scores.metrics:
            assert disagreement(one, examples) is None
            assert (one.better, one.n) == ("lower", 40)
            assert one.stderr is not None
            assert one.stderr > 0
        ppl, nats = scores.metrics
        assert (ppl.name, ppl.unit, nats.name, nats.unit) == ("ppl", "1", "nats", "nats")
        assert ppl.number == math.exp(nats.number)
        assert ppl.stderr == pytest.approx(nats.stderr * ppl.number)


def test_a_first_line_that_is_empty_has_no_result_and_its_end_is_read(
    fixtures: Path, tmp_path: Path, vocab: Path
) -> None:
    path = tmp_path / "text.txt"
    path.write_text("\nw1 w2\n\nw3\n")
    source = fixtures / "torch" / "awd_lstm_bare.zip.pt"
    scores = lm(path, vocab=vocab).score(subject_of(source))
    assert scores.examples is not None
    assert scores.examples.ids == ("2", "3", "4")
    assert scores.examples.columns["tokens"].tolist() == [3, 1, 2]
    want = nats_of(weights(source), [119, 1, 2, 119, 119, 3, 119])
    assert value(scores, "nats") == pytest.approx(want.mean(), rel=1e-6)
    assert scores.metrics[0].n == 3


def test_fewer_lines_are_the_first_of_the_text(fixtures: Path, text: Path, vocab: Path) -> None:
    subject = subject_of(fixtures / "torch" / "awd_lstm_bare.zip.pt")
    whole, part = lm(text, vocab=vocab), lm(text, lines=12, vocab=vocab)
    all_of_it, some = whole.score(subject).examples, part.score(subject).examples
    assert some.ids == all_of_it.ids[:12]
    assert some.columns["nats"] == pytest.approx(all_of_it.columns["nats"][:12], rel=1e-6)
    assert part.data == whole.data, "the hash is of the file"
    assert part.protocol["max_examples"] == 12
    assert part.protocol != whole.protocol


# -- real text -------------------------------------------------------------------------------------


class Torch(nn.Module):
    """An AWD-LSTM of plain torch modules, with the names of awd-lstm-lm."""

    def __init__(self, V: int, tied: bool = True) -> None:
        super().__init__()
        self.encoder = nn.Embedding(V, 12)
        self.rnns = nn.ModuleList([nn.LSTM(12, 16), nn.LSTM(16, 12)])
        self.decoder = nn.Linear(12, V)
        if tied:
            self.decoder.weight = self.encoder.weight

    def nats(self, ids: list[int]) -> Tensor:
        """Return the negative log likelihood of each word but the first, a word at a time."""
        states: list[Any] = [None, None]
        found = []
        with torch.no_grad():
            for word, following in itertools.pairwise(ids):
                x = self.encoder(torch.tensor([[word]]))
                for i, layer in enumerate(self.rnns):
                    x, states[i] = layer(x, states[i])
                log_p = self.decoder(x[0, 0]).double().log_softmax(0)
                found.append(-log_p[following])
        return torch.stack(found)


def saved(model: nn.Module, path: Path) -> Path:
    torch.save(model.state_dict(), path)
    return path


def test_part_of_brown_with_the_vocabulary_of_its_training_text(
    shared_data: Path, tmp_path: Path
) -> None:
    folder = shared_data / "brown"
    words: dict[str, int] = {}
    with (folder / "train.txt").open() as file:
        for line in file:
            for word in [*line.split(), "<eos>"]:
                words.setdefault(word, len(words))
    torch.manual_seed(0)
    model = Torch(10_000)
    nn.init.normal_(model.encoder.weight, std=0.5)
    source = saved(model, tmp_path / "m.pt")
    first = (folder / "test.txt").read_text().splitlines()[:60]
    ids = [words[word] for line in first for word in [*line.split(), "<eos>"]]
    want = model.nats(ids)
    task = lm(folder / "test.txt", lines=60, train_text=(folder / "train.txt",))
    scores = task.score(subject_of(source))
    assert value(scores, "ppl") == pytest.approx(math.exp(float(want.mean())), rel=1e-5)
    assert scores.notes == ()
    assert task.protocol["n_words"] == 10_000
    assert task.protocol["n_predicted"] == len(ids) - 1
    made = shrunk(source, tmp_path / "made", "Wh embedding", rank=2)
    restored, _ = restore(made, tmp_path / "back.pt")
    model.load_state_dict(torch.load(restored, weights_only=True))
    scores = task.score(subject_of(made))
    want = model.nats(ids)
    assert value(scores, "ppl") == pytest.approx(math.exp(float(want.mean())), rel=1e-5)


def test_part_of_wikitext_in_ten_streams_with_words_that_are_unknown(
    shared_data: Path, tmp_path: Path
) -> None:
    valid, test = (shared_data / "wikitext-2" / f"{part}.txt" for part in ("valid", "test"))
    counts = Counter(valid.read_text().split())
    words = [*(word for word, n in counts.most_common(2_000) if n > 1), "<eos>"]
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("\n".join(words))
    torch.manual_seed(1)
    model = Torch(len(words), tied=False)
    source = saved(model, tmp_path / "m.pt")
    number = {word: i for i, word in enumerate(words)}
    with test.open() as file:
        first = [[*line.split(), "<eos>"] for line in itertools.islice(file, 30)]
    ids = [number.get(word, number["<unk>"]) for line in first for word in line]
    assert len(first[0]) == 1, "the text begins with an empty line"
    n, start, want = len(ids) - 1, 0, []
    for b in range(10):
        length = n // 10 + (b < n % 10)
        want.append(model.nats(ids[start : start + length + 1]))
        start += length
    task = lm(test, 10, 30, vocab=vocab)
    scores = task.score(subject_of(source))
    assert value(scores, "ppl") == pytest.approx(math.exp(float(torch.cat(want).mean())), rel=1e-5)
    n_unknown = sum(word not in number for line in first for word in line)
    assert task.protocol["n_unknown"] == n_unknown > 50
    (note,) = scores.notes
    assert note.startswith(f"{n_unknown:,} of {len(ids):,} words are not in the vocabulary")


# -- damage by a known amount ----------------------------------------------------------------------


def test_a_model_damaged_by_a_known_amount_is_worse_by_what_that_makes(
    text: Path, vocab: Path, tmp_path: Path
) -> None:
    """Without the recurrent part a model is its decoder's bias, and its perplexity a formula."""
    ids = ids_of(text, numbered(120))[1:]
    share = np.bincount(ids, minlength=120) / len(ids)
    torch.manual_seed(2)
    model = Torch(120, tied=False)
    nn.init.zeros_(model.decoder.weight)
    bias = torch.randn(120)
    task = lm(text, vocab=vocab)
    for damage in (0.0, 0.01, 0.5, 3.0, -8.0):
        with torch.no_grad():
            model.decoder.bias.copy_(bias)
            model.decoder.bias[119] += damage  # <eos>
        b = model.decoder.bias.detach().double().numpy()
        want = np.log(np.exp(b).sum()) - share @ b
        scores = task.score(subject_of(saved(model, tmp_path / f"{damage}.pt")))
        assert value(scores, "nats") == pytest.approx(want, rel=1e-6)
        assert value(scores, "ppl") == pytest.approx(math.exp(want), rel=1e-5)
    nn.init.zeros_(model.decoder.bias)
    scores = task.score(subject_of(saved(model, tmp_path / "even.pt")))
    assert value(scores, "ppl") == pytest.approx(120, rel=1e-6)
    assert scores.metrics[0].stderr == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    ("number", "ppl", "nats"), [(math.nan, "nan", "nan"), (math.inf, "nan", "nan")]
)
def test_a_model_that_gives_no_number_has_metrics_that_say_so(
    text: Path, vocab: Path, tmp_path: Path, number: float, ppl: str, nats: str
) -> None:
    model = Torch(120)
    with torch.no_grad():
        model.rnns[0].bias_ih_l0[3] = math.nan
        model.decoder.bias[5] = number
    scores = lm(text, vocab=vocab).score(subject_of(saved(model, tmp_path / "m.pt")))
    assert [one.nonfinite for one in scores.metrics] == [ppl, nats]
    assert [one.value for one in scores.metrics] == [None, None]
    assert [one.stderr for one in scores.metrics] == [None, None]
    assert scores.examples is None
    assert scores.notes[-1] == "line 1 is the first whose score is no finite number"


def test_words_that_can_not_be_and_scores_beyond_measure_are_infinite(
    text: Path, vocab: Path, tmp_path: Path
) -> None:
    model = Torch(120, tied=False)
    nn.init.zeros_(model.decoder.weight)
    with torch.no_grad():
        model.decoder.bias[119] = -math.inf
    scores = lm(text, vocab=vocab).score(subject_of(saved(model, tmp_path / "never.pt")))
    assert [one.nonfinite for one in scores.metrics] == ["inf", "inf"]
    assert scores.examples is None
    with torch.no_grad():
        model.decoder.bias[119] = 1e6
    scores = lm(text, vocab=vocab).score(subject_of(saved(model, tmp_path / "sure.pt")))
    assert [one.nonfinite for one in scores.metrics] == ["inf", None]
    assert scores.examples is not None
    assert disagreement(scores.metrics[0], scores.examples) is None


def test_a_model_of_half_precision_is_scored_near_the_full_one_and_says_so(
    text: Path, vocab: Path, tmp_path: Path
) -> None:
    torch.manual_seed(4)
    model = Torch(120)
    task = lm(text, vocab=vocab)
    full = task.score(subject_of(saved(model, tmp_path / "full.pt")))
    half = task.score(subject_of(saved(model.half(), tmp_path / "half.pt")))
    assert value(half, "nats") == pytest.approx(value(full, "nats"), rel=1e-3)
    assert value(half, "nats") != value(full, "nats")
    rounded = task.score(subject_of(saved(model.float(), tmp_path / "rounded.pt")))
    assert value(half, "nats") == value(rounded, "nats")
    assert "its weights are stored in float16, and were run in float32" in half.notes
    assert not any("float16" in note for note in full.notes)


# -- streams ---------------------------------------------------------------------------------------


@given(n=st.integers(1, 300), B=st.integers(1, 40), chunk=st.integers(1, 90))
def test_every_word_but_the_first_is_predicted_once_in_runs_of_equal_length(
    n: int, B: int, chunk: int
) -> None:
    before, perplexity._CHUNK = perplexity._CHUNK, chunk
    try:
        parts = list(perplexity._steps(n, B))
    finally:
        perplexity._CHUNK = before
    places = np.concatenate([places for places, _ in parts])
    inside = np.concatenate([inside for _, inside in parts])
    assert all(places.size <= max(chunk, places.shape[1]) for places, _ in parts)
    assert places.min() >= 0
    assert places.max() < n
    runs = [column[kept].tolist() for column, kept in zip(places.T, inside.T, strict=True)]
    assert list(itertools.chain(*runs)) == list(range(n))
    lengths = [len(run) for run in runs]
    assert len(runs) == min(B, n)
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)
    assert all(kept.tolist() == sorted(kept, reverse=True) for kept in inside.T)


def test_the_size_of_a_chunk_is_of_no_account(
    fixtures: Path, text: Path, vocab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = subject_of(fixtures / "torch" / "awd_qrnn.zip.pt")
    for B in (1, 7, 10_000):
        task = lm(text, B, vocab=vocab)
        want = task.score(subject).examples.columns["nats"]
        for chunk in (1, 20):
            monkeypatch.setattr(perplexity, "_CHUNK", chunk)
            assert task.score(subject).examples.columns["nats"] == pytest.approx(want, rel=1e-5)
        monkeypatch.undo()


# -- options and vocabularies that do not fit ------------------------------------------------------


def test_the_task_is_found_by_its_name_and_says_what_scores_depend_on(
    text: Path, vocab: Path
) -> None:
    make = EVALUATORS.get("lm")
    with make(TaskOptions(data=text, batch_size=3, settings={"vocab": vocab})) as task:
        assert isinstance(task, Perplexity)
        assert (task.data.name, task.data.nbytes) == ("text.txt", text.stat().st_size)
        protocol = task.protocol
        assert (protocol["batch_size"], protocol["eos"], protocol["unk"]) == (3, "<eos>", "<unk>")
        assert protocol["n_words"] == 120
        assert protocol["n_predicted"] == len(ids_of(text, numbered(120))) - 1
        assert set(task.environment) == {"python", "torch", "numpy", "device"}
    built = lm(text, train_text=vocab)
    assert built.protocol["vocabulary_sha256"] != protocol["vocabulary_sha256"]


@pytest.mark.parametrize("n_words", [119, 121])
def test_a_vocabulary_of_another_size_is_refused_with_both_numbers(
    fixtures: Path, tmp_path: Path, text: Path, n_words: int
) -> None:
    source = fixtures / "torch" / "awd_lstm_bare.zip.pt"
    words = numbered(n_words)
    train = tmp_path / "train.txt"
    train.write_text(" ".join(words[:-1]) + "\n")
    task = lm(text, train_text=[train])
    with pytest.raises(EvaluationInputError) as caught:
        task.score(subject_of(source))
    assert str(caught.value) == (f"{source}: the vocabulary has {n_words} words, and the model 120")
    assert "train, valid, test" in str(caught.value.hint)
    vocab = tmp_path / "v.json"
    vocab.write_text(str(words).replace("'", '"'))
    task = lm(text, vocab=vocab)
    if n_words == 121:
        with pytest.raises(EvaluationInputError, match="has 121 words, and the model 120"):
            task.score(subject_of(source))
    else:  # fastai leaves out the words that fill a vocabulary up
        scores = task.score(subject_of(source))
        assert scores.notes[0].startswith("the vocabulary has 119 words and the model 120")
        want = nats_of(weights(source), ids_of(text, words))
        assert value(scores, "nats") == pytest.approx(want.mean(), rel=1e-6)


def test_a_text_without_a_word_to_predict_is_refused(tmp_path: Path, vocab: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("\n")
    with pytest.raises(EvaluationInputError, match="has one word, the end of its line"):
        lm(path, vocab=vocab)
    path.write_text("\nw1\n")
    with pytest.raises(EvaluationInputError, match="has one word, the end of its line"):
        lm(path, lines=1, vocab=vocab)
    path.write_text("")
    with pytest.raises(EvaluationInputError, match="is empty"):
        lm(path, vocab=vocab)
    path.unlink()
    with pytest.raises(EvaluationInputError, match="there is no such file") as caught:
        lm(path, vocab=vocab)
    assert caught.value.path == str(path)


@pytest.mark.parametrize(
    ("options", "settings", "message"),
    [
        ({}, {}, "needs a vocabulary"),
        ({}, {"vocab": "v", "train_text": ("t",)}, "needs a vocabulary, from one place"),
        ({}, {"vocab": None, "train_text": ()}, "needs a vocabulary"),
        ({}, {"vocabs": "v"}, "no setting 'vocabs'; it has eos, splits, train_text, unk, vocab"),
        ({"data": None}, {"vocab": "v"}, "needs a text"),
        ({"batch_size": 0}, {"vocab": "v"}, "--batch-size is at least 1; got 0"),
        ({"max_examples": -1}, {"vocab": "v"}, "--max-examples is at least 1; got -1"),
        ({"timeout": math.nan}, {"vocab": "v"}, "--timeout is above 0 seconds"),
        ({}, {"vocab": "v", "splits": "60,90"}, "splits is whole numbers"),
        ({"device": "tpu"}, {"vocab": "v"}, "--device is auto, cpu or cuda"),
    ],
)
def test_options_that_can_not_be_are_refused(
    fixtures: Path,
    text: Path,
    vocab: Path,
    options: dict[str, Any],
    settings: dict[str, Any],
    message: str,
) -> None:
    given = {name: str(vocab) if value == "v" else value for name, value in settings.items()}
    subject = subject_of(fixtures / "torch" / "awd_lstm_bare.zip.pt")
    with pytest.raises(PlanError, match=message) as caught:
        evaluator(TaskOptions(**{"data": text, **options}, settings=given)).score(subject)
    assert "\n" not in str(caught.value)
    if "vocabs" in settings:
        assert caught.value.hint == "did you mean 'vocab'?"


def test_splits_that_are_not_known_are_asked_for(fixtures: Path, text: Path, vocab: Path) -> None:
    subject = subject_of(fixtures / "torch" / "awd_lstm.zip.pt")
    with pytest.raises(EvaluationInputError, match="split into 3 clusters") as caught:
        lm(text, vocab=vocab).score(subject)
    assert str(caught.value.hint).startswith("--splits ")
    with pytest.raises(LayoutError, match="2 clusters"):
        lm(text, vocab=vocab, splits=(60,)).score(subject)


def test_what_is_no_language_model_is_refused(
    fixtures: Path, text: Path, vocab: Path, tmp_path: Path
) -> None:
    task = lm(text, vocab=vocab)
    with pytest.raises(LayoutError, match="ELMo"):
        task.score(subject_of(fixtures / "elmo" / "elmo.hdf5"))
    (tmp_path / "m.pt").write_text("hello")
    with pytest.raises(CheckpointError):
        task.score(subject_of(tmp_path / "m.pt", any_file=True))


def test_time_and_memory_are_bounded(
    fixtures: Path, text: Path, vocab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = subject_of(fixtures / "torch" / "awd_lstm_bare.zip.pt")
    options = TaskOptions(data=text, timeout=1e-9, device="cpu", settings={"vocab": vocab})
    with pytest.raises(EvaluationError, match="took longer than 1e-09 seconds"):
        evaluator(options).score(subject)

    def full(*args: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(LanguageModel, "score_words", full)
    with pytest.raises(EvaluationError, match="no memory for 5 streams") as caught:
        lm(text, 5, vocab=vocab).score(subject)
    assert "DefaultCPUAllocator" in caught.value.log


def test_threads_and_precision_are_set_and_given_back(
    fixtures: Path, text: Path, vocab: Path
) -> None:
    subject = subject_of(fixtures / "torch" / "awd_lstm_bare.zip.pt")
    seen: list[tuple[int, bool]] = []
    task = evaluator(TaskOptions(data=text, threads=2, device="cpu", settings={"vocab": vocab}))
    before = torch.get_num_threads()
    original = LanguageModel.score_words

    def watched(*args: Any) -> Any:
        seen.append((torch.get_num_threads(), torch.backends.cudnn.allow_tf32))
        return original(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LanguageModel, "score_words", watched)
        task.score(subject)
    assert set(seen) == {(2, False)}, "a GPU is not to round to ten bits"
    assert torch.get_num_threads() == before
    assert torch.backends.cudnn.allow_tf32


def test_the_same_run_gives_the_same_numbers(fixtures: Path, text: Path, vocab: Path) -> None:
    subject = subject_of(fixtures / "torch" / "awd_gru.zip.pt")
    first, second = (lm(text, 4, vocab=vocab).score(subject) for _ in range(2))
    assert first.metrics == second.metrics
    assert list(first.examples.lines()) == list(second.examples.lines())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_gpu_gives_what_the_cpu_gives(fixtures: Path, text: Path, vocab: Path) -> None:
    subject = subject_of(fixtures / "torch" / "awd_lstm_bare.zip.pt")
    for B in (1, 10):
        options = TaskOptions(data=text, batch_size=B, device="cuda", settings={"vocab": vocab})
        found = evaluator(options).score(subject)
        want = lm(text, B, vocab=vocab).score(subject)
        assert value(found, "ppl") == pytest.approx(value(want, "ppl"), rel=1e-4)


def test_a_pipe_in_place_of_a_text_does_not_hang(tmp_path: Path, text: Path, vocab: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for data, words in ((pipe, vocab), (text, pipe)):
        with pytest.raises(EvaluationInputError, match="is a named pipe"):
            lm(data, vocab=words)
