"""The biLM in training, and the file it is written to."""

import json
import math
from pathlib import Path

import h5py
import pytest
import torch
from torch import nn

from ckptshrink import Request, Size, Target, compress, open_checkpoint, recognise
from ckptshrink.runtime import load_elmo
from ckptshrink.training import (
    BiLM,
    BiLMSizes,
    Recipe,
    new_bilm,
    read_bilm,
    train,
    write_bilm,
)
from ckptshrink.training.bilm import streams_both_ways
from ckptshrink.training.streams import Window

WORDS = ["<S>", "</S>", "the", "cat", "sat", "mat", "naïve"]
SIZES = BiLMSizes(24, 6, filters=((1, 4), (3, 8)), n_highway=1)


def model(sizes: BiLMSizes = SIZES, seed: int = 0, dropout: float = 0.0) -> BiLM:
    torch.manual_seed(seed)
    made = new_bilm(sizes, WORDS, dropout=dropout)
    with torch.no_grad():  # as large as trained weights are, so that the clips act
        for lstm in (*made.forward_layers, *made.backward_layers):
            for parameter in lstm.parameters():
                parameter.mul_(3)
    return made


def text(lines: int = 60, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(lines):
        n = int(torch.randint(1, 4, (), generator=generator))
        made += [0, *[2 + (i + n) % 5 for i in range(n + 1)], 1]
    return torch.tensor(made)


@pytest.mark.parametrize(
    "sizes", [SIZES, BiLMSizes(20, 8, 1, ((2, 5), (3, 7)), 2), BiLMSizes(16, 4, 3, ((1, 9),), 1)]
)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_written_is_the_elmo_that_was_trained(
    tmp_path: Path, sizes: BiLMSizes, dtype: str
) -> None:
    made = model(sizes).eval()
    write_bilm(made, tmp_path / "lm.hdf5", tmp_path / "options.json", dtype=dtype)
    elmo = load_elmo(tmp_path / "lm.hdf5", stateful=False)
    sentence = ["the", "naïve", "cat", "sat"]
    layers = elmo.embed([sentence])[0]  # (layers + 1, words, 2 P)
    ids = torch.tensor([0, *(WORDS.index(word) for word in sentence), 1])[:, None]
    with torch.no_grad():
        out, _ = made(torch.cat([ids, ids.flip(0)], dim=1), made.start(2))
    forward, backward = out[1:-1, 0], out.flip(0)[1:-1, 1]
    atol = 1e-5 if dtype == "float32" else 2e-2
    assert torch.allclose(layers[-1], torch.cat([forward, backward], dim=-1), atol=atol)


@pytest.mark.parametrize("rank", [None, 3])
def test_a_file_and_an_artefact_are_scored_as_what_they_hold(
    tmp_path: Path, rank: int | None
) -> None:
    made = model().eval()
    path = tmp_path / "lm.hdf5"
    write_bilm(made, path, tmp_path / "options.json")
    if rank is not None:
        compress(path, tmp_path / "small", Request((Target("Wh"),), size=Size(rank=rank)))
        path = tmp_path / "small"
    read = read_bilm(path, WORDS, made.softmax)
    assert read.sizes == made.sizes
    window = next(iter(streams_both_ways(text(), 2).windows(20)))
    found, counted, _ = read.nats(window, read.start(4))
    expected, same, _ = made.nats(window, made.start(4))
    assert torch.equal(counted, same)
    assert torch.allclose(found, expected, atol=1e-4) is (rank is None)
    assert found.mean() == pytest.approx(float(expected.mean()), rel=0.2)
    read.train().step(window, read.start(4), Recipe()).loss.backward()
    assert all(p.grad is not None for p in read.parameters())


def test_the_file_is_laid_out_as_bilm_tf_dumps_it(tmp_path: Path) -> None:
    write_bilm(model(), tmp_path / "lm.hdf5", tmp_path / "options.json")
    with h5py.File(tmp_path / "lm.hdf5") as file:
        cell = file["RNN_0/RNN/MultiRNNCell/Cell1/LSTMCell"]
        assert cell["W_0"].shape == (12, 96)
        assert cell["W_P_0"].shape == (24, 6)
        assert file["char_embed"].shape == (261, 16)
        assert file["CNN/W_cnn_1"].shape == (1, 3, 16, 8)
        assert float(
            file["RNN_1/RNN/MultiRNNCell/Cell0/LSTMCell/B"][48:72].mean()
        ) == pytest.approx(
            3 * 1.0 - 1.0
        )  # i, j, then f: three times what it was drawn as, less the 1 that TensorFlow adds
    options = json.loads((tmp_path / "options.json").read_text())
    assert options["lstm"]["projection_dim"] == 6
    assert options["char_cnn"]["n_characters"] == 262
    recognition = recognise(open_checkpoint(tmp_path / "lm.hdf5").checkpoint)
    assert recognition.family == "elmo"


def test_the_second_half_of_the_columns_is_the_text_in_reverse() -> None:
    words = torch.arange(20)
    streams = streams_both_ways(words, 2)
    assert streams.tokens[:, 0].tolist() == list(range(10))
    assert streams.tokens[:, 2].tolist() == list(range(19, 9, -1))


def test_the_directions_see_nothing_of_each_other() -> None:
    made = model().eval()
    tokens = streams_both_ways(text(), 2).tokens[:9]
    other = tokens.clone()
    other[:, 2:] = 3
    with torch.no_grad():
        one, two = made(tokens, made.start(4))[0], made(other, made.start(4))[0]
    assert torch.equal(one[:, :2], two[:, :2])
    assert not torch.equal(one[:, 2:], two[:, 2:])


def test_the_border_that_always_follows_is_no_target() -> None:
    made = model().eval()
    streams = streams_both_ways(text(), 1)
    window = Window(streams.tokens[:-1], streams.tokens[1:], 0)
    nats, counted, _ = made.nats(window, made.start(2))
    ahead = sum(
        not (a == 1 and b == 0)
        for a, b in zip(window.tokens[:, 0], window.targets[:, 0], strict=True)
    )
    assert counted.sum(0).tolist() == [ahead, ahead]
    assert nats[~counted].tolist() == [0.0] * int((~counted).sum())
    total, count, _ = made.score(window, made.start(2))
    assert count == 2 * ahead
    assert total == pytest.approx(float(nats.sum()), rel=1e-5)
    with torch.no_grad():
        logits = made.softmax(made(window.tokens, made.start(2))[0]).log_softmax(-1)
    by_hand = sum(
        -float(logits[t, 0, window.targets[t, 0]])
        for t in range(len(window.tokens))
        if not (window.tokens[t, 0] == 1 and window.targets[t, 0] == 0)
    )
    assert float(nats[:, 0].sum()) == pytest.approx(by_hand, rel=1e-5)


def test_training_learns_both_directions() -> None:
    made = model(dropout=0.05)
    plan = Recipe(epochs=8, batch=4, steps=8, lr=0.02, alpha=0, beta=0, clip=1.0)
    reports = train(made, streams_both_ways(text(), 4), streams_both_ways(text(seed=1), 2), plan)
    assert reports[-1].valid_ppl < 0.6 * reports[0].valid_ppl
    streams = streams_both_ways(text(seed=2), 1)
    window = Window(streams.tokens[:-1], streams.tokens[1:], 0)
    nats, counted, _ = made.nats(window, made.start(2))
    assert (nats.sum(0) / counted.sum(0)).max() < math.log(4)


def test_every_parameter_gets_a_gradient() -> None:
    made = model().train()
    window = next(iter(streams_both_ways(text(), 2).windows(12)))
    made.step(window, made.start(4), Recipe()).loss.backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert isinstance(parameter, nn.Parameter)


@pytest.mark.parametrize("sizes", [BiLMSizes(6, 6), BiLMSizes(24, 12, filters=((1, 12),))])
def test_sizes_that_allennlp_can_not_read_are_refused(sizes: BiLMSizes) -> None:
    with pytest.raises(ValueError, match="differ in number"):
        new_bilm(sizes, WORDS)


def test_a_vocabulary_without_borders_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks <S>"):
        new_bilm(SIZES, ["a", "b"])
