"""The ELMo runtime against the original's outputs, a model written out in NumPy, and itself."""

import copy
import json
import tempfile
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import elmo_reference
import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ckptshrink.errors import CheckpointError, LayoutError
from ckptshrink.payload import Compute
from ckptshrink.plan import Settings
from ckptshrink.planning.request import Request, Size, parse_target
from ckptshrink.rewrite import compress, restore
from ckptshrink.runtime.characters import CharacterIds
from ckptshrink.runtime.elmo import Elmo, load_elmo
from ckptshrink.runtime.weights import LowRank, PerGate

ONE_THREAD = Compute("cpu", 1)
WORDS = st.text(max_size=15)
SENTENCES = st.lists(st.lists(WORDS, max_size=6), max_size=5)
SAID = [["A", "naïve", "example", "—", "木"], [], ["z" * 70], ["one", "two", "one", "<S>"]]


def shrunk(source: Path, out: Path, target: str = "all", **how: Any) -> Path:
    """Compress and return the artefact."""
    rank, rest = how.pop("rank"), {"settings": Settings(allow_inflate=True)}
    request = Request((parse_target(target),), size=Size(rank=rank), **(rest | how))
    compress(source, out, request, compute=ONE_THREAD)
    return out


def apart(one: list[Tensor], other: list[Tensor]) -> float:
    assert [x.shape for x in one] == [x.shape for x in other]
    pairs = zip(one, other, strict=True)
    return max((float((x - y).abs().max()) for x, y in pairs if x.numel()), default=0.0)


def in_turn(elmo: Elmo, sets: list[list[list[str]]]) -> list[Tensor]:
    """Embed the sets a sentence of each at a time: the batches of the original's own test."""
    return [x for batch in zip(*sets, strict=True) for x in elmo.embed(batch)]


@pytest.fixture(params=["elmo_bilm_tf", "elmo_allennlp"])
def original(request: pytest.FixtureRequest, shared_data: Path) -> Path:
    folder: Path = shared_data / request.param
    return folder


def sentence_sets(folder: Path) -> list[list[list[str]]]:
    found = [*folder.glob("*sentences.json")]
    return [[text.split() for text in texts] for texts in json.loads(found[0].read_text())]


def expected_top(folder: Path) -> list[Tensor]:
    """Return the top layer of every sentence, in the order of `in_turn`."""
    sets = []
    for k in range(3):
        with h5py.File(folder / f"lm_embeddings_{k}.hdf5") as file:
            read = [file[str(i)][...] for i in range(10)]
        sets.append([torch.from_numpy(np.concatenate([x[0], x[1]], axis=-1)) for x in read])
    return [x for batch in zip(*sets, strict=True) for x in batch]


# -- against the original ------------------------------------------------------------------------


def test_outputs_are_what_the_original_code_computed(original: Path) -> None:
    elmo = load_elmo(original / "lm_weights.hdf5", stateful=True)
    tops = [layers[-1] for layers in in_turn(elmo, sentence_sets(original))]
    assert apart(tops, expected_top(original)) < 1e-5


def test_the_original_carries_its_state_from_batch_to_batch(original: Path) -> None:
    """So a stateless run agrees on the first batch and on no other."""
    elmo = load_elmo(original / "lm_weights.hdf5")
    tops = [layers[-1] for layers in in_turn(elmo, sentence_sets(original))]
    assert apart(tops[:3], expected_top(original)[:3]) < 1e-5
    assert apart(tops[3:], expected_top(original)[3:]) > 0.1


def test_an_artefact_of_the_original_at_full_rank_computes_the_same(
    original: Path, tmp_path: Path
) -> None:
    out = shrunk(original / "lm_weights.hdf5", tmp_path / "out", rank=10**6)
    elmo = load_elmo(out, stateful=True)
    tops = [layers[-1] for layers in in_turn(elmo, sentence_sets(original))]
    assert apart(tops, expected_top(original)) < 1e-5


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(options=elmo_reference.models(), sentences=SENTENCES, seed=st.integers(0, 2**16))
def test_any_model_computes_what_bilm_tf_defines(
    options: dict[str, Any], sentences: list[list[str]], seed: int
) -> None:
    values = elmo_reference.weights(options, seed)
    with tempfile.TemporaryDirectory() as folder:
        path = elmo_reference.write(Path(folder), options, values)
        elmo = load_elmo(path, options=path.parent / "options.json")
    got = elmo.embed(sentences, batch_size=3)
    want = [
        torch.from_numpy(elmo_reference.layers(options, values, sentence)).float()
        for sentence in sentences
    ]
    largest = max((float(x.abs().max()) for x in want if x.numel()), default=0.0)
    assert apart(got, want) <= 1e-5 * max(1.0, largest)


