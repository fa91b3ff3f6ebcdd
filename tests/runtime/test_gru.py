"""FactoredGRU against `nn.GRU` with the weights multiplied back, by both of its ways to run."""

import copy
import io
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from ckptshrink.errors import LayoutError, RankError
from ckptshrink.runtime import gru as gru_module
from ckptshrink.runtime import steps
from ckptshrink.runtime.gru import FactoredGRU
from ckptshrink.runtime.weights import LowRank, PerGate

BOUND = 2e-6


@pytest.fixture(autouse=True)
def always_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run small layers by the factors too: left alone, they go to torch's kernel."""
    monkeypatch.setattr(gru_module, "_FEW_PRODUCTS", 0)


def multiplied_back(module: FactoredGRU) -> nn.GRU:
    """Return the `nn.GRU` of a module's state dict, made without the module's own code."""
    state = dict(module.state_dict())
    for name in [name.removesuffix(".U") for name in state if name.endswith(".U")]:
        state[name] = state.pop(f"{name}.U") @ state.pop(f"{name}.V")
    gru = nn.GRU(
        module.input_size, module.hidden_size, module.num_layers, "bias_ih_l0" in state,
        module.batch_first, module.dropout, module.bidirectional, dtype=state["weight_hh_l0"].dtype,
    )  # fmt: skip
    gru.load_state_dict(state)
    return gru.train(module.training)


def difference(ours: Any, theirs: Any) -> float:
    """Return the largest difference between two results of a recurrent module."""
    (out, h), (want, want_h) = ours, theirs
    if not isinstance(out, Tensor):
        assert torch.equal(out.batch_sizes, want.batch_sizes)
        out, want = out.data, want.data
    assert (out.shape, h.shape) == (want.shape, want_h.shape)
    return max(float((out - want).detach().abs().max()), float((h - want_h).detach().abs().max()))


shapes = st.fixed_dictionaries(
    {
        "input_size": st.integers(1, 9),
        "hidden_size": st.integers(1, 9),
        "num_layers": st.integers(1, 3),
        "bias": st.booleans(),
        "batch_first": st.booleans(),
        "bidirectional": st.booleans(),
    }
)


@settings(deadline=None, max_examples=60)
@given(shapes, st.data())
def test_any_shape_gives_what_nn_gru_gives(how: dict[str, Any], data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 2**31), label="seed")
    torch.manual_seed(seed)
    directions = 2 if how["bidirectional"] else 1
    ranks = {}
    for layer in range(how["num_layers"]):
        n = how["input_size"] if layer == 0 else directions * how["hidden_size"]
        for name, side in ((f"weight_ih_l{layer}", n), (f"weight_hh_l{layer}", how["hidden_size"])):
            if data.draw(st.booleans(), label=name):
                most = min(side, 3 * how["hidden_size"])
                ranks[name] = data.draw(st.integers(1, most), label="rank")
    module = FactoredGRU(**how, ranks=ranks)
    want = multiplied_back(module)
    B, T = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
    x = torch.randn(*((B, T) if how["batch_first"] else (T, B)), how["input_size"])
    h = torch.randn(how["num_layers"] * directions, B, how["hidden_size"])
    first = h if data.draw(st.booleans(), label="initial state") else None
    with torch.no_grad():
        assert difference(module(x, first), want(x, first)) <= BOUND
        lengths = data.draw(st.lists(st.integers(1, T), min_size=B, max_size=B), label="lengths")
        packed = pack_padded_sequence(
            x, lengths, batch_first=how["batch_first"], enforce_sorted=False
        )
        assert difference(module(packed, first), want(packed, first)) <= BOUND
    assert difference(module(x, first), want(x, first)) <= BOUND, "with gradients"


