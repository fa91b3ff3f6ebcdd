"""FactoredLinear and FactoredEmbedding beside the torch layers that they stand for."""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ckptshrink.errors import LayoutError, NonFiniteError, RankError
from ckptshrink.runtime.linear import FactoredEmbedding, FactoredLinear
from ckptshrink.runtime.weights import LowRank, PerGate

Layer = FactoredLinear | FactoredEmbedding


def linear(n: int = 7, m: int = 5, r: int = 3, **kwargs: object) -> FactoredLinear:
    torch.manual_seed(0)
    return FactoredLinear.from_linear(nn.Linear(n, m, dtype=torch.float64, **kwargs), r)  # type: ignore[arg-type]


def embedding(n: int = 9, d: int = 5, r: int = 3, **kwargs: object) -> FactoredEmbedding:
    torch.manual_seed(0)
    made = nn.Embedding(n, d, dtype=torch.float64, **kwargs)  # type: ignore[arg-type]
    return FactoredEmbedding.from_embedding(made, r)


MADE: dict[str, tuple[Callable[[], Layer], Tensor]] = {
    "linear": (linear, torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(5)).double()),
    "linear without bias": (lambda: linear(bias=False), torch.ones(4, 7, dtype=torch.float64)),
    "embedding": (embedding, torch.tensor([[0, 8, 3], [3, 1, 1]])),
    "embedding with padding": (lambda: embedding(padding_idx=3), torch.tensor([3, 1, 3])),
}
each_layer = pytest.mark.parametrize(("make", "x"), MADE.values(), ids=list(MADE))


def close(a: Tensor, b: Tensor, bound: float = 1e-12) -> bool:
    a, b = a.detach(), b.detach()
    return a.shape == b.shape and float((a - b).norm()) <= bound * max(float(b.norm()), 1e-300)


# -- outputs -----------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    n=st.integers(1, 8),
    m=st.integers(1, 8),
    leading=st.lists(st.integers(0, 3), max_size=3),
    biased=st.booleans(),
    data=st.data(),
)
def test_a_linear_layer_is_its_multiplied_back_one_for_any_leading_shape(
    n: int, m: int, leading: list[int], biased: bool, data: st.DataObject
) -> None:
    layer = linear(n, m, data.draw(st.integers(1, min(m, n))), bias=biased)
    x = torch.randn(*leading, n, dtype=torch.float64)
    dense = layer.dense()
    assert isinstance(dense, nn.Linear)
    assert (dense.in_features, dense.out_features) == (n, m)
    got = layer(x)
    assert tuple(got.shape) == (*leading, m)
    assert close(got, dense(x), 1e-11)


@settings(deadline=None)
@given(
    n=st.integers(1, 8),
    d=st.integers(1, 8),
    shape=st.lists(st.integers(0, 3), max_size=3),
    padded=st.booleans(),
    data=st.data(),
)
def test_an_embedding_is_its_multiplied_back_one_for_tokens_of_any_shape(
    n: int, d: int, shape: list[int], padded: bool, data: st.DataObject
) -> None:
    rank = data.draw(st.integers(1, min(n, d)))
    layer = embedding(n, d, rank, padding_idx=n - 1 if padded else None)
    tokens = torch.randint(n, shape)
    dense = layer.dense()
    assert dense.padding_idx == layer.padding_idx == (n - 1 if padded else None)
    assert tuple(layer(tokens).shape) == (*shape, d)
    assert close(layer(tokens), dense(tokens), 1e-11)
    assert torch.equal(layer(tokens.int()), layer(tokens))


def test_at_full_rank_a_layer_is_the_one_it_was_made_of() -> None:
    for source in (nn.Linear(6, 4), nn.Embedding(4, 6)):
        made: Layer
        if isinstance(source, nn.Linear):
            made, x = FactoredLinear.from_linear(source, 4), torch.randn(3, 6)
        else:
            made, x = FactoredEmbedding.from_embedding(source, 4), torch.tensor([0, 3])
        assert made.rank == 4
        assert close(made(x), source(x), 1e-5)
        assert close(made.dense().weight, source.weight, 1e-5)


