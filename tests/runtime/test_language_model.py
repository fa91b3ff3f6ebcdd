"""Language models from files, against the original's outputs and against plain torch modules."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_gold
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from ckptshrink.errors import CheckpointError, LayoutError, UnknownFormatError
from ckptshrink.manifest import read_manifest
from ckptshrink.payload import Compute
from ckptshrink.plan import Settings
from ckptshrink.planning.request import Request, Size, parse_target
from ckptshrink.rewrite import compress, restore
from ckptshrink.runtime import language_model
from ckptshrink.runtime.gru import FactoredGRU
from ckptshrink.runtime.language_model import LanguageModel, load_language_model
from ckptshrink.runtime.linear import FactoredEmbedding, FactoredLinear
from ckptshrink.runtime.lstm import FactoredLSTM
from ckptshrink.runtime.qrnn import QRNNLayer
from ckptshrink.runtime.split_softmax import awd_splits
from ckptshrink.runtime.state import load_state_dict
from ckptshrink.runtime.weights import LowRank, PerGate

BOUND = 1e-5
WHOLE = "awd_lstm/whole_module_torch1.2"
MODELS = (
    "awd_lstm.legacy.pt", "awd_lstm.zip.pt", "awd_lstm_bare.legacy.pt", "awd_lstm_masked.zip.pt",
    "awd_lstm_masked.legacy.pt", "awd_lstm_evaluated.zip.pt", "awd_lstm_state.zip.pt",
    "awd_gru.zip.pt", "awd_qrnn.zip.pt", "awd_qrnn.legacy.pt", "fastai_v1.zip.pt",
    "fastai_v1.legacy.pt", "word_language_model.zip.pt",
)  # fmt: skip


def shrunk(
    path: Path,
    out: Path,
    targets: str = "Wh",
    settings: Settings | None = None,
    size: Size | None = None,
    **how: Any,
) -> Path:
    """Compress a file to an artefact, and return it."""
    request = Request(
        tuple(map(parse_target, targets.split())), size=size or Size(rank=3),
        settings=settings or Settings(), **how,
    )  # fmt: skip
    compress(path, out, request, compute=Compute("cpu", 1))
    return out


def words(model: LanguageModel, T: int = 9, B: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.vocab_size, (T, B), generator=generator)


def difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).detach().abs().max())


# -- a second implementation, of plain torch modules ---------------------------------------------


def plain_output(state: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
    """Return the last layer's output for dense weights by the names of a checkpoint."""
    state = {_plain(name): value.detach() for name, value in _raw_first(state)}
    x = state["encoder.weight"][tokens]
    n_layers = len({n.split(".")[1] for n in state if n.startswith("rnns.")})
    for layer in range(n_layers):
        own = f"rnns.{layer}."
        weights = {n.removeprefix(own): v for n, v in state.items() if n.startswith(own)}
        if "weight" in weights:
            x = _plain_qrnn(weights["weight"], weights["bias"], x)
            continue
        rows, hidden = weights["weight_hh_l0"].shape
        rnn = (nn.LSTM if rows == 4 * hidden else nn.GRU)(x.shape[-1], hidden)
        rnn.load_state_dict(weights)
        with torch.no_grad():
            x = rnn(x)[0]
    return x