def test_the_factors_run_without_being_multiplied_back(monkeypatch: pytest.MonkeyPatch) -> None:
    module = FactoredGRU(6, 8, 2, rank_hh=2)
    x = torch.randn(5, 3, 6)
    want = multiplied_back(module)(x)

    def refuse(*args: object) -> None:
        raise AssertionError("torch's kernel was called")

    monkeypatch.setattr(torch._VF, "gru", refuse)
    with torch.no_grad():
        assert difference(module(x), want) <= BOUND
    with pytest.raises(AssertionError, match="kernel"):
        module(x)


def test_a_small_layer_is_left_to_torchs_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gru_module, "_FEW_PRODUCTS", 3 * 8 * 8 * 3 + 1)
    called = []
    kernel = torch._VF.gru
    monkeypatch.setattr(torch._VF, "gru", lambda *a: called.append(1) or kernel(*a))
    module = FactoredGRU(6, 8, rank_hh=2)
    with torch.no_grad():
        module(torch.randn(2, 3, 6))
        assert called == [1]
        module(torch.randn(2, 4, 6))
        assert called == [1]


def test_chunks_of_the_input_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    module = FactoredGRU(5, 7, 2, bidirectional=True, ranks={"weight_hh_l0": 2, "weight_ih_l1": 3})
    x = torch.randn(23, 4, 5)
    packed = pack_padded_sequence(x, [23, 17, 4, 4])
    with torch.no_grad():
        whole, whole_packed = module(x), module(packed)
        monkeypatch.setattr(steps, "_CHUNK_BYTES", 5 * 3 * 7 * 4)
        assert difference(module(x), whole) <= 1e-6
        assert difference(module(packed), whole_packed) <= 1e-6
        assert difference(module(packed), multiplied_back(module)(packed)) <= BOUND


def test_pairs_a_gate_run_as_one_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)

    def per_gate(n: int) -> PerGate:
        return PerGate(
            {
                g: LowRank(torch.randn(6, r), torch.randn(r, n))
                for g, r in (("r", 1), ("z", 3), ("n", 2))
            }
        )

    weights = {"weight_ih_l0": per_gate(4), "weight_hh_l0": per_gate(6)}
    biases = {"bias_ih_l0": torch.randn(18), "bias_hh_l0": torch.randn(18)}
    module = FactoredGRU.from_weights({**weights, **biases})
    assert {n for n, _ in module.named_parameters()} >= {"weight_hh_l0.r.U", "weight_ih_l0.n.V"}
    gru = nn.GRU(4, 6)
    dense = {n: torch.cat([p.U @ p.V for p in w.pairs()]) for n, w in weights.items()}
    gru.load_state_dict({**dense, **biases})
    x = torch.randn(7, 2, 4)
    with torch.no_grad():
        assert difference(module(x), gru(x)) <= 1e-5
    assert difference(module(x), gru(x)) <= 1e-5


def test_unbatched_inputs_are_taken() -> None:
    module = FactoredGRU(4, 6, 2, batch_first=True, bidirectional=True, rank_hh=2)
    want = multiplied_back(module)
    x, h = torch.randn(5, 4), torch.randn(4, 6)
    with torch.no_grad():
        assert difference(module(x), want(x)) <= BOUND
        assert difference(module(x, h), want(x, h)) <= BOUND


@pytest.mark.parametrize(
    ("x", "h"),
    [
        ((5, 3, 7), None),
        ((5, 3, 4), (1, 2, 6)),
        ((5, 3, 4), (2, 3, 6)),
        ((5, 3, 4), (1, 6)),
        ((5, 4), (1, 1, 6)),
        ((5,), None),
        ((1, 2, 3, 4), None),
    ],
)
def test_shapes_that_disagree_are_refused_as_nn_gru_refuses_them(
    x: tuple[int, ...], h: tuple[int, ...] | None
) -> None:
    module, gru = FactoredGRU(4, 6, rank_hh=2), nn.GRU(4, 6)
    args = (torch.zeros(x), torch.zeros(h) if h is not None else None)
    with pytest.raises((RuntimeError, ValueError)) as theirs:
        gru(*args)
    with pytest.raises(theirs.type), torch.no_grad():
        module(*args)


