"""Weights held as factors: what they multiply to, and what torch's functions make of them."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import dropout, embedding, linear, relu

from ckptshrink.errors import LayoutError, RankError
from ckptshrink.runtime.weights import (
    LowRank,
    PerGate,
    Weight,
    apply,
    dense,
    rank_of,
    reordered,
    shape_of,
    tensors_of,
)

GATES = "ifgo"


def pair(m: int, n: int, r: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> LowRank:
    draw = torch.Generator().manual_seed(seed)
    U = torch.randn(m, r, generator=draw, dtype=dtype)
    return LowRank(U, torch.randn(r, n, generator=draw, dtype=dtype))


def per_gate(h: int, n: int, r: int, gates: str = GATES, seed: int = 0) -> PerGate:
    return PerGate({gate: pair(h, n, r, seed + k) for k, gate in enumerate(gates)})


def normal(*shape: int, seed: int = 9) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def close(a: Tensor, b: Tensor, bound: float = 1e-11) -> bool:
    a, b = a.detach(), b.detach()
    return a.shape == b.shape and float((a - b).norm()) <= bound * max(float(b.norm()), 1e-300)


# -- what a weight multiplies to ---------------------------------------------------------------


@settings(deadline=None)
@given(
    h=st.integers(1, 5),
    n=st.integers(1, 6),
    r=st.integers(1, 4),
    leading=st.lists(st.integers(0, 3), max_size=3),
    seed=st.integers(0, 99),
    biased=st.booleans(),
)
def test_every_kind_of_weight_applies_as_its_dense_matrix_does(
    h: int, n: int, r: int, leading: list[int], seed: int, biased: bool
) -> None:
    x = normal(*leading, n, seed=seed)
    bias = normal(4 * h, seed=seed + 1) if biased else None
    weights: list[Weight] = [
        normal(4 * h, n, seed=seed),
        pair(4 * h, n, r, seed),
        per_gate(h, n, r, seed=seed),
    ]
    for weight in weights:
        W = dense(weight)
        assert shape_of(weight) == tuple(W.shape) == (4 * h, n)
        want = linear(x, W, bias)
        assert close(apply(weight, x, bias), want)
    assert [rank_of(weight) for weight in weights] == [None, r, 4 * r]
    assert [len(tensors_of(weight)) for weight in [*weights, None]] == [1, 2, 8, 0]


def test_per_gate_stacks_its_pairs_in_the_order_given() -> None:
    pairs = {gate: pair(3, 5, 2, seed) for seed, gate in enumerate("ofig")}
    weight = PerGate(pairs)
    assert weight.gates == "ofig"
    assert [p is q for p, q in zip(weight.pairs(), pairs.values(), strict=True)] == [True] * 4
    W = weight.dense()
    for k, one in enumerate(pairs.values()):
        assert torch.equal(W[3 * k : 3 * k + 3], one.dense())
    names = [f"{gate}.{factor}" for gate in "ofig" for factor in "UV"]
    assert list(weight.state_dict()) == names


def test_a_pair_uses_given_parameters_and_makes_tensors_ones() -> None:
    V = nn.Parameter(torch.ones(2, 3), requires_grad=False)
    first, second = LowRank(torch.ones(4, 2), V), LowRank(torch.ones(5, 2), V)
    assert first.V is second.V is V
    assert isinstance(first.U, nn.Parameter)
    assert first.U.requires_grad
    assert not first.V.requires_grad
    both = nn.ModuleList([first, second])
    assert len(list(both.parameters())) == 3
    again = copy.deepcopy(both)
    assert again[0].V is again[1].V
    assert again[0].V is not V
    again = pickle.loads(pickle.dumps(both))
    assert again[0].V is again[1].V


@pytest.mark.parametrize(
    ("U", "V"), [((4, 2), (3, 5)), ((4,), (1, 5)), ((4, 1), (5,)), ((2, 4, 2), (2, 5))]
)
def test_factors_that_do_not_multiply_are_refused(U: tuple[int, ...], V: tuple[int, ...]) -> None:
    with pytest.raises(RankError, match="are no pair") as caught:
        LowRank(torch.ones(U), torch.ones(V))
    assert str(U) in str(caught.value)


def test_gradients_of_a_pair_are_those_of_finite_differences() -> None:
    x = normal(3, 5).requires_grad_()
    bias = normal(4).requires_grad_()
    U, V = normal(4, 2, seed=1).requires_grad_(), normal(2, 5, seed=2).requires_grad_()
    weight = pair(4, 5, 2)

    def product(x: Tensor, bias: Tensor, U: Tensor, V: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(weight, {"U": U, "V": V}, (x, bias))
        return y

    assert torch.autograd.gradcheck(product, (x, bias, U, V))


# -- where torch's functions want a tensor -----------------------------------------------------

FUNCTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "linear": lambda x, W, b: linear(x, W, b),
    "linear by keyword": lambda x, W, b: linear(input=x, bias=b, weight=W),
    "linear of itself": lambda x, W, b: linear(W, W),
    "embedding": lambda x, W, b: embedding(torch.tensor([[0, 7], [3, 3]]), W),
    "embedding with a norm": lambda x, W, b: embedding(torch.tensor([1, 2]), W, None, 0.5),
    "embedding with padding": lambda x, W, b: embedding(torch.tensor([1, 2]), W, -1),
    "matmul": lambda x, W, b: torch.matmul(x, W.T),
    "operator": lambda x, W, b: x @ W.t(),
    "left operand": lambda x, W, b: W @ x.T,
    "sum": lambda x, W, b: torch.ones(8, 1, dtype=x.dtype) * W,
    "list": lambda x, W, b: torch.cat([W, x]),
    "einsum": lambda x, W, b: torch.einsum("bn,mn->bm", x, W),
    "norm": lambda x, W, b: torch.linalg.norm(W),
    "dropout": lambda x, W, b: dropout(W, 0.5, training=False),
}


@pytest.mark.parametrize("weight", [pair(8, 5, 2), per_gate(2, 5, 1)], ids=["pair", "per gate"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_of_torch_takes_factors_for_the_tensor(name: str, weight: Weight) -> None:
    function = FUNCTIONS[name]
    if isinstance(weight, PerGate) and name in {"matmul", "operator"}:
        pytest.skip("a letter of a gate may be T")
    x, b = normal(3, 5), normal(8)
    W = dense(weight).detach()
    got = function(x, weight, b)  # type: ignore[arg-type]
    assert close(got, function(x, W.clone(), b))
    if "norm" not in name:
        assert got.requires_grad, "the factors do not learn"


def test_factors_tell_dtype_device_and_size_as_a_tensor_does() -> None:
    for weight in (pair(8, 5, 2), per_gate(2, 5, 1)):
        W = weight.dense()
        assert (weight.dtype, weight.device) == (W.dtype, W.device)
        assert weight.size() == W.size()
        assert (weight.size(0), weight.size(-1)) == (8, 5)
        weight.to(torch.float32)
        assert weight.dtype == torch.float32


def test_writing_through_a_product_is_refused() -> None:
    weight = pair(4, 5, 2)
    before = weight.dense().detach().clone()
    with pytest.raises(TypeError, match="uniform_: a weight held as factors"):
        nn.init.uniform_(weight)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a weight held as factors"):
        torch.add(before, 1.0, out=weight)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="relu_: a weight held as factors"):
        torch.relu_(weight)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="relu: a weight held as factors"):
        relu(weight, inplace=True)  # type: ignore[arg-type]
    assert torch.equal(weight.dense(), before)
    # a tensor that is written from one is no such case
    assert torch.equal(torch.zeros(4, 5, dtype=torch.float64).copy_(weight), before)  # type: ignore[arg-type]


def test_padding_gives_no_gradient_to_either_factor() -> None:
    tokens = torch.tensor([[2, 0, 2], [5, 2, 1]])
    for index in (2, -4):
        weight = pair(6, 5, 2)
        W = nn.Parameter(weight.dense().detach())
        scale = normal(2, 3, 5)
        (weight.rows(tokens, index) * scale).sum().backward()
        (embedding(tokens, W, index) * scale).sum().backward()
        assert W.grad is not None and weight.U.grad is not None and weight.V.grad is not None
        assert close(weight.U.grad, W.grad @ weight.V.detach().T)
        assert close(weight.V.grad, weight.U.detach().T @ W.grad)


# -- another order of gates --------------------------------------------------------------------


@settings(deadline=None)
@given(
    gates=st.permutations("ifgo"),
    wanted=st.permutations("ifgo"),
    h=st.integers(1, 4),
    kind=st.sampled_from(["bias", "dense", "pair", "per gate"]),
)
def test_reordering_moves_whole_gates(
    gates: list[str], wanted: list[str], h: int, kind: str
) -> None:
    have, want = "".join(gates), "".join(wanted)
    weight: Weight
    if kind == "per gate":
        weight = per_gate(h, 3, 1, have)
    else:
        weight = {"bias": normal(4 * h), "dense": normal(4 * h, 3), "pair": pair(4 * h, 3, 2)}[kind]
    moved = reordered(weight, have, want)
    assert type(moved) is type(weight) or not isinstance(moved, nn.Module)
    before, after = dense(weight).chunk(4), dense(moved).chunk(4)
    for gate in "ifgo":
        assert torch.equal(after[want.index(gate)], before[have.index(gate)])
    assert torch.equal(dense(reordered(moved, want, have)), dense(weight))


def test_reordering_shares_what_it_does_not_move() -> None:
    weight = pair(8, 5, 2)
    weight.U.requires_grad_(False)
    moved = reordered(weight, "ijfo", "ifgo")
    assert isinstance(moved, LowRank)
    assert moved.V is weight.V
    assert not moved.U.requires_grad
    gates = per_gate(2, 5, 1, "ijfo")
    turned = reordered(gates, "ijfo", "ifgo")
    assert isinstance(turned, PerGate)
    assert turned.gates == "ifgo"
    assert turned.get_submodule("g") is gates.get_submodule("j")
    assert reordered(gates, "ijfo", "ijfo") is gates
    # in torch's order already, and with TensorFlow's name of a gate
    named = reordered(per_gate(2, 5, 1, "ifjo"), "ifjo", "ifgo")
    assert isinstance(named, PerGate)
    assert named.gates == "ifgo"


@pytest.mark.parametrize(("gates", "rows"), [("rzn", 9), ("ifgx", 8), ("ijjo", 8), ("ofgi", 7)])
def test_gates_that_are_others_or_do_not_divide_the_rows_are_refused(gates: str, rows: int) -> None:
    with pytest.raises(LayoutError, match=f"gates '{gates}' can't be put in the order 'ifgo'"):
        reordered(normal(rows, 2), gates, "ifgo")
