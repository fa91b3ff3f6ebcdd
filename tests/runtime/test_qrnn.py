"""QRNNLayer against the layer's equations, written out a value at a time."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ckptshrink.errors import LayoutError, RankError
from ckptshrink.runtime import steps
from ckptshrink.runtime.linear import FactoredLinear
from ckptshrink.runtime.qrnn import QRNNLayer
from ckptshrink.runtime.weights import LowRank, PerGate


def by_hand(
    W: Tensor, b: Tensor, x: Tensor, window: int, c: Tensor, before: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return outputs (T, B, H) and the last c (B, H), in float64 and in plain loops."""
    W, b, x, c = W.double(), b.double(), x.double(), c.double().clone()
    T, B, _ = x.shape
    H = len(b) // 3
    out = torch.zeros(T, B, H, dtype=torch.float64)
    for t in range(T):
        for k in range(B):
            seen = x[t, k]
            if window == 2:
                previous = x[t - 1, k] if t else before[k].double()
                seen = torch.cat([seen, previous])
            for j in range(H):
                z = math.tanh(float(W[j] @ seen + b[j]))
                f = 1 / (1 + math.exp(-float(W[H + j] @ seen + b[H + j])))
                o = 1 / (1 + math.exp(-float(W[2 * H + j] @ seen + b[2 * H + j])))
                c[k, j] = f * z + (1 - f) * c[k, j]
                out[t, k, j] = o * c[k, j]
    return out, c


def linear_of(W: Tensor, b: Tensor) -> nn.Linear:
    linear = nn.Linear(W.shape[1], W.shape[0])
    linear.load_state_dict({"weight": W, "bias": b})
    return linear


