"""`attach` on models of every kind, beside the same model with what `restore` gives."""

import copy
import functools
import importlib
import io
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import dropout, embedding, linear

from ckptshrink.errors import CkptshrinkError, LayoutError
from ckptshrink.payload import Compute
from ckptshrink.planning.request import Request, Size, Target
from ckptshrink.rewrite import compress, restore
from ckptshrink.runtime.attaching import Attached, attach
from ckptshrink.runtime.gru import FactoredGRU
from ckptshrink.runtime.linear import FactoredEmbedding, FactoredLinear
from ckptshrink.runtime.lstm import FactoredLSTM
from ckptshrink.runtime.stand_ins import become
from ckptshrink.runtime.state import load_state_dict
from ckptshrink.runtime.weights import LowRank, PerGate

VOCABULARY = 40
TOKENS = torch.randint(VOCABULARY, (6, 3), generator=torch.Generator().manual_seed(1))


def shrunk(
    state: Mapping[str, Tensor], folder: Path, *, rank: int = 4, target: str = "all", **how: Any
) -> Path:
    """Compress a state dict; return the artefact's folder."""
    folder.mkdir(exist_ok=True)
    torch.save(dict(state), folder / "model.pt")
    request = Request((Target(target),), size=Size(rank=rank), **how)
    compress(folder / "model.pt", folder / "out", request, compute=Compute("cpu", 1))
    return folder / "out"


def restored(artefact: Path) -> dict[str, Tensor]:
    path, _ = restore(artefact, artefact.parent / "restored.pt")
    state: dict[str, Tensor] = torch.load(path, weights_only=True)
    return state


def names(rows: Any) -> list[str]:
    return [row.name for row in rows]


def ranks(attached: Attached) -> dict[str, tuple[str, int]]:
    return {row.name: (row.kind, row.rank) for row in attached.swapped}


def assert_same(model: nn.Module, dense: nn.Module, *inputs: Any) -> None:
    """Outputs agree to 1e-6 of their size, in inference and in training."""
    for mode in (False, True):
        model.train(mode)
        dense.train(mode)
        with torch.set_grad_enabled(mode):
            got, want = model(*inputs).detach(), dense(*inputs).detach()
        assert got.shape == want.shape
        assert float((got - want).norm()) <= 1e-6 * float(want.norm())


def checked(
    make: Callable[[], nn.Module], folder: Path, *inputs: Any, **how: Any
) -> tuple[nn.Module, Attached]:
    """Attach a fresh model to the artefact of another one; its outputs are the restored one's."""
    torch.manual_seed(0)
    artefact = shrunk(make().state_dict(), folder, **how)
    dense, model = make(), make()
    dense.load_state_dict(restored(artefact))
    attached = attach(model, artefact)
    assert attached.missing == attached.unexpected == ()
    fates = [*names(attached.swapped), *names(attached.multiplied_back), *attached.loaded]
    assert sorted(fates) == sorted(dense.state_dict())
    assert_same(model, dense, *inputs)
    return model, attached


# -- models ------------------------------------------------------------------------------------


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 10, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


class Tied(nn.Module):
    """word_language_model's, tied: the decoder's weight is the encoder's."""

    def __init__(self, rnn: type[nn.RNNBase] = nn.LSTM, **kwargs: Any) -> None:
        super().__init__()
        self.encoder = nn.Embedding(VOCABULARY, 12)
        self.rnn = rnn(12, 12, **kwargs)
        self.decoder = nn.Linear(12, VOCABULARY)
        self.decoder.weight = self.encoder.weight

    def forward(self, tokens: Tensor) -> Tensor:
        y, _ = self.rnn(self.encoder(tokens))
        logits: Tensor = self.decoder(y)
        return logits


