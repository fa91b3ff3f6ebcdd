"""Factored weights in AllenNLP's ELMo: its stand-in everywhere, its own classes where installed."""

import copy
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import allennlp_environment
import allennlp_standin
import elmo_reference
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ckptshrink.errors import LayoutError
from ckptshrink.payload import Compute
from ckptshrink.plan import Settings
from ckptshrink.planning.request import Request, Size, parse_target
from ckptshrink.rewrite import compress, restore
from ckptshrink.runtime.allennlp import factor_elmo
from ckptshrink.runtime.characters import CharacterIds
from ckptshrink.runtime.elmo import load_elmo
from ckptshrink.runtime.linear import FactoredLinear
from ckptshrink.runtime.linears import StackedLinear
from ckptshrink.runtime.weights import LowRank

SAID = [["A", "naïve", "example", "—", "木"], ["z" * 70], ["one", "two", "one", "<S>"]]
OPTIONS: dict[str, Any] = {
    "lstm": {
        "dim": 12, "projection_dim": 6, "n_layers": 2, "cell_clip": 0.5, "proj_clip": 0.4,
        "use_skip_connections": True,
    },
    "char_cnn": {
        "activation": "relu", "filters": [[1, 4], [3, 6]], "n_highway": 2,
        "embedding": {"dim": 4}, "n_characters": 262, "max_characters_per_token": 50,
    },
    "directions": 2,
}  # fmt: skip


def shrunk(source: Path, out: Path, target: str = "all", *, rank: int, **how: Any) -> Path:
    """Compress and return the artefact."""
    request = Request(
        (parse_target(target),),
        size=Size(rank=rank),
        settings=Settings(allow_inflate=True),
        **how,
    )
    compress(source, out, request, compute=Compute("cpu", 1))
    return out


def model(folder: Path, seed: int = 0, **lstm: Any) -> Path:
    """Write an ELMo; return its weights, with options.json beside them."""
    options = copy.deepcopy(OPTIONS)
    options["lstm"].update(lstm)
    return elmo_reference.write(folder, options, elmo_reference.weights(options, seed))


def built(weights: Path, options: Path | None = None) -> Any:
    options = options or weights.parent / "options.json"
    return allennlp_standin.Elmo(options, weights)


@torch.no_grad()
def outputs(elmo: Any) -> list[Tensor]:
    """Return every layer of every sentence, with the borders."""
    ids = CharacterIds()
    return [
        layer
        for sentence in SAID
        for layer in elmo._elmo_lstm(
            torch.cat([ids.begin[None], ids.batch([sentence])[0], ids.end[None]])
        )
    ]


def apart(one: list[Tensor], other: list[Tensor]) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(one, other, strict=True))