@given(word=st.text() | st.sampled_from(["<S>", "</S>", "\ud800"]), size=st.integers(3, 60))
def test_words_become_the_ids_that_the_original_defines(word: str, size: int) -> None:
    assert CharacterIds(size).word(word) == elmo_reference.character_ids(word, size)


# -- batches and states --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(fixtures: Path) -> Path:
    return fixtures / "elmo" / "elmo.hdf5"


@pytest.fixture(scope="module")
def elmo(small: Path) -> Elmo:
    return load_elmo(small)


def test_a_stateless_sentence_depends_on_itself_alone(elmo: Elmo) -> None:
    alone = [elmo.embed([sentence])[0] for sentence in SAID]
    for batch_size in (1, 2, 64):
        assert apart(elmo.embed(SAID, batch_size=batch_size), alone) < 1e-6
    assert [x.shape[1] for x in alone] == [5, 0, 1, 4]


def test_no_sentences_and_empty_ones_have_outputs_of_their_shape(elmo: Elmo) -> None:
    assert elmo.embed([]) == []
    assert [tuple(x.shape) for x in elmo.embed([[], []])] == [(3, 0, 64)] * 2
    layers, mask = elmo(torch.zeros(0, 4, 50, dtype=torch.long))
    assert layers.shape == (3, 0, 4, 64)
    assert mask.shape == (0, 4)


def test_padding_is_zero_in_the_outputs_and_changes_nothing(elmo: Elmo) -> None:
    ids = elmo.indexer.batch(SAID)
    with torch.no_grad():
        layers, mask = elmo(ids)
        wider, _ = elmo(torch.cat([ids, torch.zeros_like(ids)], dim=1))
    assert mask.sum(1).tolist() == [5, 0, 1, 4]
    assert not layers[:, ~mask].any()
    assert layers[:, mask].abs().sum(-1).min() > 0
    assert torch.equal(wider[:, :, : ids.shape[1]], layers)
    assert not wider[:, :, ids.shape[1] :].any()


def test_each_row_of_a_stateful_model_goes_on_from_its_own_state(small: Path) -> None:
    """A row's sentences, in any company, are as if the row were alone and stateful."""
    batches = [
        [["a", "b"], ["c"], ["d", "e", "f"]],
        [["g"]],
        [["h", "i"], [], ["j"], ["k", "l", "m", "n"]],
        [["o"], ["p", "q", "r"], ["s"], []],
    ]
    together, alone = (load_elmo(small, stateful=True) for _ in range(2))
    found = [together.embed(batch) for batch in batches]
    for row in range(4):
        alone.reset()
        for batch, outputs in zip(batches, found, strict=True):
            if row < len(batch):
                assert apart([outputs[row]], alone.embed([batch[row]])) < 1e-6
    first = together.embed(batches[0])
    assert apart(first, found[0]) > 1e-2
    together.reset()
    assert apart(together.embed(batches[0]), found[0]) == 0


def test_a_stateful_model_takes_sentences_in_their_order(small: Path) -> None:
    sentences = [["a"], ["b", "c", "d"], ["e", "f"]]
    elmo = load_elmo(small, stateful=True)
    found = elmo.embed(sentences, batch_size=1)
    elmo.reset()
    assert apart(found, [elmo.embed([s])[0] for s in sentences]) == 0