class Recurrent(nn.Module):
    def __init__(self, rnn: type[nn.RNNBase] = nn.LSTM, **kwargs: Any) -> None:
        super().__init__()
        self.rnn = rnn(10, 14, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        self.rnn.flatten_parameters()
        y, last = self.rnn(x)
        return torch.cat([t.flatten() for t in (y, *(last if isinstance(last, tuple) else [last]))])


class Own(nn.Module):
    """A parameter and buffers of its own, a subclass of Linear, and a convolution."""

    class Scaled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    def __init__(self) -> None:
        super().__init__()
        self.bare = nn.Parameter(torch.randn(12, 12))
        self.scaled = self.Scaled(12, 12)
        self.plain = nn.Linear(12, 12)
        self.conv = nn.Conv1d(12, 12, 1)
        self.register_buffer("position_ids", torch.arange(12).expand(1, -1).clone())
        self.register_buffer("shift", torch.randn(12))

    def forward(self, x: Tensor) -> Tensor:
        shift: Any = self.shift
        y = self.plain(self.scaled(x @ self.bare)) + shift
        out: Tensor = self.conv(y.unsqueeze(-1)).squeeze(-1)
        return out


# -- kinds of layers ---------------------------------------------------------------------------


def test_linear_layers_are_swapped_and_buffers_loaded(tmp_path: Path) -> None:
    torch.manual_seed(3)
    trained = Stack()
    trained(torch.randn(64, 12))  # moves the running statistics
    artefact = shrunk(trained.state_dict(), tmp_path)
    dense, model = Stack(), Stack()
    dense.load_state_dict(restored(artefact))
    attached = attach(model, artefact)
    assert ranks(attached) == {f"layers.{k}.weight": ("FactoredLinear", 4) for k in (0, 3)}
    assert attached.multiplied_back == ()
    assert type(model.layers[0]) is type(model.layers[3]) is FactoredLinear
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, trained.get_buffer(name)), name
    assert int(model.layers[1].num_batches_tracked) == 1
    assert str(attached) == ("2 swapped, 0 multiplied back, 6 loaded, 0 missing, 0 unexpected")
    assert_same(model, dense, torch.randn(5, 12))


@pytest.mark.filterwarnings("ignore:LSTM with projections")  # torch says that it has no oneDNN
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 2, "bidirectional": True, "batch_first": True},
        {"num_layers": 2, "bias": False, "proj_size": 6},
    ],
    ids=["one layer", "bidirectional", "projection"],
)
def test_an_lstm_keeps_its_options(options: dict[str, Any], tmp_path: Path) -> None:
    model, attached = checked(lambda: Recurrent(**options), tmp_path, torch.randn(5, 3, 10), rank=3)
    rnn = model.get_submodule("rnn")
    assert type(rnn) is FactoredLSTM
    plain = nn.LSTM(10, 14, **options)
    for option in ("num_layers", "bidirectional", "batch_first", "bias", "proj_size", "dropout"):
        assert getattr(rnn, option) == getattr(plain, option)
    weights = [f"rnn.{n}" for n in plain.state_dict() if n.startswith("weight")]
    assert ranks(attached) == dict.fromkeys(weights, ("FactoredLSTM", 3))