def test_a_rank_below_is_the_best_approximation_of_that_rank() -> None:
    source = nn.Linear(12, 9)
    S = torch.linalg.svdvals(source.weight.detach().double())
    made = FactoredLinear.from_linear(source, 4)
    error = float((made.dense().weight - source.weight).detach().norm())
    assert error == pytest.approx(float(S[4:].square().sum().sqrt()), rel=1e-4)
    assert sum(p.numel() for p in made.parameters()) == 4 * (12 + 9) + 9


def test_a_weight_of_a_pair_a_gate_is_a_linear_layer_too() -> None:
    weight = PerGate({gate: LowRank(torch.randn(2, 1), torch.randn(1, 5)) for gate in "zfo"})
    layer = FactoredLinear(weight, torch.randn(6))
    x = torch.randn(3, 5)
    assert layer.rank == 3
    assert close(layer(x), layer.dense()(x), 1e-5)
    assert "weight.z.U" in layer.state_dict()


# -- what is kept ------------------------------------------------------------------------------


def test_settings_of_the_layer_go_there_and_back() -> None:
    source = nn.Linear(6, 4).to(torch.bfloat16).eval()
    source.weight.requires_grad_(False)
    made = FactoredLinear.from_linear(source, 2)
    assert not made.training
    assert made.bias is source.bias
    assert [p.requires_grad for p in made.weight.parameters()] == [False, False]
    assert {p.dtype for p in made.parameters()} == {torch.bfloat16}
    back = made.dense()
    assert back.weight.dtype == torch.bfloat16
    assert (back.weight.requires_grad, back.bias.requires_grad) == (False, True)
    assert back.bias is not source.bias
    assert not back.training
    words = nn.Embedding(6, 4, padding_idx=-2).eval()
    assert words.padding_idx == 4
    pairs = FactoredEmbedding.from_embedding(words, 2)
    assert pairs.padding_idx == 4
    assert (pairs.num_embeddings, pairs.embedding_dim) == (6, 4)
    assert not pairs.training
    assert not pairs.dense().training
    assert FactoredEmbedding(pairs.weight, -2).padding_idx == 4


def test_making_a_layer_dense_draws_no_random_numbers() -> None:
    layers = (linear(), embedding())
    before = torch.random.get_rng_state()
    for layer in layers:
        layer.dense()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_padding_row_of_zeros_stays_zero_and_does_not_learn() -> None:
    wide = FactoredEmbedding.from_embedding(nn.Embedding(4, 9, padding_idx=2), 4)
    # at full rank a singular value is zero, and its vector is the padding's own
    assert torch.equal(wide.weight.U[2].detach(), torch.zeros(4))
    layer = FactoredEmbedding.from_embedding(nn.Embedding(8, 5, padding_idx=2), 4)
    tokens = torch.tensor([2, 0, 2, 7])
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        layer(tokens).square().sum().backward()
        optimizer.step()
    assert torch.equal(layer(torch.tensor([2])).detach(), torch.zeros(1, 5))
    assert layer(torch.tensor([1])).abs().max() > 0


@pytest.mark.parametrize("option", ["max_norm", "scale_grad_by_freq", "sparse"])
def test_an_embedding_that_works_on_dense_rows_is_refused_by_name(option: str) -> None:
    source = nn.Embedding(8, 5, **{option: 1.5 if option == "max_norm" else True})  # type: ignore[arg-type]
    with pytest.raises(LayoutError, match=option):
        FactoredEmbedding.from_embedding(source, 2)
    # what such code reads off the layer says that it has none of these options
    layer = embedding()
    assert getattr(layer, option) == getattr(nn.Embedding(1, 1), option)


@pytest.mark.parametrize("rank", [0, -1, 6])
def test_a_rank_out_of_range_is_refused(rank: int) -> None:
    with pytest.raises(RankError):
        FactoredLinear.from_linear(nn.Linear(5, 7), rank)
    with pytest.raises(RankError):
        FactoredEmbedding.from_embedding(nn.Embedding(7, 5), rank)