def test_gradients_are_those_of_the_product() -> None:
    torch.manual_seed(5)
    module = FactoredGRU(5, 6, 2, rank_ih=2, rank_hh=3, dtype=torch.float64)
    gru = multiplied_back(module)
    x = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    module(x)[0].square().sum().backward()
    gru(y)[0].square().sum().backward()
    assert torch.allclose(x.grad, y.grad)
    for name, dense in gru.named_parameters():
        if name.startswith("bias"):
            assert torch.allclose(getattr(module, name).grad, dense.grad)
            continue
        pair = getattr(module, name)
        assert torch.allclose(pair.U.grad, dense.grad @ pair.V.T)
        assert torch.allclose(pair.V.grad, pair.U.T @ dense.grad)


def test_gradients_are_those_of_finite_differences() -> None:
    module = FactoredGRU(3, 4, rank_hh=2, dtype=torch.float64)
    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    U = module.weight_hh_l0.U

    def run(x: Tensor, U: Tensor) -> Tensor:
        named = {"weight_hh_l0.U": U}
        out: Tensor = torch.func.functional_call(module, named, (x,))[0]
        return out

    assert torch.autograd.gradcheck(run, (x, U.detach().clone().requires_grad_()))


def test_dropout_in_training_is_nn_grus() -> None:
    module = FactoredGRU(5, 6, 3, dropout=0.5, rank_hh=2).train()
    gru = multiplied_back(module)
    x = torch.randn(4, 3, 5)
    for context in (torch.enable_grad, torch.no_grad):
        with context():
            torch.manual_seed(1)
            ours = module(x)
            torch.manual_seed(1)
            assert difference(ours, gru(x)) <= BOUND
    with torch.no_grad():
        assert difference(module.eval()(x), gru.eval()(x)) <= BOUND
        assert difference(module(x), module(x)) == 0


def test_every_change_of_the_weights_is_noticed() -> None:
    module = FactoredGRU(5, 6, rank_hh=2).eval()
    x = torch.randn(4, 3, 5)

    def right() -> bool:
        with torch.no_grad():
            return difference(module(x), multiplied_back(module)(x)) <= BOUND

    assert right()
    with torch.no_grad():
        module.weight_hh_l0.U.mul_(1.5)
    assert right()
    module.load_state_dict(FactoredGRU(5, 6, rank_hh=2).state_dict())
    assert right()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    module(x)[0].sum().backward()
    optimizer.step()
    assert right()
    module.bias_hh_l0 = nn.Parameter(torch.randn(18))
    assert right()
    module.weight_hh_l0.V.data = torch.randn(2, 6)
    assert right()
    # a change of values through .data leaves no trace; changing the mode forgets what was prepared
    module.weight_hh_l0.V.data.mul_(-1)
    module.eval()
    assert right()
    assert right()


def test_copies_and_other_dtypes_run() -> None:
    module = FactoredGRU(5, 6, 2, rank_hh=2, rank_ih=3)
    x = torch.randn(4, 3, 5)
    with torch.no_grad():
        want = module(x)
        assert difference(copy.deepcopy(module)(x), want) == 0
        buffer = io.BytesIO()
        torch.save(module, buffer)
        buffer.seek(0)
        assert difference(torch.load(buffer, weights_only=False)(x), want) == 0
        double = copy.deepcopy(module).double()
        got = double(x.double())
        assert got[0].dtype == torch.float64
        assert difference(got, want) <= BOUND
        coarse = copy.deepcopy(module).bfloat16()(x.bfloat16())
        assert coarse[0].dtype == torch.bfloat16
        assert difference((coarse[0].float(), coarse[1].float()), want) <= 0.05