def test_a_gru_and_dropout_between_layers_are_kept(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return Recurrent(nn.GRU, num_layers=2, bidirectional=True)

    model, attached = checked(make, tmp_path, torch.randn(5, 3, 10))
    assert type(model.get_submodule("rnn")) is FactoredGRU
    assert len(attached.swapped) == 8
    for kind in (nn.LSTM, nn.GRU):
        with_dropout = Recurrent(kind, num_layers=2, dropout=0.5)
        folder = tmp_path / kind.__name__
        attach(with_dropout, shrunk(with_dropout.state_dict(), folder))
        assert with_dropout.rnn.dropout == 0.5


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_pairs_of_each_gate_are_swapped_too(kind: type[nn.RNNBase], tmp_path: Path) -> None:
    model, attached = checked(
        lambda: Recurrent(kind), tmp_path, torch.randn(5, 3, 10), rank=2, grouping="per-gate"
    )
    rnn = model.get_submodule("rnn")
    assert isinstance(rnn.weight_hh_l0, PerGate)
    blocks = 4 if kind is nn.LSTM else 3
    assert {rank for _, rank in ranks(attached).values()} == {2 * blocks}


def test_only_layers_with_a_factored_weight_change(tmp_path: Path) -> None:
    model, attached = checked(Tied, tmp_path, TOKENS, target="Wh")
    assert [type(m) for m in (model.encoder, model.rnn, model.decoder)] == [
        nn.Embedding, FactoredLSTM, nn.Linear,
    ]  # fmt: skip
    assert names(attached.swapped) == ["rnn.weight_hh_l0"]
    rnn = model.get_submodule("rnn")
    assert isinstance(rnn.weight_hh_l0, LowRank)
    assert isinstance(rnn.weight_ih_l0, nn.Parameter)


def test_hugging_faces_conv1d_is_swapped_the_other_way_up(tmp_path: Path) -> None:
    class Conv1D(nn.Module):  # transformers.pytorch_utils.Conv1D
        def __init__(self, nf: int, nx: int) -> None:
            super().__init__()
            self.nf, self.nx = nf, nx
            self.weight = nn.Parameter(0.02 * torch.randn(nx, nf))
            self.bias = nn.Parameter(torch.randn(nf))

        def forward(self, x: Tensor) -> Tensor:
            y = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
            return y.view(*x.shape[:-1], self.nf)

    Conv1D.__module__ = "transformers.pytorch_utils"
    model, attached = checked(
        lambda: nn.Sequential(Conv1D(30, 12), nn.GELU(), Conv1D(12, 30)),
        tmp_path, torch.randn(2, 5, 12),
    )  # fmt: skip
    assert ranks(attached) == {f"{k}.weight": ("FactoredLinear", 4) for k in (0, 2)}
    first = model.get_submodule("0")
    assert (first.in_features, first.out_features) == (12, 30)


def test_a_language_model_of_hugging_face_is_swapped(tmp_path: Path) -> None:
    # by a module of it: a folder of that name, as among the fixtures, would be a package as well
    pytest.importorskip("transformers.modeling_utils")
    transformers = importlib.import_module("transformers")
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=8,
        attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lm = transformers.GPT2LMHeadModel(config)

        def forward(self, tokens: Tensor) -> Tensor:
            logits: Tensor = self.lm(tokens).logits
            return logits

    model, attached = checked(Logits, tmp_path, TOKENS.T)
    assert attached.multiplied_back == ()
    lm: Any = model.get_submodule("lm")
    assert lm.transformer.wte.weight is lm.lm_head.weight


# -- one weight in several places --------------------------------------------------------------


def test_tied_weights_become_one_pair(tmp_path: Path) -> None:
    model, attached = checked(Tied, tmp_path, TOKENS, rank=5)
    assert ranks(attached)["encoder.weight"] == ("FactoredEmbedding", 5)
    assert ranks(attached)["decoder.weight"] == ("FactoredLinear", 5)
    pair = model.encoder.weight
    assert isinstance(pair, LowRank)
    assert model.decoder.weight is pair
    again = copy.deepcopy(model)
    assert again.encoder.weight is again.decoder.weight
    with torch.no_grad():
        pair.U.zero_()
    assert torch.equal(model.decoder(torch.ones(12)), model.decoder.bias)


def test_a_tied_model_takes_a_checkpoint_with_one_of_the_names(tmp_path: Path) -> None:
    state = Tied().state_dict()
    del state["decoder.weight"]  # as safetensors leaves it out
    model = Tied()
    attached = attach(model, shrunk(state, tmp_path))
    assert attached.missing == ()
    assert model.encoder.weight is model.decoder.weight
    assert {"encoder.weight", "decoder.weight"} <= set(names(attached.swapped))


def test_equal_copies_in_the_checkpoint_do_for_a_tied_model(tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in Tied().state_dict().items()}
    model = Tied()
    attach(model, shrunk(state, tmp_path))
    assert model.encoder.weight is model.decoder.weight


def test_different_values_for_a_tied_weight_are_refused(tmp_path: Path) -> None:
    state = Tied().state_dict()
    state["decoder.weight"] = state["decoder.weight"] + 1
    artefact = shrunk(state, tmp_path)
    for strict in (True, False):
        with pytest.raises(LayoutError, match=r"decoder\.weight, tied to encoder\.weight"):
            attach(Tied(), artefact, strict=strict)


def test_a_model_that_is_not_tied_gets_pairs_of_its_own(tmp_path: Path) -> None:
    artefact = shrunk(Tied().state_dict(), tmp_path)
    model = Tied()
    model.decoder.weight = nn.Parameter(torch.zeros(VOCABULARY, 12))
    attach(model, artefact)
    assert isinstance(model.decoder.weight, LowRank)
    assert model.encoder.weight is not model.decoder.weight
    assert torch.equal(model.encoder.weight.U, model.decoder.weight.U)


def test_a_weight_tied_to_a_place_that_runs_dense_stays_one_dense_parameter(
    tmp_path: Path,
) -> None:
    class Bare(Tied):
        def __init__(self) -> None:
            super().__init__()
            self.table = self.encoder.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(tokens) + self.table.sum()

    model, attached = checked(Bare, tmp_path, TOKENS)
    assert model.encoder.weight is model.decoder.weight is model.table
    why = {row.name: row.why for row in attached.multiplied_back}
    assert why["table"] == "Bare runs dense weights only"
    assert why["encoder.weight"] == "is one parameter with table: Bare runs dense weights only"
    assert set(why) == {"table", "encoder.weight", "decoder.weight"}


def test_a_layer_known_by_two_names_and_in_a_plain_list_is_one_layer(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(12, 12)
            self.second = nn.ModuleList([self.first, nn.Tanh()])
            self.unregistered = [self.first]

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.unregistered[0](self.second[0](self.first(x)))
            return y

    model, attached = checked(Twice, tmp_path, torch.randn(3, 12))
    assert model.first is model.second[0] is model.unregistered[0]
    assert type(model.first) is FactoredLinear
    assert names(attached.swapped) == ["first.weight", "second.0.weight"]


def test_layers_of_one_lstm_weight_share_its_pair(tmp_path: Path) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.LSTM(10, 10), nn.LSTM(10, 10)
            self.down.weight_hh_l0 = self.up.weight_hh_l0

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.down(self.up(x)[0])[0]
            return y

    model, _ = checked(Shared, tmp_path, torch.randn(4, 2, 10))
    assert isinstance(model.up.weight_hh_l0, LowRank)
    assert model.up.weight_hh_l0 is model.down.weight_hh_l0
    assert model.up.weight_ih_l0 is not model.down.weight_ih_l0


@pytest.mark.parametrize(
    "make",
    [lambda: nn.Linear(12, 9), lambda: nn.Embedding(9, 12), lambda: nn.LSTM(12, 9)],
    ids=["linear", "embedding", "lstm"],
)
def test_the_model_itself_may_be_the_layer(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    artefact = shrunk(make().state_dict(), tmp_path)
    dense, model = make(), make()
    before = id(model)
    dense.load_state_dict(restored(artefact))
    attached = attach(model, artefact)
    assert id(model) == before
    assert type(model) in {FactoredLinear, FactoredEmbedding, FactoredLSTM}
    assert names(attached.swapped)
    x = torch.tensor([1, 3]) if isinstance(dense, nn.Embedding) else torch.randn(4, 2, 12)
    with torch.no_grad():
        got, want = model(x), dense(x)
    got, want = (y[0] if isinstance(y, tuple) else y for y in (got, want))
    assert float((got - want).norm()) <= 1e-6 * float(want.norm())


# -- what is multiplied back -------------------------------------------------------------------


def test_what_has_no_stand_in_is_multiplied_back_and_said(tmp_path: Path) -> None:
    model, attached = checked(Own, tmp_path, torch.randn(4, 12))
    assert {row.name: row.why for row in attached.multiplied_back} == {
        "bare": "Own runs dense weights only",
        "scaled.weight": "Scaled runs dense weights only",
    }
    assert names(attached.swapped) == ["plain.weight"]
    assert "position_ids" in attached.loaded
    assert torch.equal(model.get_buffer("position_ids"), torch.arange(12)[None])


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTMCell, nn.EmbeddingBag])
def test_other_layers_of_torch_are_multiplied_back(kind: type[nn.Module], tmp_path: Path) -> None:
    make: Any = kind
    model = nn.ModuleDict({"part": make(10, 14)})
    artefact = shrunk(model.state_dict(), tmp_path)
    other = nn.ModuleDict({"part": make(10, 14)})
    attached = attach(other, artefact)
    assert type(other["part"]) is kind
    assert attached.swapped == ()
    back = restored(artefact)
    assert {row.why for row in attached.multiplied_back} == {
        f"{kind.__name__} runs dense weights only"
    }
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, back[name])