PLANS: dict[str, dict[str, Any]] = {
    "Wh": {"target": "Wh", "rank": 2},
    "everything": {"rank": 2},
    "everything at full rank": {"rank": 10**6},
    "a gate at a time": {"target": "Wi,Wh", "rank": 2, "grouping": "per-gate"},
    "one half of a highway": {"target": "CNN_high_0/W_carry", "rank": 3},
    "the other half": {"target": "CNN_high_1/W_transform", "rank": 3},
    "pruned": {"rank": 2, "method": "prune"},
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_outputs_are_those_of_the_restored_dense_model(
    plan: dict[str, Any], tmp_path: Path
) -> None:
    weights = model(tmp_path)
    out = shrunk(weights, tmp_path / "out", **plan)
    back, _ = restore(out, tmp_path / "back.hdf5")
    elmo = built(weights)
    before = outputs(elmo)
    assert factor_elmo(elmo, out) is elmo
    assert apart(outputs(elmo), outputs(built(back, tmp_path / "options.json"))) < 1e-5
    assert (apart(outputs(elmo), before) > 1e-3) == (plan["rank"] < 100)


def test_what_is_factored_runs_as_pairs(tmp_path: Path) -> None:
    weights = model(tmp_path)
    elmo = factor_elmo(built(weights), shrunk(weights, tmp_path / "out", rank=2))
    lstm, embedder = elmo._elmo_lstm._elmo_lstm, elmo._elmo_lstm._token_embedder
    for layer in (lstm.forward_layer_0, lstm.backward_layer_1):
        for name in ("input_linearity", "state_linearity", "state_projection"):
            assert isinstance(layer.get_submodule(name), FactoredLinear)
            assert isinstance(layer.get_submodule(f"{name}.weight"), LowRank)
    assert isinstance(embedder._projection, FactoredLinear)
    assert all(isinstance(layer, StackedLinear) for layer in embedder._highways._layers)
    # 3 of 4 cells, 2 of 2 highways, and the projection
    assert sum(isinstance(m, LowRank) for m in elmo.modules()) == 17
    gates = factor_elmo(
        built(weights), shrunk(weights, tmp_path / "gates", "Wi", rank=1, grouping="per-gate")
    )
    linear = gates._elmo_lstm._elmo_lstm.forward_layer_0.input_linearity
    assert [part.rank for part in linear.parts] == [1, 1, 1, 1]


def test_a_source_checkpoint_is_as_good_and_dense_again(tmp_path: Path) -> None:
    weights, other = model(tmp_path / "a", 1), model(tmp_path / "b", 2)
    elmo = factor_elmo(built(weights), shrunk(other, tmp_path / "out", rank=2))
    assert apart(outputs(elmo), outputs(built(other))) > 1e-2
    factor_elmo(elmo, other)  # over the factored one
    assert apart(outputs(elmo), outputs(built(other))) < 1e-6
    assert not any(isinstance(m, LowRank) for m in elmo.modules())


def test_every_elmo_inside_a_model_gets_parameters_of_its_own(tmp_path: Path) -> None:
    weights = model(tmp_path)
    out = shrunk(weights, tmp_path / "out", rank=2)
    task = nn.ModuleDict(
        {"first": built(weights), "head": nn.Linear(3, 2), "second": built(weights)}
    )
    head = copy.deepcopy(task["head"].state_dict())
    factor_elmo(task, out)
    alone = outputs(factor_elmo(built(weights), out))
    for name in ("first", "second"):
        assert apart(outputs(task[name]), alone) == 0
        assert torch.equal(task[name].get_parameter("scalar_mix"), torch.arange(3.0))
    shared = {p.data_ptr() for p in task["first"].parameters()}
    assert not shared & {p.data_ptr() for p in task["second"].parameters()}
    assert all(torch.equal(v, head[k]) for k, v in task["head"].state_dict().items())
    bare = factor_elmo(built(weights)._elmo_lstm, out)  # the biLM without what is around it
    assert sum(isinstance(m, LowRank) for m in bare.modules()) == 17


@pytest.mark.parametrize("trained", [False, True])
def test_parameters_are_as_frozen_and_of_the_dtype_that_they_were(
    tmp_path: Path, trained: bool
) -> None:
    weights = model(tmp_path)
    elmo = built(weights).double().requires_grad_(trained).eval()
    factor_elmo(elmo, shrunk(weights, tmp_path / "out", rank=2))
    assert {p.dtype for p in elmo.parameters()} == {torch.float64}
    assert {p.requires_grad for p in elmo.parameters()} == {trained}
    assert not any(m.training for m in elmo.modules())
    if trained:
        elmo(CharacterIds().batch([["a", "word"]])[0]).sum().backward()
        assert all(p.grad is not None for p in elmo.parameters())


def test_a_state_dict_goes_round(tmp_path: Path) -> None:
    weights = model(tmp_path)
    out = shrunk(weights, tmp_path / "out", rank=2)
    one, two = (factor_elmo(built(weights), out) for _ in range(2))
    state = one.state_dict()
    assert "_elmo_lstm._elmo_lstm.forward_layer_0.state_linearity.weight.U" in state
    assert "_elmo_lstm._elmo_lstm.forward_layer_0.state_linearity.bias" in state
    with torch.no_grad():
        for p in two.parameters():
            p.zero_()
    two.load_state_dict(state)
    assert apart(outputs(two), outputs(one)) == 0


def _cached(elmo: Any) -> None:
    elmo._elmo_lstm._word_embedding = nn.Embedding(3, 6)


WRONG: dict[str, tuple[dict[str, Any], Callable[[Any], None]]] = {
    "inputs, state and cells of the forward layer 0": ({"dim": 13}, lambda elmo: None),
    "has 3 forward LSTM layers, and the ELMo has 2": ({"n_layers": 3}, lambda elmo: None),
    r"bounds cell and state by 0\.5 and 0\.3, and the ELMo by 0\.5 and 0\.4": (
        {"proj_clip": 0.3},
        lambda elmo: None,
    ),
    "bounds cell and state by None": ({"cell_clip": None}, lambda elmo: None),
    "no skip connections": ({"use_skip_connections": False}, lambda elmo: None),
    "vocab_to_cache": ({}, _cached),
}


@pytest.mark.parametrize("message", WRONG)
def test_another_model_is_refused_and_nothing_is_changed(message: str, tmp_path: Path) -> None:
    lstm, spoil = WRONG[message]
    elmo = built(model(tmp_path / "one"))
    spoil(elmo)
    before = {name: value.clone() for name, value in elmo.state_dict().items()}
    out = shrunk(model(tmp_path / "other", **lstm), tmp_path / "out", rank=2)
    with pytest.raises(LayoutError, match=message):
        factor_elmo(elmo, out)
    after = elmo.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_other_characters_are_refused(tmp_path: Path) -> None:
    elmo = built(model(tmp_path / "one"))
    for k, (change, message) in enumerate(
        [
            ({"activation": "tanh"}, "has tanh filters"),
            ({"n_highway": 1}, "has 1 highway layers"),
            ({"filters": [[1, 4], [2, 6]]}, r"\(6, 4, 2\) weight"),
            ({"filters": [[1, 4], [3, 5], [3, 1]]}, "3 character convolutions"),
            ({"embedding": {"dim": 3}}, "char_embedding_weights"),
        ]
    ):
        options = copy.deepcopy(OPTIONS)
        options["char_cnn"].update(change)
        path = elmo_reference.write(tmp_path / str(k), options, elmo_reference.weights(options))
        with pytest.raises(LayoutError, match=message):
            factor_elmo(elmo, path)


def test_a_model_that_projects_nothing_is_refused(tmp_path: Path) -> None:
    """AllenNLP's modules always project, where bilm-tf leaves out what changes no size."""
    options = copy.deepcopy(OPTIONS)
    options["lstm"]["dim"] = 6
    options["char_cnn"]["filters"] = [[1, 2], [2, 4]]
    values = elmo_reference.weights(options)
    whole = dict(values)
    whole["CNN_proj/W_proj"] = np.eye(6, dtype=np.float32)
    whole["CNN_proj/b_proj"] = np.zeros(6, np.float32)
    for direction, layer in product((0, 1), (0, 1)):
        name = elmo_reference.cell_names(options, direction, layer)[2]
        whole[name] = np.eye(6, dtype=np.float32)
    elmo = built(elmo_reference.write(tmp_path / "whole", options, whole))
    with pytest.raises(LayoutError, match="no projection, and AllenNLP's cells"):
        factor_elmo(elmo, elmo_reference.write(tmp_path / "neither", options, values))
    values = {name: value for name, value in whole.items() if not name.startswith("CNN_proj")}
    with pytest.raises(LayoutError, match="no CNN_proj, and AllenNLP's ELMo"):
        factor_elmo(elmo, elmo_reference.write(tmp_path / "words", options, values))
    assert factor_elmo(elmo, tmp_path / "whole" / "lm_weights.hdf5") is elmo


def test_a_module_without_an_elmo_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="no ELMo of AllenNLP in this Linear"):
        factor_elmo(nn.Linear(2, 2), model(tmp_path))