def test_ids_of_the_wrong_shape_and_holes_are_refused(elmo: Elmo) -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\), where \(B, T, 50\)"):
        elmo(torch.ones(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"\(1, 3, 40\)"):
        elmo(torch.ones(1, 3, 40, dtype=torch.long))
    ids = elmo.indexer.batch([["a", "b", "c"]])
    ids[0, 1] = 0
    with pytest.raises(ValueError, match="between words"):
        elmo(ids)
    with pytest.raises(TypeError, match="split"):
        elmo.embed(["a text"])
    with pytest.raises(ValueError, match="batch of 0"):
        elmo.embed([["a"]], batch_size=0)


# -- factored weights ----------------------------------------------------------------------------

PLANS: dict[str, dict[str, Any]] = {
    "Wh": {"target": "Wh", "rank": 4},
    "Wi and Wh": {"target": "Wi,Wh", "rank": 3},
    "everything": {"rank": 5},
    "highways alone": {"target": "CNN_high_*", "rank": 5},
    "everything at full rank": {"rank": 10**6},
    "a gate at a time": {"target": "Wi,Wh", "rank": 2, "grouping": "per-gate"},
    "semi-nmf": {"rank": 4, "method": "semi-nmf"},
    "pruned": {"rank": 4, "method": "prune"},
    "half precision": {"rank": 6, "dtype": "float16"},
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("source", ["elmo.hdf5", "one_layer/lm_weights.hdf5"])
def test_pairs_compute_what_the_matrices_multiplied_back_do(
    fixtures: Path, tmp_path: Path, source: str, plan: dict[str, Any]
) -> None:
    path = fixtures / "elmo" / source
    out = shrunk(path, tmp_path / "out", **plan)
    back, _ = restore(out, tmp_path / "back.hdf5")
    factored, dense = load_elmo(out), load_elmo(back, options=path.parent / "options.json")
    bound = {"float16": 1e-2, "semi-nmf": 1e-4}.get(plan.get("dtype", plan.get("method")), 1e-5)
    assert apart(factored.embed(SAID), dense.embed(SAID)) < bound
    if plan.get("rank", 0) < 100:
        assert apart(factored.embed(SAID), load_elmo(path).embed(SAID)) > 1e-3


def test_an_artefact_is_held_as_pairs_and_says_so(small: Path, tmp_path: Path, elmo: Elmo) -> None:
    held = load_elmo(shrunk(small, tmp_path / "Wh", "Wh", rank=4))
    pairs = [m for m in held.modules() if isinstance(m, LowRank)]
    assert [(pair.shape, pair.rank) for pair in pairs] == [((512, 32), 4)] * 4
    size = sum(p.numel() for p in held.parameters())
    assert size == sum(p.numel() for p in elmo.parameters()) - 4 * (512 * 32 - 4 * 544)
    assert repr(held).count("wi dense, wh rank 4, proj dense") == 2  # both layers in one line
    assert "rank" not in repr(elmo)
    gates = load_elmo(shrunk(small, tmp_path / "gates", "Wi", rank=2, grouping="per-gate"))
    assert sum(isinstance(m, PerGate) for m in gates.modules()) == 4
    everything = load_elmo(shrunk(small, tmp_path / "all", rank=2))
    # 12 of the cells, 4 of the highways, the projection and the characters
    assert sum(isinstance(m, LowRank) for m in everything.modules()) == 18


# -- training and torch's own habits -------------------------------------------------------------


def directional(
    elmo: Elmo, parameters: list[torch.nn.Parameter], ids: Tensor
) -> tuple[float, float]:
    """Return the derivative along a random direction: by backward, and by differences."""
    generator = torch.Generator().manual_seed(1)
    way = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    weights = torch.randn(elmo(ids).layers.shape, generator=generator, dtype=torch.float64)
    (elmo(ids).layers * weights).sum().backward()
    by_backward = sum(
        float((p.grad * d).sum())
        for p, d in zip(parameters, way, strict=True)
        if p.grad is not None
    )
    values = []
    with torch.no_grad():
        for step in (1e-6, -2e-6):
            for p, d in zip(parameters, way, strict=True):
                p.add_(d, alpha=step)
            values.append(float((elmo(ids).layers * weights).sum()))
    return by_backward, (values[0] - values[1]) / 2e-6


def test_gradients_are_those_of_differences(small: Path, tmp_path: Path) -> None:
    for path in (small, shrunk(small, tmp_path / "out", rank=3)):
        elmo = load_elmo(path).double().train()
        # not the characters: differences would move padding's row, which is not trained
        elmo.embedder.embedding.requires_grad_(False)  # type: ignore[union-attr]
        trained = [p for p in elmo.parameters() if p.requires_grad]
        by_backward, by_difference = directional(elmo, trained, elmo.indexer.batch(SAID))
        assert by_backward == pytest.approx(by_difference, rel=1e-5)
        assert all(p.grad is not None and bool(p.grad.any()) for p in trained)


def test_there_are_gradients_in_training_and_none_in_evaluation(small: Path) -> None:
    elmo = load_elmo(small)
    assert not elmo.training
    assert not elmo.embed(SAID)[0].requires_grad
    trained = elmo.train().embed(SAID)
    sum(x.square().sum() for x in trained).backward()  # type: ignore[union-attr]
    grads = [p.grad for p in elmo.parameters()]
    assert all(g is not None and bool(g.isfinite().all()) for g in grads)
    table = elmo.get_parameter("embedder.embedding.weight")
    assert table.grad is not None and not table.grad[0].any(), "padding is not trained"


def test_a_stateful_model_trains_from_batch_to_batch(small: Path) -> None:
    elmo = load_elmo(small, stateful=True).train()
    for _ in range(2):  # the second would fail if the first one's graph hung on the state
        elmo.zero_grad()
        elmo.embed(SAID)[0].sum().backward()
    assert all(p.grad is not None for p in elmo.bilm.parameters())


def test_copies_state_dicts_and_dtypes_go_as_with_any_module(small: Path, tmp_path: Path) -> None:
    out = shrunk(small, tmp_path / "out", rank=3)
    elmo, other = load_elmo(out, stateful=True), load_elmo(out, stateful=True)
    want = elmo.embed(SAID)
    twin = copy.deepcopy(elmo)
    assert apart(twin.embed(SAID), elmo.embed(SAID)) == 0
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert apart(other.embed(SAID), want) > 1e-2
    other.reset()
    other.load_state_dict(elmo.state_dict())
    assert apart(other.embed(SAID), want) == 0
    other.reset()
    other.embed(SAID)
    doubled = other.double().embed(SAID)  # goes on from the states in single precision
    assert doubled[0].dtype == torch.float64
    assert any(name.endswith("wh.U") for name in elmo.state_dict())


# -- models that read whole tokens ---------------------------------------------------------------


@pytest.fixture
def tokens(elmo: Elmo, tmp_path: Path) -> Callable[[list[str]], tuple[Path, Path]]:
    """Return a maker of a vocabulary file and of the embeddings that `elmo` gives its words."""

    def make(words: list[str]) -> tuple[Path, Path]:
        vocab, embeddings = tmp_path / "vocab.txt", tmp_path / "embeddings.hdf5"
        vocab.write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
        rows = [elmo.embed([[word]])[0][0, 0, :32] for word in words if word != "!!!MAXTERMID"]
        with h5py.File(embeddings, "w") as file:
            file["embedding"] = torch.stack(rows).numpy()
        return vocab, embeddings

    return make


def test_a_model_on_tokens_equals_the_one_whose_embeddings_it_has(
    elmo: Elmo, small: Path, tmp_path: Path, tokens: Any
) -> None:
    vocab, embeddings = tokens(["木", "</S>", "!!!MAXTERMID", "b", "<UNK>", "a", "<S>"])
    model = load_elmo(small, vocab=vocab, embeddings=embeddings)
    sentences = [["a", "木"], [], ["b", "a", "a"]]
    assert apart(model.embed(sentences), elmo.embed(sentences)) < 1e-6
    # an unknown word is <UNK>, spelt here by characters
    assert apart(model.embed([["never", "a"]]), elmo.embed([["<UNK>", "a"]])) < 1e-6
    out = shrunk(embeddings, tmp_path / "embeddings", rank=6)
    factored = load_elmo(small, vocab=vocab, embeddings=out)
    assert apart(factored.embed(sentences), elmo.embed(sentences)) < 1e-5
    assert isinstance(factored.get_submodule("embedder.weight"), LowRank)


def test_a_file_without_characters_reads_tokens(fixtures: Path, tmp_path: Path) -> None:
    folder = fixtures / "elmo" / "tokens"
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("\n".join(["<S>", "</S>", *map(str, range(298))]))
    given = {"vocab": vocab, "embeddings": folder / "vocab_embedding.hdf5"}
    dense = load_elmo(folder / "elmo_tokens_weights.hdf5", **given)
    with h5py.File(folder / "vocab_embedding.hdf5") as file:
        row = torch.from_numpy(file["embedding"][2 + 17])
    found = dense.embed([["17", "4"]])[0]
    assert torch.equal(found[0, 0], row.repeat(2))
    out = shrunk(folder / "elmo_tokens_weights.hdf5", tmp_path / "out", rank=10**6)
    assert apart(load_elmo(out, **given).embed([["17", "4"]]), [found]) < 1e-5
    with pytest.raises(ValueError, match=r"\(B, T\) is wanted"):
        dense(torch.ones(1, 2, 50, dtype=torch.long))


def test_a_vocabulary_that_does_not_fit_is_refused(small: Path, tokens: Any) -> None:
    vocab, embeddings = tokens(["<S>", "</S>", "a"])
    model = load_elmo(small, vocab=vocab, embeddings=embeddings)
    with pytest.raises(CheckpointError, match="neither 'b' nor <UNK>"):
        model.embed([["a", "b"]])
    with pytest.raises(CheckpointError, match="reads whole tokens") as caught:
        load_elmo(small, embeddings=embeddings)
    assert "vocab=" in str(caught.value.hint)
    vocab.write_text("<S>\n</S>\n")
    with pytest.raises(CheckpointError, match="has 2 words, and the model has 3"):
        load_elmo(small, vocab=vocab, embeddings=embeddings)
    vocab.write_text("<S>\na\nb\n")
    with pytest.raises(CheckpointError, match="has no </S>"):
        load_elmo(small, vocab=vocab, embeddings=embeddings)
    vocab.write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match="UTF-8"):
        load_elmo(small, vocab=vocab, embeddings=embeddings)
    with pytest.raises(CheckpointError, match=r"no\.txt"):
        load_elmo(small, vocab=vocab.parent / "no.txt", embeddings=embeddings)


def test_a_model_with_no_embedding_says_where_to_give_it(fixtures: Path) -> None:
    with pytest.raises(LayoutError, match="neither char_embed nor embedding") as caught:
        load_elmo(fixtures / "elmo" / "tokens" / "elmo_tokens_weights.hdf5")
    assert "embeddings=" in str(caught.value.hint)


# -- files that don't go together ----------------------------------------------------------------

MODEL: dict[str, Any] = {
    "lstm": {
        "dim": 6, "projection_dim": 4, "n_layers": 2, "cell_clip": 3, "proj_clip": 3,
        "use_skip_connections": True,
    },
    "char_cnn": {
        "activation": "relu", "filters": [[1, 2], [3, 3]], "n_highway": 1,
        "embedding": {"dim": 4}, "max_characters_per_token": 10,
    },
    "directions": 2,
}  # fmt: skip

WRONG_OPTIONS: dict[str, tuple[list[str], Any]] = {
    "2 for lstm.n_layers, and the options say 3": (["lstm", "n_layers"], 3),
    "6 for lstm.dim, and the options say 7": (["lstm", "dim"], 7),
    "4 for lstm.projection_dim": (["lstm", "projection_dim"], 5),
    "for char_cnn.filters": (["char_cnn", "filters"], [[1, 2], [2, 3]]),
    "1 for char_cnn.n_highway, and the options say 0": (["char_cnn", "n_highway"], None),
    "for char_cnn.filters, and the options say None": (["char_cnn"], None),
    "filters of 3 characters, and words of 2|greater than or equal to 3": (
        ["char_cnn", "max_characters_per_token"],
        2,
    ),
    "not the options of an ELMo: char_cnn.activation": (["char_cnn", "activation"], "gelu"),
    "not the options of an ELMo: lstm": (["lstm"], 3),
    "lstm.cell_clip": (["lstm", "cell_clip"], -3),
}


@pytest.mark.parametrize("message", WRONG_OPTIONS)
def test_options_of_another_model_are_refused(message: str, tmp_path: Path) -> None:
    path = elmo_reference.write(tmp_path, MODEL, elmo_reference.weights(MODEL))
    load_elmo(path)
    place, value = WRONG_OPTIONS[message]
    options = copy.deepcopy(MODEL)
    inner = options
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (tmp_path / "wrong.json").write_text(json.dumps(options))
    with pytest.raises(CheckpointError, match=message):
        load_elmo(path, options=tmp_path / "wrong.json")


def test_missing_and_broken_options_are_named(tmp_path: Path) -> None:
    path = elmo_reference.write(tmp_path, MODEL, elmo_reference.weights(MODEL))
    with pytest.raises(CheckpointError, match=r"nowhere\.json"):
        load_elmo(path, options=tmp_path / "nowhere.json")
    (tmp_path / "options.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"no options\.json") as caught:
        load_elmo(path)
    assert "options=" in str(caught.value.hint)
    with pytest.raises(CheckpointError, match="not valid"):
        load_elmo(path, options=tmp_path / "options.json")


def _spoilt() -> Iterator[tuple[str, Callable[[dict[str, Any]], object]]]:
    def reshape(name: str, shape: tuple[int, ...]) -> Callable[[dict[str, Any]], object]:
        return lambda v: v.update({name: np.zeros(shape, np.float32)})

    cell = "RNN_1/RNN/MultiRNNCell/Cell1/LSTMCell/"
    yield f"{cell}B .* is not in", lambda v: v.pop(f"{cell}B")
    yield f"{cell}B .* is not \\(24,\\)", reshape(f"{cell}B", (23,))
    yield "2 forward", lambda v: [v.pop(cell + leaf) for leaf in ("W_0", "B", "W_P_0")]
    yield "do not go with the others", reshape(f"{cell}W_0", (9, 24))
    yield "W_carry .* does not go with the 5 filters", reshape("CNN_high_0/W_carry", (5, 6))
    yield "b_transform .* is not \\(5,\\)", reshape("CNN_high_0/b_transform", (6,))
    yield "W_transform .* is missing", lambda v: v.pop("CNN_high_0/W_transform")
    yield "no convolution of 4 values", reshape("CNN/W_cnn_1", (1, 3, 5, 3))
    yield "no convolution", reshape("CNN/W_cnn_1", (1, 4, 3))
    yield "W_proj .* does not go with the 5", reshape("CNN_proj/W_proj", (6, 4))
    yield (
        "embeds words as 3 values, and its LSTMs take 4",
        lambda v: (
            reshape("CNN_proj/W_proj", (5, 3))(v),
            reshape("CNN_proj/b_proj", (3,))(v),
        ),
    )


@pytest.mark.parametrize(("message", "spoil"), list(_spoilt()))
def test_weights_that_do_not_go_together_are_refused(
    message: str, spoil: Callable[[dict[str, Any]], object], tmp_path: Path
) -> None:
    values: dict[str, Any] = elmo_reference.weights(MODEL)
    spoil(values)
    with pytest.raises(LayoutError, match=message):
        load_elmo(elmo_reference.write(tmp_path, MODEL, values))


def test_a_checkpoint_of_another_kind_is_refused(fixtures: Path, tmp_path: Path) -> None:
    (tmp_path / "options.json").write_text(json.dumps(MODEL))
    with pytest.raises(LayoutError, match="is no ELMo"):
        load_elmo(
            fixtures / "elmo" / "tokens" / "vocab_embedding.hdf5", options=tmp_path / "options.json"
        )


def test_no_two_words_of_a_batch_share_an_embedding_by_mistake(elmo: Elmo) -> None:
    words = ["a", "b", "ab", "ba", "", "<S>", "</S>", "A", "\u00a0", "aaaaaaaaaaaaaaaaaaaaaaaaa"]
    rows = elmo.embed([words])[0][0]
    assert all(not torch.equal(rows[i], rows[j]) for i, j in combinations(range(len(words)), 2))