def test_an_encoder_of_transformer_layers_runs_with_factors(tmp_path: Path) -> None:
    """torch's layer reads the weights of its linear ones itself, for a kernel of its own."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
            self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layers(x)
            return y

    _, attached = checked(Encoder, tmp_path, torch.randn(2, 5, 16))
    assert len(attached.swapped) == 4
    assert all("linear" in name for name in names(attached.swapped))
    assert {row.why.split()[0] for row in attached.multiplied_back} == {
        "MultiheadAttention", "NonDynamicallyQuantizableLinear",
    }  # fmt: skip


@pytest.mark.parametrize("option", ["max_norm", "scale_grad_by_freq", "sparse"])
def test_an_embedding_of_dense_rows_stays_dense(option: str, tmp_path: Path) -> None:
    value: Any = 2.0 if option == "max_norm" else True

    def make() -> nn.Module:
        return nn.ModuleDict({"encoder": nn.Embedding(30, 12, **{option: value})})

    model = make()
    attached = attach(model, shrunk(make().state_dict(), tmp_path))
    assert type(model.get_submodule("encoder")) is nn.Embedding
    (row,) = attached.multiplied_back
    assert option in row.why


def test_pruned_weights_run_dense(tmp_path: Path) -> None:
    model, attached = checked(Tied, tmp_path, TOKENS, method="prune")
    assert attached.swapped == ()
    assert {row.why for row in attached.multiplied_back} == {"is pruned, and runs dense"}
    assert type(model.rnn) is nn.LSTM


def test_layers_whose_code_was_changed_stay_dense(tmp_path: Path) -> None:
    def make() -> nn.Module:
        model = Tied()
        model.rnn.register_parameter("scale", nn.Parameter(torch.ones(1)))
        forward = model.decoder.forward
        model.decoder.forward = lambda x: 3 * forward(x)  # type: ignore[method-assign]
        return model

    _, attached = checked(make, tmp_path, TOKENS)
    why = {row.name: row.why for row in attached.multiplied_back}
    assert why["rnn.weight_hh_l0"] == "LSTM has other parameters than its class makes"
    assert why["decoder.weight"] == "Linear has had its forward replaced"
    assert attached.swapped == ()


# -- weight drop -------------------------------------------------------------------------------


class WeightDrop(nn.Module):
    """awd-lstm-lm's, and with `outside` fastai's, which keeps the raw weight by itself."""

    def __init__(self, module: nn.Module, *, outside: bool) -> None:
        super().__init__()
        self.module = module
        weight = module.weight_hh_l0
        del module._parameters["weight_hh_l0"]
        self.holder = [self if outside else module]
        self.holder[0].register_parameter("weight_hh_l0_raw", nn.Parameter(weight.data))

    def forward(self, *args: Any) -> Any:
        raw = self.holder[0].weight_hh_l0_raw
        self.module.weight_hh_l0 = dropout(raw, 0.0, self.training) * 1.0
        return self.module(*args)


class AWD(nn.Module):
    """awd-lstm-lm's model, whose code looks the encoder's weight up by itself."""

    def __init__(
        self,
        outside: bool = False,
        vocabulary: int = 120,
        sizes: Sequence[tuple[int, int]] = ((16, 28), (28, 28), (28, 16)),
    ) -> None:
        super().__init__()
        self.encoder = nn.Embedding(vocabulary, sizes[0][0])
        self.rnns = nn.ModuleList(WeightDrop(nn.LSTM(*s), outside=outside) for s in sizes)
        self.decoder = nn.Linear(sizes[-1][1], vocabulary)
        self.decoder.weight = self.encoder.weight

    def forward(self, tokens: Tensor) -> Tensor:
        e = self.encoder
        y = embedding(tokens, e.weight, -1, e.max_norm, e.norm_type, e.scale_grad_by_freq, e.sparse)
        for rnn in self.rnns:
            y, _ = rnn(y)
        return linear(y, self.decoder.weight, self.decoder.bias)


@pytest.mark.parametrize("outside", [False, True], ids=["awd-lstm", "fastai"])
def test_a_weight_under_weight_drop_is_multiplied_back(outside: bool, tmp_path: Path) -> None:
    model, attached = checked(lambda: AWD(outside), tmp_path, TOKENS)
    why = {row.name: row.why for row in attached.multiplied_back}
    raw = "rnns.0.weight_hh_l0_raw" if outside else "rnns.0.module.weight_hh_l0_raw"
    assert why["rnns.0.module.weight_ih_l0"] == (
        "LSTM is given weight_hh_l0_raw anew before every forward"
    )
    assert raw in why
    assert len(why) == 6
    assert names(attached.swapped) == ["encoder.weight", "decoder.weight"]
    assert type(model.rnns[0].module) is nn.LSTM


@pytest.mark.parametrize("name", ["awd_lstm_masked.legacy.pt", "awd_lstm_evaluated.zip.pt"])
def test_a_pickled_awd_lstm_is_attached_to_code_of_the_same_names(
    name: str, tmp_path: Path, fixtures: Path
) -> None:
    """It holds ``weight_hh_l0`` too, masked or the same, and torch's list of flat weights."""
    request = Request((Target("all"),), size=Size(rank=4))
    compress(fixtures / "torch" / name, tmp_path / "out", request, compute=Compute("cpu", 1))
    model = AWD()
    attached = attach(model, tmp_path / "out")
    assert attached.missing == attached.unexpected == ()
    assert names(attached.swapped) == ["encoder.weight", "decoder.weight"]
    dense = AWD()
    back = load_state_dict(tmp_path / "out")
    dense.load_state_dict({name: back[name] for name in dense.state_dict()})
    assert_same(model, dense, TOKENS)