def test_options_can_lie_elsewhere(tmp_path: Path) -> None:
    weights = model(tmp_path)
    options = (tmp_path / "options.json").rename(tmp_path / "elsewhere.json")
    elmo = factor_elmo(built(weights, options), weights, options=options)
    assert (
        json.loads(options.read_text())["lstm"]["dim"]
        == elmo._elmo_lstm._elmo_lstm.forward_layer_0.cell_size
    )


def test_the_stand_in_computes_what_the_reference_does(tmp_path: Path) -> None:
    weights = model(tmp_path)
    values = elmo_reference.weights(OPTIONS)
    found = outputs(built(weights))
    for k, sentence in enumerate(SAID):
        want = torch.from_numpy(elmo_reference.layers(OPTIONS, values, sentence)).float()
        assert apart([found[3 * k + 2][1:-1]], [want[2]]) < 1e-5


# -- AllenNLP itself -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def allennlp() -> Any:
    """Return allennlp.modules.elmo, which not every environment has; CI must have it."""
    return allennlp_environment.allennlp_elmo()


@pytest.mark.parametrize(
    "plan", [PLANS["Wh"], PLANS["everything"], PLANS["everything at full rank"]]
)
def test_allennlps_own_elmo_runs_the_pairs(
    allennlp: Any, shared_data: Path, tmp_path: Path, plan: dict[str, Any]
) -> None:
    """Batches of several sizes, states carried over; our own runtime agrees, states and all."""
    weights = shared_data / "elmo_allennlp" / "lm_weights.hdf5"
    options = str(weights.parent / "options.json")
    out = shrunk(weights, tmp_path / "out", **plan)
    back, _ = restore(out, tmp_path / "back.hdf5")
    dense, factored = (
        allennlp.Elmo(options, str(path), 2, dropout=0.0).eval() for path in (back, weights)
    )
    factor_elmo(factored, out)
    ours = load_elmo(out, stateful=True)
    assert not any(p.requires_grad for n, p in factored.named_parameters() if "mix" not in n)
    with torch.no_grad():
        for batch in (SAID, [*SAID, [], ["more"]], SAID[1:]):
            ids = allennlp.batch_to_ids(batch)
            assert torch.equal(ours.indexer.batch(batch), ids)
            want, got, own = dense(ids), factored(ids), ours(ids)
            assert apart(got["elmo_representations"], want["elmo_representations"]) < 1e-5
            assert apart([own.layers.mean(0)], want["elmo_representations"][:1]) < 1e-5
            assert torch.equal(own.mask, want["mask"])