def test_weights_that_are_not_finite_and_padding_that_is_no_row_are_refused() -> None:
    source = nn.Linear(5, 7)
    with torch.no_grad():
        source.weight[2, 3] = torch.nan
    with pytest.raises(NonFiniteError):
        FactoredLinear.from_linear(source, 2)
    for index in (9, -10):
        with pytest.raises(LayoutError, match=f"padding_idx {index}"):
            FactoredEmbedding(embedding().weight, index)


# -- as any module of torch --------------------------------------------------------------------


def test_gradients_are_those_of_finite_differences() -> None:
    for layer, x in ((linear(), torch.randn(2, 7).double()), (embedding(), torch.tensor([[0, 8]]))):
        names = [name for name, _ in layer.named_parameters()]
        learns = x.is_floating_point()

        def outputs(
            x: Tensor, *values: Tensor, layer: Layer = layer, names: list[str] = names
        ) -> Tensor:
            named = dict(zip(names, values, strict=True))
            y: Tensor = torch.func.functional_call(layer, named, (x,))
            return y

        values = [p.detach().clone().requires_grad_() for p in layer.parameters()]
        assert torch.autograd.gradcheck(outputs, (x.requires_grad_(learns), *values))


@each_layer
def test_the_whole_layer_compiles_to_one_graph(make: Callable[[], Layer], x: Tensor) -> None:
    layer = make()
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    for inputs in (x, x[:1], torch.cat([x, x])):
        assert torch.equal(compiled(inputs), layer(inputs))
    with torch.no_grad():
        assert torch.equal(compiled(x), layer(x))
    got = [
        torch.autograd.grad(f(x).square().sum(), [*layer.parameters()]) for f in (compiled, layer)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*got, strict=True))


@each_layer
def test_copies_pickles_and_state_dicts_give_the_same_layer(
    make: Callable[[], Layer], x: Tensor
) -> None:
    layer = make()
    copied, pickled = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))
    other = make()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    for same in (copied, pickled, other):
        assert torch.equal(same(x), layer(x))
        assert list(same.state_dict()) == list(layer.state_dict())
        assert not {id(p) for p in same.parameters()} & {id(p) for p in layer.parameters()}
        assert str(same) == str(layer)
    want = {"weight.U", "weight.V"} | (
        {"bias"} if getattr(layer, "bias", None) is not None else set()
    )
    assert set(layer.state_dict()) == want


@each_layer
def test_a_layer_moves_to_other_dtypes_and_devices(make: Callable[[], Layer], x: Tensor) -> None:
    layer = make()
    want = layer(x)
    small = layer.to(torch.float32)
    assert small is layer
    single = x.float() if x.is_floating_point() else x
    assert layer(single).dtype == torch.float32
    assert close(layer(single).double(), want, 1e-5)
    assert layer.dense().weight.dtype == torch.float32
    shapes = layer.to("meta")(x.to("meta").float() if x.is_floating_point() else x.to("meta"))
    assert shapes.shape == want.shape


def test_layers_that_share_a_pair_go_on_sharing_it_in_a_copy() -> None:
    words = embedding()
    model = nn.ModuleDict({"encoder": words, "decoder": FactoredLinear(words.weight)})
    assert len(list(model.parameters())) == 2
    for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert same["encoder"].weight is same["decoder"].weight
        same.to(torch.float32)
        assert same["encoder"].weight is same["decoder"].weight
        with torch.no_grad():
            same["encoder"].weight.U.zero_()
        assert torch.equal(same["decoder"](torch.ones(5)), torch.zeros(9))
    assert set(model.state_dict()) == {
        f"{part}.weight.{factor}" for part in ("encoder", "decoder") for factor in "UV"
    }


def test_a_layer_shows_its_sizes_and_rank() -> None:
    assert "in_features=7, out_features=5, bias=True" in repr(linear())
    assert "5x7, rank=3" in repr(linear())
    assert "9, 5, padding_idx=3" in repr(embedding(padding_idx=3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
@each_layer
def test_a_layer_runs_on_cuda(make: Callable[[], Layer], x: Tensor) -> None:
    layer = make()
    want = layer(x)
    got = layer.to("cuda")(x.cuda())
    assert got.device.type == "cuda"
    assert close(got.cpu(), want, 1e-9)
    assert layer.dense().weight.device.type == "cuda"