def test_a_criterion_beside_the_model_is_unexpected(tmp_path: Path, fixtures: Path) -> None:
    source = fixtures / "torch" / "awd_lstm.zip.pt"
    with pytest.raises(LayoutError, match=r"2 unexpected \(criterion\.tail_vectors, criterion"):
        attach(AWD(), source)
    assert attach(AWD(), source, strict=False).unexpected == (
        "criterion.tail_vectors", "criterion.tail_bias",
    )  # fmt: skip


def test_the_authentic_awd_lstm_is_attached_to_its_own_code(
    tmp_path: Path, shared_data: Path
) -> None:
    source = shared_data / "awd_lstm" / "whole_module_torch1.2.pt"
    shapes = {name: tensor.shape for name, tensor in load_state_dict(source).items()}
    sizes = [
        (shapes[f"rnns.{k}.module.weight_ih_l0"][1], shapes[f"rnns.{k}.module.weight_hh_l0_raw"][1])
        for k in range(sum(name.endswith("_raw") for name in shapes))
    ]
    make = functools.partial(AWD, vocabulary=shapes["encoder.weight"][0], sizes=sizes)
    compress(source, tmp_path / "out", Request((Target("all"),), size=Size(rank=4)))
    model, dense = make(), make()
    attach(model, tmp_path / "out", strict=False)
    back = load_state_dict(tmp_path / "out")
    dense.load_state_dict({name: back[name] for name in dense.state_dict()})
    assert_same(model, dense, TOKENS)