def test_state_dicts_have_the_names_of_an_artefact() -> None:
    module = FactoredGRU(5, 6, bidirectional=True, ranks={"weight_hh_l0_reverse": 2})
    assert list(module.state_dict()) == [
        "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "weight_ih_l0_reverse",
        "bias_ih_l0_reverse", "bias_hh_l0_reverse", "weight_hh_l0_reverse.U",
        "weight_hh_l0_reverse.V",
    ]  # fmt: skip
    assert set(module.dense().state_dict()) == set(nn.GRU(5, 6, bidirectional=True).state_dict())


def test_factorizing_a_gru_at_full_rank_changes_nothing() -> None:
    gru = nn.GRU(5, 6, 2, batch_first=True, dropout=0.25).eval()
    module = FactoredGRU.from_gru(gru, ranks={"weight_ih_l0": 5, "weight_hh_l1": 6})
    assert (module.batch_first, module.dropout, module.training) == (True, 0.25, False)
    assert isinstance(module.weight_hh_l1, LowRank)
    assert isinstance(module.weight_hh_l0, nn.Parameter)
    x = torch.randn(3, 4, 5)
    with torch.no_grad():
        assert difference(module(x), gru(x)) <= BOUND
        back = module.dense()
        for name, parameter in gru.named_parameters():
            assert torch.allclose(back.get_parameter(name), parameter, atol=1e-6), name
        # the factorized module does not hold the original's parameters
        module.bias_ih_l0.zero_()
        assert float(gru.bias_ih_l0.abs().max()) > 0


def test_a_smaller_rank_is_the_best_one_of_its_size() -> None:
    gru = nn.GRU(5, 8)
    pair = FactoredGRU.from_gru(gru, rank_hh=3).weight_hh_l0
    S = torch.linalg.svdvals(gru.weight_hh_l0.detach())
    error = float(torch.linalg.norm(gru.weight_hh_l0.detach() - pair.dense().detach()))
    assert error == pytest.approx(float(S[3:].square().sum().sqrt()), rel=1e-4)


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ({"weight_hh_l0": 0}, r"rank 0 is not within 1 \.\. 6"),
        ({"weight_ih_l0": 6}, r"rank 6 is not within 1 \.\. 5"),
        ({"weight_hh_l1": 2}, "has no weight 'weight_hh_l1'"),
    ],
)
def test_a_rank_that_cannot_be_had_is_refused(ranks: dict[str, int], message: str) -> None:
    with pytest.raises(RankError, match=message):
        FactoredGRU(5, 6, ranks=ranks)
    with pytest.raises(RankError, match=message):
        FactoredGRU.from_gru(nn.GRU(5, 6), ranks=ranks)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_hh_l0": None}, "has no weight_hh_l0"),
        ({"weight_ih_l0": torch.zeros(12, 5)}, r"weight_ih_l0.*is \(12, 5\)"),
        ({"weight_hh_l0": torch.zeros(24, 6)}, r"weight_hh_l0.*is \(24, 6\)"),
        ({"bias_hh_l0": None}, "bias_hh_l0.*is missing"),
        ({"weight_hr_l0": torch.zeros(3, 6)}, "weight_hr_l0.*no such weight"),
    ],
)
def test_weights_that_are_no_gru_are_refused(change: dict[str, Any], message: str) -> None:
    weights = {**dict(nn.GRU(5, 6).named_parameters()), **change}
    with pytest.raises(LayoutError, match=message):
        FactoredGRU.from_weights({n: w for n, w in weights.items() if w is not None})


def test_its_repr_says_what_is_factored_at_which_rank() -> None:
    text = repr(FactoredGRU(5, 6, batch_first=True, rank_hh=2))
    assert "5, 6, batch_first=True" in text
    assert "weight_ih_l0=dense, weight_hh_l0=2" in text


def test_a_compiler_sees_one_graph() -> None:
    module = FactoredGRU(5, 6, rank_hh=2)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    x = torch.randn(4, 3, 5)
    with torch.no_grad():
        assert difference(compiled(x), module(x)) <= BOUND
    compiled(x)[0].sum().backward()
    assert float(module.weight_hh_l0.U.grad.abs().max()) > 0