def layer_of(kind: str, n_in: int, H: int, window: int, seed: int = 0) -> tuple[QRNNLayer, Tensor]:
    """Return a layer and its dense weight."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    n, b = window * n_in, normal(3 * H)
    if kind == "dense":
        W = normal(3 * H, n)
        return QRNNLayer(linear_of(W.clone(), b), window=window), W
    if kind == "pair":
        U, V = normal(3 * H, 2), normal(2, n)
        return QRNNLayer(FactoredLinear(LowRank(U, V), b), window=window), U @ V
    pairs = {g: (normal(H, r), normal(r, n)) for g, r in zip("zfo", (1, 2, 3), strict=True)}
    linear = FactoredLinear(PerGate({g: LowRank(U, V) for g, (U, V) in pairs.items()}), b)
    return QRNNLayer(linear, window=window), torch.cat([U @ V for U, V in pairs.values()])


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(["dense", "pair", "gates"]), st.integers(1, 2), st.integers(1, 5),
    st.integers(1, 5), st.integers(1, 3), st.integers(1, 6), st.booleans(), st.integers(0, 999),
)  # fmt: skip
def test_any_layer_gives_what_the_equations_give(
    kind: str, window: int, n_in: int, H: int, B: int, T: int, gradients: bool, seed: int
) -> None:
    layer, W = layer_of(kind, n_in, H, window, seed)
    torch.manual_seed(seed)
    x, c, before = torch.randn(T, B, n_in), torch.randn(B, H), torch.randn(B, n_in)
    given_state = (c[None], before[None] if window == 2 else None)
    with torch.set_grad_enabled(gradients):
        out, (last, previous) = layer(x, given_state)
    assert out.requires_grad == gradients
    want, want_c = by_hand(W, layer.linear.bias.detach(), x, window, c, before)
    assert float((out.detach() - want).abs().max()) <= 5e-6
    assert float((last[0].detach() - want_c).abs().max()) <= 5e-6
    assert previous is None if window == 1 else torch.equal(previous[0], x[-1])


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("window", [1, 2])
def test_a_text_in_parts_gives_what_it_gives_in_one(window: int, gradients: bool) -> None:
    layer, _ = layer_of("pair", 4, 5, window)
    x = torch.randn(9, 2, 4)
    with torch.set_grad_enabled(gradients):
        whole, end = layer(x)
        state, parts = None, []
        for part in (x[:1], x[1:2], x[2:7], x[7:]):
            out, state = layer(part, state)
            parts.append(out)
    assert torch.allclose(torch.cat(parts), whole, atol=1e-6)
    assert torch.allclose(state[0], end[0], atol=1e-6)
    assert window == 1 or torch.equal(state[1], x[-1:])


def test_without_a_state_it_starts_from_zeros() -> None:
    layer, W = layer_of("dense", 3, 4, 2)
    x = torch.randn(3, 2, 3)
    zeros = torch.zeros(2, 4), torch.zeros(2, 3)
    want, _ = by_hand(W, layer.linear.bias.detach(), x, 2, *zeros)
    with torch.no_grad():
        assert float((layer(x)[0] - want).abs().max()) <= 5e-6
        assert torch.equal(layer(x)[0], layer(x, layer.initial_state(2))[0])


def test_chunks_of_the_input_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, _ = layer_of("dense", 3, 4, 2)
    x = torch.randn(11, 2, 3)
    with torch.no_grad():
        whole = layer(x)
        monkeypatch.setattr(steps, "_CHUNK_BYTES", 3 * 2 * 3 * 4 * 4)
        parts = layer(x)
    assert torch.allclose(parts[0], whole[0], atol=1e-6)
    assert torch.allclose(parts[1][0], whole[1][0], atol=1e-6)


def test_gradients_are_those_of_finite_differences() -> None:
    layer = layer_of("pair", 3, 2, 2)[0].double()
    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    c = torch.randn(1, 2, 2, dtype=torch.float64, requires_grad=True)
    U = layer.linear.weight.U.detach().clone().requires_grad_()

    def run(x: Tensor, c: Tensor, U: Tensor) -> tuple[Tensor, Tensor]:
        state = (c, torch.ones(1, 2, 3, dtype=torch.float64))
        out, (last, _) = torch.func.functional_call(layer, {"linear.weight.U": U}, (x, state))
        return out, last

    assert torch.autograd.gradcheck(run, (x, c, U))


def test_the_state_given_is_not_changed() -> None:
    layer, _ = layer_of("dense", 3, 4, 2)
    state = (torch.randn(1, 2, 4), torch.randn(1, 2, 3))
    before = [s.clone() for s in state]
    with torch.no_grad():
        _, after = layer(torch.randn(5, 2, 3), state)
        kept = after[0].clone()
        layer(torch.randn(5, 2, 3), after)
    assert all(torch.equal(a, b) for a, b in zip(state, before, strict=True))
    assert torch.equal(after[0], kept)


def test_half_precision_copies_and_state_dicts_work() -> None:
    layer, _ = layer_of("pair", 3, 4, 2)
    assert set(layer.state_dict()) == {"linear.weight.U", "linear.weight.V", "linear.bias"}
    x = torch.randn(5, 2, 3)
    with torch.no_grad():
        want = layer(x)[0]
        assert torch.equal(copy.deepcopy(layer)(x)[0], want)
        coarse = copy.deepcopy(layer).bfloat16()(x.bfloat16())[0]
        assert coarse.dtype == torch.bfloat16
        assert torch.allclose(coarse.float(), want, atol=0.05)


def test_factorizing_at_full_rank_changes_nothing() -> None:
    linear = nn.Linear(6, 12)
    layer = QRNNLayer.from_linear(linear, 6, window=2)
    assert (layer.input_size, layer.hidden_size, layer.rank) == (3, 4, 6)
    assert layer.linear.bias is linear.bias
    x = torch.randn(4, 2, 3)
    with torch.no_grad():
        want = QRNNLayer(linear, window=2)(x)[0]
        assert torch.allclose(layer(x)[0], want, atol=1e-5)
    with pytest.raises(RankError):
        QRNNLayer.from_linear(linear, 7)


@pytest.mark.parametrize(
    ("shape", "window", "message"),
    [
        ((12, 6), 3, "looks at 1 or 2"),
        ((13, 6), 1, "13 rows for 3 gates"),
        ((12, 5), 2, "5 columns for 2 inputs"),
    ],
)
def test_shapes_that_are_no_qrnn_are_refused(
    shape: tuple[int, int], window: int, message: str
) -> None:
    with pytest.raises(LayoutError, match=message):
        QRNNLayer(nn.Linear(shape[1], shape[0]), window=window)


@pytest.mark.parametrize(
    ("x", "state"),
    [
        ((5, 2, 4), None),
        ((5, 3), None),
        ((5, 2, 3), ((1, 3, 4), (1, 2, 3))),
        ((5, 2, 3), ((1, 2, 4), None)),
        ((5, 2, 3), ((1, 2, 4), (1, 1, 3))),
    ],
)
def test_inputs_of_other_shapes_are_refused(x: tuple[int, ...], state: Any) -> None:
    layer, _ = layer_of("dense", 3, 4, 2)
    if state is not None:
        state = tuple(torch.zeros(s) if s is not None else None for s in state)
    with pytest.raises(ValueError, match="expected"):
        layer(torch.zeros(x), state)