# -- what is kept of the model -----------------------------------------------------------------


def test_a_dense_checkpoint_only_gives_its_values(tmp_path: Path) -> None:
    source = Own()
    torch.save(source.state_dict(), tmp_path / "model.pt")
    model = Own()
    attached = attach(model, tmp_path / "model.pt")
    assert attached.swapped == attached.multiplied_back == ()
    assert set(attached.loaded) == set(source.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name])
    assert type(model.plain) is nn.Linear


def test_values_go_into_the_parameters_that_are_there(tmp_path: Path) -> None:
    artefact = shrunk(Tied().state_dict(), tmp_path, target="Wh")
    model = Tied()
    before = dict(model.named_parameters())
    attach(model, artefact)
    after = dict(model.named_parameters())
    kept = set(before) & set(after)
    assert kept == set(before) - {"rnn.weight_hh_l0"}
    assert all(after[name] is before[name] for name in kept)


def test_dtype_device_gradients_mode_and_hooks_are_the_models(tmp_path: Path) -> None:
    artefact = shrunk(Tied().state_dict(), tmp_path, dtype="float16")
    model = Tied().to(torch.float64).eval()
    model.encoder.requires_grad_(False)
    model.rnn.train()
    seen: list[str] = []
    model.decoder.register_forward_hook(lambda *_: seen.append("after"))
    model.decoder.register_forward_pre_hook(lambda *_: seen.append("before"))
    attach(model, artefact)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert {n: p.requires_grad for n, p in model.encoder.named_parameters()} == {
        "weight.U": False, "weight.V": False,
    }  # fmt: skip
    assert all(p.requires_grad for p in model.rnn.parameters())
    assert {m.training for m in model.rnn.modules()} == {True}
    assert {m.training for m in model.decoder.modules()} == {False}
    model(TOKENS)
    assert seen == ["before", "after"]
    half = Tied().to(torch.bfloat16)
    attach(half, artefact)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_an_embeddings_padding_goes_on_giving_no_gradient(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Embedding(VOCABULARY, 12, padding_idx=3))

    model, _ = checked(make, tmp_path, TOKENS)
    layer = model.get_submodule("0")
    assert isinstance(layer, FactoredEmbedding)
    assert layer.padding_idx == 3
    layer(torch.tensor([3, 3])).sum().backward()
    assert not any(p.grad.any() for p in layer.parameters() if p.grad is not None)


def test_half_precision_factors_give_what_restore_gives(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return Recurrent(num_layers=2)

    torch.manual_seed(0)
    artefact = shrunk(make().state_dict(), tmp_path, dtype="float16")
    model, dense = make(), make()
    dense.load_state_dict(restored(artefact))
    attach(model, artefact)
    assert_same(model, dense, torch.randn(5, 3, 10))


def test_an_attached_model_trains_saves_and_copies(tmp_path: Path) -> None:
    artefact = shrunk(Tied().state_dict(), tmp_path)
    model = Tied()
    attach(model, artefact)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(TOKENS[:-1]).flatten(0, 1), TOKENS[1:].flatten())
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = Tied()
    attach(other, artefact)
    other.load_state_dict(torch.load(file, weights_only=True))
    for same in (other, copy.deepcopy(model)):
        with torch.no_grad():
            assert torch.allclose(same(TOKENS), model(TOKENS), rtol=1e-6, atol=0)