def _raw_first(state: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Return the tensors of a model, a masked weight before the raw one that replaces it."""
    return sorted(state.items(), key=lambda item: item[0].endswith("_raw"))


def _plain(name: str) -> str:
    """Return a stored name as that of one module a layer."""
    name = name.removesuffix("_raw")
    for prefix in ("0.", "1."):
        name = name.removeprefix(prefix)
    for inner in (".linear", ".module"):
        name = name.replace(inner, "")
    head, _, end = name.rpartition("_l")
    return f"rnns.{end}.{head.removeprefix('rnn.')}_l0" if name.startswith("rnn.") else name


def _plain_qrnn(W: Tensor, b: Tensor, x: Tensor) -> Tensor:
    if W.shape[1] == 2 * x.shape[-1]:
        x = torch.cat([x, torch.cat([torch.zeros_like(x[:1]), x[:-1]])], dim=-1)
    z, f, o = (x @ W.T + b).chunk(3, dim=-1)
    c = torch.zeros_like(z[0])
    outputs = []
    for t in range(len(x)):
        c = torch.sigmoid(f[t]) * torch.tanh(z[t]) + (1 - torch.sigmoid(f[t])) * c
        outputs.append(torch.sigmoid(o[t]) * c)
    return torch.stack(outputs)


def stored(path: Path) -> dict[str, Tensor]:
    """Return what torch itself reads of a fixture, by the model's names."""
    found = torch_gold.tensors_of(torch_gold.load(path))
    return {
        name: value
        for name, value in found.items()
        if not name.startswith(("optimizer.", "opt.", "criterion.")) and "_flat_weights" not in name
        and "prevX" not in name
    }  # fmt: skip


# -- source checkpoints --------------------------------------------------------------------------


def test_the_originals_outputs_come_back(shared_data: Path) -> None:
    gold = np.load(shared_data / f"{WHOLE}.gold.npz")
    model = load_language_model(str(shared_data / f"{WHOLE}.pt"))
    with torch.no_grad():
        output, state = model(torch.from_numpy(gold["x"]))
    assert np.abs(output.flatten(0, 1).numpy() - gold["out"]).max() <= 1e-6
    assert (model.vocab_size, model.embedding_dim, model.n_layers) == (500, 40, 3)
    assert (model.hidden_sizes, model.output_size, model.cell) == ((96, 96, 40), 40, "lstm")
    assert model.tied
    assert not model.training
    assert [tuple(s.shape for s in layer) for layer in state] == [
        ((1, 2, h), (1, 2, h)) for h in model.hidden_sizes
    ]


@pytest.mark.parametrize("name", MODELS)
def test_every_family_gives_what_plain_modules_give(fixtures: Path, name: str) -> None:
    path = fixtures / "torch" / name
    model = load_language_model(path)
    tokens = words(model)
    state = stored(path)
    with torch.no_grad():
        output, _ = model(tokens)
        want = plain_output(state, tokens)
        assert difference(output, want) <= BOUND
        decoder = next(v for n, v in state.items() if n.endswith("decoder.weight")).detach()
        bias = next(v for n, v in state.items() if n.endswith("decoder.bias")).detach()
        assert difference(model.logits(output), want @ decoder.T + bias) <= BOUND
    kinds = {"lstm": FactoredLSTM, "gru": FactoredGRU, "qrnn": QRNNLayer}
    assert all(isinstance(layer, kinds[model.cell]) for layer in model.rnns)
    assert model.tied == (name != "word_language_model.zip.pt")


@pytest.mark.parametrize("name", MODELS)
def test_a_text_in_parts_gives_what_it_gives_in_one(fixtures: Path, name: str) -> None:
    model = load_language_model(fixtures / "torch" / name)
    tokens = words(model)
    with torch.no_grad():
        whole, end = model(tokens)
        first, state = model(tokens[:1])
        rest, state = model(tokens[1:], state)
    assert difference(torch.cat([first, rest]), whole) <= 1e-6
    for ours, theirs in zip(_tensors(state), _tensors(end), strict=True):
        assert difference(ours, theirs) <= 1e-6


def _tensors(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    return [t for part in state if part is not None for t in _tensors(part)]


class Own(nn.Module):
    """A language model of one's own, with other names."""

    def __init__(self, proj: int = 0, bias: bool = True, tie: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 12)
        self.lstm = nn.LSTM(12, 20 if not tie else 12, 2, bias=bias, proj_size=proj)
        self.out = nn.Linear(proj or (20 if not tie else 12), 40, bias=bias)
        if tie:
            self.out.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        y: Tensor = self.out(self.lstm(self.embedding(tokens))[0])
        return y


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("how", [{}, {"proj": 7}, {"bias": False}, {"tie": True}])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_model_of_ones_own_is_found_by_its_shapes(
    tmp_path: Path, how: dict[str, Any], wrapped: bool
) -> None:
    own = Own(**how)
    torch.save(
        nn.DataParallel(own).state_dict() if wrapped else own.state_dict(), tmp_path / "m.pt"
    )
    model = load_language_model(tmp_path / "m.pt")
    with torch.no_grad():
        tokens = words(model)
        assert difference(model.logits(model(tokens)[0]), own(tokens)) <= BOUND
        out = shrunk(tmp_path / "m.pt", tmp_path / "out", "Wh", size=Size(ratio=0.5))
        assert difference(model(tokens)[0], load_language_model(out)(tokens)[0]) > 1e-3
    assert model.tied == ("tie" in how)


def test_a_tied_name_that_save_model_left_out_is_known(tmp_path: Path) -> None:
    own = Own(tie=True)
    save_model(own, str(tmp_path / "m.safetensors"))
    for path in (tmp_path / "m.safetensors", shrunk(tmp_path / "m.safetensors", tmp_path / "out")):
        model = load_language_model(path)
        assert model.tied
    with torch.no_grad():
        tokens = words(model)
        model = load_language_model(tmp_path / "m.safetensors")
        assert difference(model.logits(model(tokens)[0]), own(tokens)) <= BOUND


@pytest.mark.parametrize("name", ["awd_lstm_bare.zip.pt", "awd_gru.zip.pt"])
def test_other_names_of_an_awd_model_are_known(fixtures: Path, tmp_path: Path, name: str) -> None:
    first = load_language_model(fixtures / "torch" / name)
    state = stored(fixtures / "torch" / name)
    without_weight_drop = {
        n.replace(".module.", ".").removesuffix("_raw"): v.detach() for n, v in state.items()
    }
    untied = {n: v.detach().clone() for n, v in state.items()}
    parallel = {f"module.{n}": v.detach() for n, v in state.items()}
    nested = {"epoch": 3, "state_dict": {n: v.detach() for n, v in state.items()}}
    tokens = words(first)
    with torch.no_grad():
        want = first.log_probs(tokens)[0]
        for saved in (without_weight_drop, untied, parallel, nested):
            torch.save(saved, tmp_path / "m.pt")
            model = load_language_model(tmp_path / "m.pt")
            assert difference(model.log_probs(tokens)[0], want) == 0
            assert model.tied == (saved is not untied)


def test_the_names_of_other_fastai_versions_are_known(fixtures: Path, tmp_path: Path) -> None:
    path = fixtures / "torch" / "fastai_v1.zip.pt"
    first = load_language_model(path)
    state = stored(path)
    without_copies = {n: v for n, v in state.items() if not n.endswith("module.weight_hh_l0")}
    old = {
        n.replace(".weight_hh_l0_raw", ".module.weight_hh_l0_raw")
        .replace("encoder_dp.emb", "encoder_with_dropout.embed"): v
        for n, v in without_copies.items()
        if n != "1.decoder.bias"
    }  # fmt: skip
    tokens = words(first)
    for saved in (without_copies, {"model": without_copies}, old):
        torch.save(saved, tmp_path / "m.pth")
        model = load_language_model(tmp_path / "m.pth")
        with torch.no_grad():
            assert difference(model(tokens)[0], first(tokens)[0]) == 0
        assert (model.decoder.bias is None) == (saved is old)


def test_fastais_qrnn_is_known(fixtures: Path, tmp_path: Path) -> None:
    state = stored(fixtures / "torch" / "awd_qrnn.zip.pt")
    renamed = {}
    for name, value in state.items():
        name = name.replace(".linear.module.weight_raw", ".layers.0.linear.weight_raw")
        name = name.replace(".linear.module.bias", ".layers.0.linear.module.bias")
        renamed[f"{1 if 'decoder' in name else 0}.{name}"] = value.detach()
    torch.save(renamed, tmp_path / "m.pth")
    model = load_language_model(tmp_path / "m.pth")
    assert [layer.window for layer in model.rnns] == [2, 1, 1]
    tokens = words(model)
    with torch.no_grad():
        assert difference(model(tokens)[0], plain_output(state, tokens)) <= BOUND


def test_shards_and_safetensors_are_read(fixtures: Path) -> None:
    folder = fixtures / "safetensors" / "sharded"
    for path in (folder / "model.safetensors.index.json", folder):
        assert load_language_model(path).vocab_size == 200


# -- artefacts -----------------------------------------------------------------------------------

HOW: list[dict[str, Any]] = [
    {},
    {"targets": "Wh Wi"},
    {"targets": "Wh Wi embedding softmax", "size": Size(ratio=0.6)},
    {"targets": "Wh Wi", "size": Size(ratio=0.5), "grouping": "per-gate"},
    {"targets": "Wh Wi embedding", "method": "semi-nmf"},
    {"targets": "Wh", "method": "prune", "size": Size(ratio=0.5)},
]


@pytest.mark.parametrize("how", HOW, ids=str)
@pytest.mark.parametrize(
    "name",
    ["awd_lstm.legacy.pt", "awd_gru.zip.pt", "awd_qrnn.zip.pt", "word_language_model.zip.pt"],
)
def test_an_artefact_gives_what_its_weights_multiplied_back_give(
    fixtures: Path, tmp_path: Path, name: str, how: dict[str, Any]
) -> None:
    if name.startswith("awd_qrnn"):
        how = {
            **how,
            "targets": how.get("targets", "Wh").replace("Wh Wi", "Wi").replace("Wh", "Wi"),
        }
    path = fixtures / "torch" / name
    out = shrunk(path, tmp_path / "out", **how)
    model, source = load_language_model(out), load_language_model(path)
    tokens = words(model)
    with torch.no_grad():
        output, _ = model(tokens)
        assert difference(output, plain_output(load_state_dict(out), tokens)) <= BOUND
        assert difference(output, source(tokens)[0]) > 1e-3, "nothing was compressed"
    restored, _ = restore(out, tmp_path / "back.pt")
    with torch.no_grad():
        assert difference(output, load_language_model(restored)(tokens)[0]) <= BOUND
    # with gradients it takes another way
    assert difference(output, model(tokens)[0]) <= BOUND


def test_a_real_artefact_gives_what_its_weights_multiplied_back_give(
    shared_data: Path, tmp_path: Path
) -> None:
    path = shared_data / f"{WHOLE}.pt"
    for targets in ("Wh", "Wi Wh", "Wi Wh embedding"):
        out = shrunk(path, tmp_path / targets.replace(" ", "-"), targets, size=Size(rank=10))
        model = load_language_model(out)
        tokens = words(model, 30, 4)
        with torch.no_grad():
            output, _ = model(tokens)
        assert difference(output, plain_output(load_state_dict(out), tokens)) <= BOUND


def test_an_artefact_of_full_rank_gives_the_originals_outputs(
    shared_data: Path, tmp_path: Path
) -> None:
    gold = np.load(shared_data / f"{WHOLE}.gold.npz")
    out = shrunk(
        shared_data / f"{WHOLE}.pt", tmp_path / "out", "all", Settings(allow_inflate=True),
        Size(rank=10**6),
    )  # fmt: skip
    model = load_language_model(out)
    assert isinstance(model.encoder, FactoredEmbedding)
    with torch.no_grad():
        output, _ = model(torch.from_numpy(gold["x"]))
    assert np.abs(output.flatten(0, 1).numpy() - gold["out"]).max() <= BOUND


def test_what_is_factored_stays_so(fixtures: Path, tmp_path: Path) -> None:
    out = shrunk(fixtures / "torch" / "awd_lstm_bare.zip.pt", tmp_path / "out", "Wh Wi embedding")
    model = load_language_model(out)
    for layer in model.rnns:
        assert isinstance(layer.weight_ih_l0, LowRank)
        assert isinstance(layer.weight_hh_l0, LowRank)
        assert layer.weight_hh_l0.rank == 3
    # the two ends share their pair
    assert isinstance(model.encoder, FactoredEmbedding)
    assert isinstance(model.decoder, FactoredLinear)
    assert model.decoder.weight.U is model.encoder.weight.U
    assert model.tied
    n_params = read_manifest(out).totals.n_params_after
    assert sum(p.numel() for p in model.parameters()) == n_params


def test_a_decoder_of_its_own_is_factored_alone(fixtures: Path, tmp_path: Path) -> None:
    path = fixtures / "torch" / "word_language_model.zip.pt"
    model = load_language_model(shrunk(path, tmp_path / "out", "softmax Wh"))
    assert isinstance(model.encoder, nn.Embedding)
    assert isinstance(model.decoder, FactoredLinear)
    assert (model.decoder.rank, model.tied) == (3, False)


def test_pairs_a_gate_stay_pairs_a_gate(fixtures: Path, tmp_path: Path) -> None:
    for name, targets in (("awd_gru.zip.pt", "Wh"), ("awd_qrnn.zip.pt", "Wi")):
        out = shrunk(fixtures / "torch" / name, tmp_path / name, targets, grouping="per-gate")
        first = load_language_model(out).rnns[0]
        weight = first.linear.weight if isinstance(first, QRNNLayer) else first.weight_hh_l0
        assert isinstance(weight, PerGate)
        assert [pair.rank for pair in weight.pairs()] == [3, 3, 3]


def test_its_repr_says_what_is_factored_at_which_rank(fixtures: Path, tmp_path: Path) -> None:
    path = fixtures / "torch" / "awd_lstm_bare.zip.pt"
    text = repr(load_language_model(shrunk(path, tmp_path / "a", "rnns.1.*hh* embedding")))
    lines = [line.strip() for line in text.splitlines()]
    assert lines[0].startswith("LanguageModel(lstm, 120 words, ")
    assert lines[1:-1] == [
        "encoder: 120 x 16 rank 3",
        "rnns.0: 16 -> 28, Wi dense, Wh dense",
        "rnns.1: 28 -> 28, Wi dense, Wh rank 3",
        "rnns.2: 28 -> 16, Wi dense, Wh dense",
        "decoder: 120 x 16 tied to the encoder, bias",
    ]
    gates = shrunk(path, tmp_path / "b", "Wh", size=Size(rank=2), grouping="per-gate")
    assert "Wh ranks 2+2+2+2" in repr(load_language_model(gates))
    qrnn = repr(load_language_model(fixtures / "torch" / "awd_qrnn.zip.pt"))
    assert "rnns.0: 16 -> 28, window 2, W dense" in qrnn


# -- dtypes, copies, training --------------------------------------------------------------------


def test_the_dtype_is_one_that_holds_all_weights(fixtures: Path, tmp_path: Path) -> None:
    path = fixtures / "torch" / "awd_lstm_bare.zip.pt"
    out = shrunk(path, tmp_path / "out", "Wh", dtype="float16")
    for dtype, want in ((None, torch.float32), (torch.float64, torch.float64)):
        model = load_language_model(out, dtype=dtype)
        assert {p.dtype for p in model.parameters()} == {want}
        assert model(words(model))[0].dtype == want
        assert model.tied
    halves = {n: v.detach().half() for n, v in stored(path).items()}
    torch.save(halves, tmp_path / "half.pt")
    model, full = load_language_model(tmp_path / "half.pt"), load_language_model(path)
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    tokens = words(model)
    assert difference(model(tokens)[0].float(), full(tokens)[0]) <= 0.01
    assert model.log_probs(tokens)[0].dtype == torch.float32


def test_copies_and_state_dicts_give_the_same(fixtures: Path, tmp_path: Path) -> None:
    out = shrunk(fixtures / "torch" / "awd_lstm_bare.zip.pt", tmp_path / "out", "Wh embedding")
    model = load_language_model(out)
    tokens = words(model)
    with torch.no_grad():
        want, _ = model(tokens)
        twin = copy.deepcopy(model)
        assert twin.tied
        for p in twin.parameters():
            p.mul_(0.5)
        assert difference(twin(tokens)[0], want) > 1e-3
        twin.load_state_dict(model.state_dict())
        assert difference(twin(tokens)[0], want) == 0
    assert {n for n in model.state_dict() if n.startswith("rnns.0.weight_hh")} == {
        "rnns.0.weight_hh_l0.U", "rnns.0.weight_hh_l0.V"
    }  # fmt: skip


def test_training_lowers_the_loss(fixtures: Path, tmp_path: Path) -> None:
    for name in ("awd_lstm_bare.zip.pt", "awd_gru.zip.pt", "awd_qrnn.zip.pt"):
        targets = "Wi embedding" if "qrnn" in name else "Wh embedding"
        model = load_language_model(shrunk(fixtures / "torch" / name, tmp_path / name, targets))
        model.train()
        text = words(model, 12)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        before, _ = model.score(text[:-1], text[1:])
        for _ in range(30):
            optimizer.zero_grad()
            log_probs, _ = model.log_probs(text[:-1])
            loss = nn.functional.nll_loss(log_probs.flatten(0, 1), text[1:].flatten())
            loss.backward()
            assert all(p.grad is not None for p in model.parameters())
            optimizer.step()
        after, _ = model.score(text[:-1], text[1:])
        assert float(after) < 0.9 * float(before)


# -- probabilities -------------------------------------------------------------------------------


@pytest.fixture
def model(fixtures: Path) -> LanguageModel:
    return load_language_model(fixtures / "torch" / "awd_lstm_bare.zip.pt")


def test_log_probs_are_the_full_softmax(model: LanguageModel) -> None:
    tokens = words(model)
    with torch.no_grad():
        got, state = model.log_probs(tokens)
        logits = model(tokens)[0] @ model.encoder.weight.T + model.decoder.bias
    assert got.shape == (9, 3, 120)
    assert difference(got.exp().sum(-1), torch.ones(9, 3)) <= 1e-5
    assert difference(got, torch.log(torch.softmax(logits.double(), -1)).float()) <= BOUND
    again, _ = model.log_probs(tokens, state)
    assert difference(again, got) > 1e-4


def test_the_score_is_the_sum_of_the_targets_log_probs(
    fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fixtures / "torch" / "awd_lstm_bare.zip.pt"
    for source in (path, shrunk(path, tmp_path / "out", "all")):
        model = load_language_model(source)
        text = words(model, 40)
        with torch.no_grad():
            log_probs, end = model.log_probs(text[:-1])
            want = -log_probs.gather(2, text[1:, :, None]).double().sum()
        for limit in (1, 4000, 1 << 25):
            monkeypatch.setattr(language_model, "_CHUNK_BYTES", limit)
            got, state = model.score(text[:-1], text[1:])
            assert got.dtype == torch.float64
            assert got.shape == ()
            assert not got.requires_grad
            assert float(got) == pytest.approx(float(want), rel=1e-6)
            for ours, theirs in zip(_tensors(state), _tensors(end), strict=True):
                assert difference(ours, theirs) <= 1e-6
        # in two calls, the state between them
        first, state = model.score(text[:20], text[1:21])
        second, _ = model.score(text[20:-1], text[21:], state)
        assert float(first + second) == pytest.approx(float(want), rel=1e-6)


def test_every_word_has_a_score_of_its_own(fixtures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, splits in (("awd_lstm_bare.zip.pt", None), ("awd_lstm.zip.pt", [60, 90])):
        model = load_language_model(fixtures / "torch" / name, splits=splits)
        text = words(model, 40)
        with torch.no_grad():
            log_probs, end = model.log_probs(text[:-1])
            want = -log_probs.gather(2, text[1:, :, None])[:, :, 0].double()
        for limit in (1, 4000, 1 << 25):
            monkeypatch.setattr(language_model, "_CHUNK_BYTES", limit)
            got, state = model.score_words(text[:-1], text[1:])
            assert got.dtype == torch.float64
            assert not got.requires_grad
            assert difference(got, want) <= 1e-5
            for ours, theirs in zip(_tensors(state), _tensors(end), strict=True):
                assert difference(ours, theirs) <= 1e-6
            assert float(model.score(text[:-1], text[1:])[0]) == float(got.sum())


def test_a_long_text_is_scored_in_bounded_memory(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 64_000
    monkeypatch.setattr(language_model, "_CHUNK_BYTES", limit)
    sizes: list[int] = []

    def decoded(hidden: Tensor, made: Callable[[Tensor], Tensor] = model._decoded) -> Tensor:
        logits = made(hidden)
        sizes.append(logits.nbytes)
        return logits

    monkeypatch.setattr(model, "_decoded", decoded)
    for layer in model.rnns:
        layer.register_forward_hook(lambda *a: sizes.append(4 * a[2][0].nbytes))
    text = words(model, 501, 2)
    model.score(text[:-1], text[1:])
    assert max(sizes) <= limit
    assert max(sizes) >= limit / 2, "parts are as large as they may be"
    assert sum(sizes) > 20 * limit


def test_a_text_without_a_word_scores_nothing(model: LanguageModel) -> None:
    empty = torch.zeros(0, 2, dtype=torch.int64)
    nll, state = model.score(empty, empty)
    assert float(nll) == 0
    assert model.score_words(empty, empty)[0].shape == (0, 2)
    assert len(state) == 3


def test_words_and_shapes_out_of_range_are_refused(model: LanguageModel) -> None:
    text = words(model)
    for wrong in (120, -1, -100):
        targets = text.clone()
        targets[3, 1] = wrong
        with pytest.raises(ValueError, match=f"{wrong} is no word"):
            model.score(text, targets)
        with pytest.raises(ValueError, match=f"{wrong} is no word"):
            model.score_words(text, targets)
    with pytest.raises(ValueError, match=r"\(T, B\)"):
        model.score(text, text[1:])
    with pytest.raises(ValueError, match=r"\(T, B\)"):
        model(text[:, 0])
    with pytest.raises(ValueError, match="2 states, and 3 layers"):
        model(text, model.initial_state(3)[:2])


# -- the split softmax of large vocabularies -----------------------------------------------------


def split_log_prob(
    hidden: Tensor, W: Tensor, b: Tensor, tails: Tensor, tail_bias: Tensor, splits: Sequence[int]
) -> Tensor:
    """Return log probabilities (V,) for one hidden vector, straight from the definition."""
    K, V = len(splits), len(W)
    head = torch.cat([W[: splits[0]], tails]) @ hidden + torch.cat([b[: splits[0]], tail_bias])
    p_head = torch.softmax(head.double(), 0)
    p = torch.zeros(V, dtype=torch.float64)
    p[: splits[0]] = p_head[: splits[0]]
    for k in range(1, K + 1):
        start, stop = splits[k - 1], splits[k] if k < K else V
        inside = torch.softmax((W[start:stop] @ hidden + b[start:stop]).double(), 0)
        # awd-lstm-lm reads the tombstone of cluster k at index -k
        p[start:stop] = p_head[len(p_head) - k] * inside
    return p.log()


@pytest.mark.parametrize("targets", ["", "Wh", "all"])
def test_a_split_softmax_gives_the_criterions_probabilities(
    fixtures: Path, tmp_path: Path, targets: str
) -> None:
    path = fixtures / "torch" / "awd_lstm.zip.pt"
    if targets:
        settings = Settings(allow_inflate=True)
        path = shrunk(path, tmp_path / "out", targets, settings, Size(rank=2))
    model = load_language_model(path, splits=[60, 90])
    dense = load_state_dict(path)
    text = words(model, 8, 2)
    with torch.no_grad():
        output, _ = model(text[:-1])
        got, _ = model.log_probs(text[:-1])
    parts = [dense[f"criterion.{name}"] for name in ("tail_vectors", "tail_bias")]
    want = torch.stack(
        [
            split_log_prob(h, dense["decoder.weight"], dense["decoder.bias"], *parts, [60, 90])
            for h in output.flatten(0, 1)
        ]
    )
    assert difference(got.flatten(0, 1).double(), want) <= BOUND
    nll, _ = model.score(text[:-1], text[1:])
    wanted = -want.gather(1, text[1:].flatten()[:, None]).sum()
    assert float(nll) == pytest.approx(float(wanted), rel=1e-6)
    assert model.generate([1, 2], 1, greedy=True) == [
        int(model.log_probs(torch.tensor([[1], [2]]))[0][-1, 0].argmax())
    ]
    assert "softmax: split at [60, 90]" in repr(model)


def test_a_split_softmax_without_splits_has_outputs_and_no_probabilities(fixtures: Path) -> None:
    model = load_language_model(fixtures / "torch" / "awd_lstm.zip.pt")
    text = words(model)
    assert model(text)[0].shape == (9, 3, 16)
    assert "split into 3, not known where" in repr(model)
    asked: list[Callable[[], Any]] = [
        lambda: model.log_probs(text),
        lambda: model.score(text, text),
        lambda: model.score_words(text, text),
        lambda: model.generate([1], 2),
    ]
    for ask in asked:
        with pytest.raises(LayoutError, match="does not say where") as caught:
            ask()
        assert "splits=[" in str(caught.value.hint)


@pytest.mark.parametrize("splits", [[60], [90, 60], [60, 60], [-1, 60], [10, 60, 90]])
def test_splits_that_cannot_be_are_refused(fixtures: Path, splits: list[int]) -> None:
    with pytest.raises(LayoutError, match="2 clusters"):
        load_language_model(fixtures / "torch" / "awd_lstm.zip.pt", splits=splits)


def test_splits_for_a_softmax_that_is_not_split_are_refused(fixtures: Path) -> None:
    with pytest.raises(LayoutError, match="no tail_vectors"):
        load_language_model(fixtures / "torch" / "awd_lstm_bare.zip.pt", splits=[60])


def test_a_large_vocabulary_is_split_as_the_training_script_splits_it(tmp_path: Path) -> None:
    assert (awd_splits(75_000), awd_splits(500_001)) == ((), (4200, 35_000, 180_000))
    V, E = 75_900, 2  # the last cluster begins beyond the last word
    torch.manual_seed(0)
    state = {"encoder.weight": torch.randn(V, E), "decoder.bias": torch.randn(V)}
    state["decoder.weight"] = state["encoder.weight"]
    lstm = nn.LSTM(E, E)
    for name, value in lstm.state_dict().items():
        state[f"rnns.0.module.{name}{'_raw' if name == 'weight_hh_l0' else ''}"] = value
    state |= {"criterion.tail_vectors": torch.randn(3, E), "criterion.tail_bias": torch.randn(3)}
    torch.save(state, tmp_path / "wt103.pt")
    model = load_language_model(tmp_path / "wt103.pt")
    assert model.split is not None
    assert model.split.splits == (2800, 20_000, 76_000)
    with torch.no_grad():
        log_probs, _ = model.log_probs(torch.tensor([[5], [70_000]]))
    # every word's share, but for the cluster that has none
    head = model.split._head(model(torch.tensor([[5], [70_000]]))[0][:, 0], model._logits_of, V)
    missing = head[:, -3].exp().detach()
    assert difference(log_probs.exp().sum(-1)[:, 0] + missing, torch.ones(2)) <= 1e-4


# -- generation ----------------------------------------------------------------------------------


def test_greedy_generation_takes_the_likeliest_word_each_time(model: LanguageModel) -> None:
    prompt = [3, 14, 15]
    made = model.generate(prompt, 6, greedy=True)
    assert len(made) == 6
    so_far = list(prompt)
    for word in made:
        with torch.no_grad():
            log_probs, _ = model.log_probs(torch.tensor(so_far)[:, None])
        assert word == int(log_probs[-1, 0].argmax())
        so_far.append(word)
    assert model.generate(prompt, 6, top_k=1) == made
    assert model.generate(prompt, 6, temperature=1e-4) == made
    assert model.generate(prompt, 0) == []


def test_a_seeded_generator_repeats_itself(model: LanguageModel) -> None:
    def drawn(seed: int) -> list[int]:
        return model.generate([1], 30, generator=torch.Generator().manual_seed(seed))

    before = torch.get_rng_state()
    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(5)
    free = model.generate([1], 30)
    torch.manual_seed(5)
    assert free == model.generate([1], 30)


def test_words_are_drawn_as_often_as_they_are_likely(model: LanguageModel) -> None:
    with torch.no_grad():
        log_probs, _ = model.log_probs(torch.tensor([[7]]))
    generator = torch.Generator().manual_seed(0)
    for temperature, top_k in ((1.0, None), (2.0, None), (0.5, 5)):
        scores = log_probs[0, 0] / temperature
        if top_k is not None:
            scores[scores < scores.topk(top_k).values[-1]] = -math.inf
        chances = scores.softmax(0)
        counts = torch.zeros(120)
        for _ in range(1500):
            made = model.generate([7], 1, temperature=temperature, top_k=top_k, generator=generator)
            counts[made[0]] += 1
        assert bool((counts[chances == 0] == 0).all())
        spread = (1500 * chances * (1 - chances)).sqrt()
        assert bool(((counts - 1500 * chances).abs() <= 5 * spread + 1).all())


@pytest.mark.parametrize(
    ("prompt", "n", "how"),
    [
        ([], 3, {}),
        ([1], -1, {}),
        ([1], 3, {"temperature": 0.0}),
        ([1], 3, {"top_k": 0}),
        ([120], 3, {}),
        ([-1], 3, {}),
    ],
)
def test_generation_refuses_what_makes_no_sense(
    model: LanguageModel, prompt: list[int], n: int, how: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"prompt|is to be|no word"):
        model.generate(prompt, n, **how)


# -- what is no language model -------------------------------------------------------------------


def _without(*ends: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {n: v for n, v in state.items() if not n.endswith(ends)}


def _with(**more: Tensor) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {**state, **{n.replace("__", "."): v for n, v in more.items()}}


CHANGES: list[tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = [
    (_without("decoder.weight", "decoder.bias"), r"has no decoder\.weight"),
    (_without("encoder.weight", "decoder.weight"), r"has no encoder\.weight"),
    (_without("rnns.1.module.weight_ih_l0"), "has no recurrent layer 1"),
    (lambda state: {n: v for n, v in state.items() if ".1." not in n}, "has no recurrent layer 1"),
    (
        _with(prior__weight=torch.zeros(5, 16), latent__0__weight=torch.zeros(80, 16)),
        r"no place for .*(prior|latent)",
    ),
    (lambda state: {n: v for n, v in state.items() if ".2." not in n}, "(120, 28) is wanted"),
    (_with(encoder__weight=torch.zeros(120, 17)), "takes 16 values, and the layer before has 17"),
    (_with(decoder__weight=torch.zeros(119, 16)), r"\(119, 16\), and \(120, 16\) is wanted"),
    (_with(encoder__weight=torch.zeros(120, 16, dtype=torch.int64)), "dtype torch.int64"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=[m for _, m in CHANGES])
def test_a_checkpoint_that_lacks_a_part_is_refused_by_its_name(
    fixtures: Path,
    tmp_path: Path,
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    message: str,
) -> None:
    state = {n: v.detach() for n, v in stored(fixtures / "torch" / "awd_lstm_bare.zip.pt").items()}
    torch.save(change(state), tmp_path / "m.pt")
    message = message.replace("(120, 28) ", r"\(120, 28\) ")
    with pytest.raises(LayoutError, match=message) as caught:
        load_language_model(tmp_path / "m.pt")
    assert str(caught.value).startswith(str(tmp_path / "m.pt"))
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_other_models_are_refused_in_one_line(fixtures: Path, tmp_path: Path) -> None:
    layer = {"attention.self.query.weight": torch.zeros(8, 8), "output.dense.bias": torch.zeros(8)}
    bert = {f"bert.encoder.layer.0.{n}": v for n, v in layer.items()}
    bert["bert.embeddings.word_embeddings.weight"] = torch.zeros(30, 8)
    save_file(bert, tmp_path / "bert.safetensors")
    torch.save(nn.RNN(4, 6).state_dict(), tmp_path / "rnn.pt")
    tagger = nn.ModuleDict(
        {"embed": nn.Embedding(30, 8), "lstm": nn.LSTM(8, 9), "tag": nn.Linear(9, 5)}
    )
    torch.save(tagger.state_dict(), tmp_path / "tagger.pt")
    wanted = {
        fixtures / "elmo" / "elmo.hdf5": "ELMo.* no decoder",
        tmp_path / "bert.safetensors": "no recurrent layer",
        tmp_path / "rnn.pt": "of kind rnn",
        tmp_path / "tagger.pt": "no decoder.weight, a layer from 9 values to 30 words",
        fixtures / "torch" / "gru_state.legacy.pt": "no encoder.weight",
        fixtures / "torch" / "lstm_state.zip.pt": "both ways",
        fixtures / "torch" / "lstm_cells.zip.pt": "no single stack",
    }
    for path, message in wanted.items():
        with pytest.raises(LayoutError, match=message) as caught:
            load_language_model(path)
        assert "\n" not in str(caught.value)
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(UnknownFormatError):
        load_language_model(tmp_path / "text.pt")
    with pytest.raises(CheckpointError):
        load_language_model(tmp_path / "absent.pt")


def test_a_compressed_elmo_is_refused_too(fixtures: Path, tmp_path: Path) -> None:
    out = shrunk(fixtures / "elmo" / "elmo.hdf5", tmp_path / "out")
    with pytest.raises(LayoutError, match=r"ELMo.* no decoder"):
        load_language_model(out)