def test_an_attached_model_compiles_to_one_graph(tmp_path: Path) -> None:
    class ReadsWeights(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Embedding(VOCABULARY, 12)
            self.middle = nn.Linear(12, 12)

        def forward(self, tokens: Tensor) -> Tensor:
            return linear(self.middle(self.encoder(tokens)), self.encoder.weight)

    cases: list[tuple[nn.Module, Tensor]] = [(Stack(), torch.randn(5, 12))]
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 6):
        # the compiler of 2.4 takes no module as an argument, and goes on in a second graph
        cases.append((ReadsWeights(), TOKENS))
    for k, (model, x) in enumerate(cases):
        model.eval()
        attach(model, shrunk(model.state_dict(), tmp_path / str(k)))
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert torch.equal(compiled(x), model(x))


def test_becoming_another_layer_leaves_nothing_of_the_old_one() -> None:
    layer, other = nn.LSTM(4, 5), nn.Linear(3, 2)
    layer.register_buffer("extra", torch.ones(1))
    layer.eval()
    become(layer, other)
    assert type(layer) is nn.Linear
    assert set(vars(layer)) == set(vars(other))
    assert not layer.training
    assert torch.equal(layer(torch.ones(1, 3)), other(torch.ones(1, 3)))


# -- names and shapes that don't fit -----------------------------------------------------------


def snapshot(model: nn.Module) -> dict[str, Any]:
    parts: dict[str, Any] = {name: (id(m), type(m)) for name, m in model.named_modules()}
    for name, tensor in model.state_dict(keep_vars=True).items():
        parts[f"tensor {name}"] = (id(tensor), tensor.detach().clone().numpy().tobytes())
    return parts


@pytest.fixture
def tied_artefact(tmp_path: Path) -> Path:
    return shrunk(Tied().state_dict(), tmp_path)


def test_everything_that_does_not_fit_is_one_error(tied_artefact: Path) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Embedding(VOCABULARY + 1, 12)
            self.rnn = nn.LSTM(12, 12, num_layers=2)
            self.head = nn.Linear(12, 5)

    model = Other()
    before = snapshot(model)
    with pytest.raises(LayoutError) as caught:
        attach(model, tied_artefact)
    assert caught.value.path == str(tied_artefact)
    assert str(caught.value).partition(": ")[2] == (
        "does not fit the model: 1 of another shape or value (encoder.weight (40, 12) and in the "
        "model (41, 12)); 6 missing (rnn.weight_ih_l1, rnn.weight_hh_l1, rnn.bias_ih_l1, ...); "
        "1 unexpected (decoder.bias)"
    )
    assert "strict=False" in str(caught.value.hint)
    assert snapshot(model) == before
    # lenient about names, never about shapes
    with pytest.raises(LayoutError, match="1 of another shape") as caught:
        attach(model, tied_artefact, strict=False)
    assert "missing" not in str(caught.value)
    assert snapshot(model) == before


def test_without_strict_what_fits_is_loaded_and_the_rest_kept(tied_artefact: Path) -> None:
    class Other(Tied):
        def __init__(self) -> None:
            super().__init__(num_layers=2)
            self.decoder = nn.Linear(12, VOCABULARY, bias=False)

    model = Other()
    own = model.rnn.weight_hh_l1.detach().clone()
    attached = attach(model, tied_artefact, strict=False)
    assert attached.unexpected == ("decoder.bias",)
    assert attached.missing == tuple(
        f"rnn.{kind}_{side}_l1" for kind in ("weight", "bias") for side in ("ih", "hh")
    )
    assert type(model.rnn) is FactoredLSTM
    assert torch.equal(model.rnn.weight_hh_l1, own)
    assert model(TOKENS).shape == (6, 3, VOCABULARY)


def test_names_behind_a_prefix_are_found_and_proposed(tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in Tied().state_dict().items()}
    state["step.weight"] = torch.ones(3)
    artefact = shrunk(state, tmp_path)
    for strict in (True, False):
        with pytest.raises(LayoutError) as caught:
            attach(Tied(), artefact, strict=strict)
        assert "attach(model, path, prefix='module.')" in str(caught.value.hint)
    attached = attach(Tied(), artefact, prefix="module.")
    assert attached.missing == attached.unexpected == ()
    assert "rnn.weight_hh_l0" in names(attached.swapped)
    with pytest.raises(LayoutError) as caught:
        attach(Tied(), artefact, prefix="modul.")
    assert "prefix='module.'" in str(caught.value.hint)


def test_a_part_of_the_model_is_proposed_where_its_names_fit(tied_artefact: Path) -> None:
    model = nn.ModuleDict({"backbone": nn.ModuleList([Tied()])})
    with pytest.raises(LayoutError) as caught:
        attach(model, tied_artefact)
    assert "attach(model.get_submodule('backbone.0'), path)" in str(caught.value.hint)
    attached = attach(model.get_submodule("backbone.0"), tied_artefact)
    assert attached.missing == ()


def test_part_of_a_checkpoint_is_taken_by_its_prefix(tied_artefact: Path) -> None:
    rnn = nn.LSTM(12, 12)
    attached = attach(rnn, tied_artefact, prefix="rnn.")
    assert names(attached.swapped) == ["weight_ih_l0", "weight_hh_l0"]
    assert type(rnn) is FactoredLSTM


def test_a_checkpoint_of_which_nothing_fits_is_always_an_error(tied_artefact: Path) -> None:
    model = nn.ModuleDict({"other": nn.Linear(3, 2)})
    with pytest.raises(LayoutError, match=r"2 missing .* 7 unexpected"):
        attach(model, tied_artefact, strict=False)
    with pytest.raises(LayoutError, match="no tensor of the model's"):
        attach(nn.Module(), tied_artefact, prefix="x.")


def test_a_batch_norm_older_than_its_counter_is_complete(tmp_path: Path) -> None:
    state = Stack().state_dict()
    del state["layers.1.num_batches_tracked"]
    model = Stack()
    attached = attach(model, shrunk(state, tmp_path))
    assert attached.missing == ()
    assert int(model.layers[1].num_batches_tracked) == 0


@pytest.mark.parametrize("damage", ["a missing file", "a shorter file"])
def test_a_file_that_cannot_be_read_leaves_the_model_as_it_was(
    damage: str, tied_artefact: Path
) -> None:
    tensors = tied_artefact / "model.safetensors"
    if damage == "a missing file":
        tensors.unlink()
    else:
        tensors.write_bytes(tensors.read_bytes()[:-100])
    model = Tied()
    before = snapshot(model)
    with pytest.raises(CkptshrinkError):
        attach(model, tied_artefact)
    assert snapshot(model) == before


def test_values_that_would_be_cut_to_integers_are_refused(tmp_path: Path) -> None:
    state = Own().state_dict()
    state["position_ids"] = state["position_ids"].float()
    model = Own()
    before = snapshot(model)
    with pytest.raises(LayoutError, match=r"position_ids \["):
        attach(model, shrunk(state, tmp_path))
    assert snapshot(model) == before


def test_models_that_cannot_be_loaded_are_refused_with_the_next_step(tied_artefact: Path) -> None:
    with torch.device("meta"):
        empty = Tied()
    with pytest.raises(LayoutError, match="meta device") as caught:
        attach(empty, tied_artefact)
    assert "to_empty" in str(caught.value.hint)
    lazy = nn.ModuleDict({"encoder": nn.LazyLinear(3)})
    with pytest.raises(LayoutError, match="no shape yet"):
        attach(lazy, tied_artefact)
    model = Tied()
    attach(model, tied_artefact)
    with pytest.raises(LayoutError, match="factored layers already"):
        attach(model, tied_artefact)


# -- any stack of layers -----------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(["linear", "lstm", "gru", "norm"]), min_size=1, max_size=4),
    widths=st.lists(st.integers(2, 9), min_size=5, max_size=5),
    rank=st.integers(1, 9),
    grouping=st.sampled_from(["stacked", "per-gate"]),
    seed=st.integers(0, 99),
)
def test_any_stack_of_layers_gives_the_restored_models_outputs(
    kinds: list[str], widths: list[int], rank: int, grouping: str, seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    class First(nn.Module):
        def __init__(self, rnn: nn.Module) -> None:
            super().__init__()
            self.rnn = rnn

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.rnn(x)[0]
            return y

    def make() -> nn.Module:
        parts: list[nn.Module] = []
        n = widths[0]
        for kind, width in zip(kinds, widths[1:], strict=False):
            made: dict[str, Callable[[], nn.Module]] = {
                "linear": lambda n=n, m=width: nn.Linear(n, m),
                "lstm": lambda n=n, m=width: First(nn.LSTM(n, m)),
                "gru": lambda n=n, m=width: First(nn.GRU(n, m)),
                "norm": lambda n=n: nn.LayerNorm(n),
            }
            parts.append(made[kind]())
            n = n if kind == "norm" else width
        return nn.Sequential(*parts)

    torch.manual_seed(seed)
    folder = tmp_path_factory.mktemp("stack")
    model, dense = make(), make()
    state = make().state_dict()
    if not any(tensor.ndim == 2 for tensor in state.values()):
        return
    artefact = shrunk(state, folder, rank=rank, grouping=grouping)
    dense.load_state_dict(restored(artefact))
    attach(model, artefact)
    x = torch.randn(4, 3, widths[0])
    with torch.no_grad():
        got, want = model(x), dense(x)
    assert float((got - want).norm()) <= 3e-6 * float(want.norm())
    shutil.rmtree(folder)
