"""FactoredLSTM against `nn.LSTM` with the same weights multiplied back."""

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from ckptshrink.errors import LayoutError, RankError
from ckptshrink.runtime.lstm import FactoredLSTM
from ckptshrink.runtime.recurrence import ROUTES
from ckptshrink.runtime.weights import LowRank, PerGate

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")

KINDS = ("dense", "wi", "wh", "both", "joint", "mixed")


def ranks_of(kind: str, lstm: nn.LSTM, r: int) -> dict[str, int]:
    """Return the ranks for a way of factoring, clipped to what each weight allows."""
    names = {name: min(p.shape) for name, p in lstm.named_parameters() if name[:6] == "weight"}
    chosen = {
        "dense": [],
        "wi": [n for n in names if "_ih_" in n],
        "wh": [n for n in names if "_hh_" in n],
        "both": list(names),
        "joint": [],
        "mixed": [n for n in names if n in {"weight_hh_l0", "weight_ih_l1"}],
    }[kind]
    ranks = {name: min(r, names[name]) for name in chosen}
    if kind == "joint":
        ranks = {n.replace("weight_ih", "weight"): r for n in names if "_ih_" in n}
    return ranks


@st.composite
def cases(draw: st.DrawFn) -> tuple[nn.LSTM, FactoredLSTM, Any, Any]:
    """Draw an LSTM, its factored form, an input (some packed) and a state (some None)."""
    seed = draw(st.integers(0, 2**31))
    torch.manual_seed(seed)
    inputs, hidden = draw(st.integers(1, 9)), draw(st.integers(2, 12))
    layers, two = draw(st.integers(1, 3)), draw(st.booleans())
    proj = draw(st.sampled_from([0, 0, 1, hidden - 1]))
    first = draw(st.booleans())
    lstm = nn.LSTM(inputs, hidden, layers, draw(st.booleans()), first, 0.0, two, proj)
    r = draw(st.integers(1, min(inputs, proj or hidden)))
    route = draw(st.sampled_from(ROUTES))
    kind = draw(st.sampled_from(KINDS))
    factored = FactoredLSTM.from_lstm(lstm, ranks=ranks_of(kind, lstm, r), route=route)
    steps, batch = draw(st.integers(1, 7)), draw(st.integers(1, 9))
    x = torch.randn(steps, batch, inputs)
    lengths = draw(st.none() | st.lists(st.integers(1, steps), min_size=batch, max_size=batch))
    given_input: Tensor | PackedSequence = x.transpose(0, 1) if first else x
    if lengths is not None:
        given_input = pack_padded_sequence(x, lengths, enforce_sorted=False)
    count = layers * (1 + two)
    state = None
    if draw(st.booleans()):
        state = torch.randn(count, batch, proj or hidden), torch.randn(count, batch, hidden)
    return factored.dense(), factored, given_input, state


def values(result: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return outputs and states as tensors."""
    out, (h, c) = result
    return (out.data if isinstance(out, PackedSequence) else out), h, c


@settings(max_examples=150, deadline=None)
@given(cases())
def test_it_computes_what_the_lstm_of_the_same_weights_does(
    case: tuple[nn.LSTM, FactoredLSTM, Any, Any],
) -> None:
    dense, factored, x, state = case
    with torch.no_grad():
        for got, want in zip(values(factored(x, state)), values(dense(x, state)), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=2e-6)


@settings(max_examples=40, deadline=None)
@given(cases())
def test_gradients_are_those_of_the_lstm_of_the_same_weights(
    case: tuple[nn.LSTM, FactoredLSTM, Any, Any],
) -> None:
    dense, factored, x, state = case
    sums = []
    for module in (dense, factored):
        out, h, c = values(module(x, state))
        (out.square().sum() + h.sum() + c.square().sum()).backward()
        sums.append(float(out.detach().square().sum()))
    assert sums[0] == pytest.approx(sums[1], rel=1e-4)
    mine = dict(factored.named_parameters())
    for name, parameter in dense.named_parameters():
        grad = parameter.grad
        assert grad is not None
        if name in mine:
            torch.testing.assert_close(mine[name].grad, grad, rtol=1e-3, atol=1e-4)
        elif f"{name}.U" in mine:  # dL/dU = dL/dW V'
            V = mine[f"{name}.V"].detach()
            torch.testing.assert_close(mine[f"{name}.U"].grad, grad @ V.T, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("route", ["auto", "loop"])
@pytest.mark.parametrize("kind", ["wh", "both", "joint"])
def test_gradients_agree_with_finite_differences(kind: str, route: str) -> None:
    torch.manual_seed(1)
    lstm = nn.LSTM(3, 4, 2, bidirectional=True, proj_size=2).double()
    ranks = {
        name: min(r, 2 if "l1" not in name else r) for name, r in ranks_of(kind, lstm, 2).items()
    }
    factored = FactoredLSTM.from_lstm(lstm, ranks=ranks, route=route)
    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in factored.named_parameters()]
    tensors = [p.detach().clone().requires_grad_() for p in factored.parameters()]

    def run(x: Tensor, *given: Tensor) -> Tensor:
        out, (h, c) = torch.func.functional_call(factored, dict(zip(names, given, strict=True)), x)
        return out.sum() + (h * h).sum() + c.sum()

    assert torch.autograd.gradcheck(run, (x, *tensors))


def test_names_of_the_state_dict_are_those_of_an_artefact() -> None:
    lstm = FactoredLSTM(5, 8, 2, ranks={"weight_hh_l0": 2, "weight_l1": 3})
    assert set(lstm.state_dict()) == {
        "bias_ih_l0", "bias_hh_l0", "bias_ih_l1", "bias_hh_l1", "weight_ih_l0",
        "weight_hh_l0.U", "weight_hh_l0.V", "weight_l1.U", "weight_l1.V",
    }  # fmt: skip


def small() -> tuple[FactoredLSTM, Tensor]:
    torch.manual_seed(0)
    return FactoredLSTM(4, 6, 2, rank_hh=2, rank_ih=2), torch.randn(5, 3, 4)


def test_a_changed_weight_is_seen_at_once() -> None:
    lstm, x = small()
    with torch.no_grad():
        before = lstm(x)[0]
        lstm.weight_hh_l1.U.mul_(2)
        after = lstm(x)[0]
        torch.testing.assert_close(after, lstm.dense()(x)[0], rtol=0, atol=1e-6)
    assert not torch.equal(before, after)


def test_a_weight_changed_through_data_is_seen_after_eval() -> None:
    lstm, x = small()
    with torch.no_grad():
        lstm(x)
        lstm.weight_hh_l1.U.data.zero_()
        lstm.eval()
        torch.testing.assert_close(lstm(x)[0], lstm.dense()(x)[0], rtol=0, atol=1e-6)


def test_a_new_parameter_is_seen_wherever_it_lies() -> None:
    lstm, x = small()
    with torch.no_grad():
        for _ in range(20):
            lstm(x)
            lstm.weight_hh_l1.U = nn.Parameter(torch.randn(24, 2))
            torch.testing.assert_close(lstm(x)[0], lstm.dense()(x)[0], rtol=0, atol=1e-6)


def test_autocast_is_heeded() -> None:
    lstm, x = small()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        out = lstm(x)[0]
    with torch.no_grad():
        torch.testing.assert_close(out.float(), lstm(x)[0], rtol=0, atol=0.05)


def test_state_dicts_go_round() -> None:
    lstm, x = small()
    other = FactoredLSTM(4, 6, 2, rank_hh=2, rank_ih=2)
    with torch.no_grad():
        other(x)
        buffer = io.BytesIO()
        torch.save(lstm.state_dict(), buffer)
        buffer.seek(0)
        other.load_state_dict(torch.load(buffer, weights_only=True))
        assert torch.equal(lstm(x)[0], other(x)[0])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda lstm: pickle.loads(pickle.dumps(lstm))])
def test_copies_are_equal_and_apart(copied: Callable[[FactoredLSTM], FactoredLSTM]) -> None:
    lstm, x = small()
    with torch.no_grad():
        want = lstm(x)[0]
        other = copied(lstm)
        other.weight_hh_l0.V.zero_()
        assert torch.equal(lstm(x)[0], want)
        assert not torch.equal(other(x)[0], want)


def test_a_shared_v_stays_one_parameter_in_a_copy() -> None:
    shared = FactoredLSTM.from_lstm(nn.LSTM(4, 6, 3), rank_hh=2, share=True)
    for lstm in (shared, copy.deepcopy(shared)):
        assert lstm.weight_hh_l0.V is lstm.weight_ih_l1.V
        assert lstm.weight_hh_l1.V is lstm.weight_ih_l2.V
        assert lstm.weight_hh_l2.V is not lstm.weight_hh_l1.V


def test_a_shared_v_is_the_best_one_for_both_weights() -> None:
    torch.manual_seed(0)
    lstm = nn.LSTM(4, 6, 2)
    shared = FactoredLSTM.from_lstm(lstm, rank_hh=3, share=True)
    both = torch.cat([lstm.weight_hh_l0, lstm.weight_ih_l1]).detach()
    rebuilt = torch.cat([shared.weight_hh_l0.dense(), shared.weight_ih_l1.dense()]).detach()
    tail = torch.linalg.svdvals(both)[3:].square().sum().sqrt()
    assert float((both - rebuilt).norm()) == pytest.approx(float(tail), rel=1e-4)


def test_layers_that_share_a_v_are_projected_lstms() -> None:
    torch.manual_seed(0)
    shared = FactoredLSTM.from_lstm(nn.LSTM(4, 6, 3), rank_hh=2, share=True).eval()
    layers = shared.projected()
    assert [layer.proj_size for layer in layers] == [2, 2, 0]
    x = torch.randn(5, 3, 4)
    with torch.no_grad():
        want, y = shared(x)[0], x
        for layer in layers:
            y = layer(y)[0]
    torch.testing.assert_close(y, want, rtol=0, atol=1e-6)


def test_one_pair_a_gate() -> None:
    torch.manual_seed(0)
    lstm = nn.LSTM(4, 6).eval()
    weights = {name: p.detach() for name, p in lstm.named_parameters()}
    gates = weights["weight_hh_l0"].chunk(4)
    pairs = {}
    for gate, W, r in zip("ifgo", gates, (1, 2, 3, 6), strict=True):
        U, S, Vh = torch.linalg.svd(W)
        pairs[gate] = LowRank(U[:, :r] * S[:r], Vh[:r].clone())
    factored = FactoredLSTM.from_weights({**weights, "weight_hh_l0": PerGate(pairs)})
    x = torch.randn(5, 3, 4)
    with torch.no_grad():
        torch.testing.assert_close(factored(x)[0], factored.dense()(x)[0], rtol=0, atol=1e-6)
    assert set(factored.state_dict()) >= {"weight_hh_l0.i.U", "weight_hh_l0.o.V"}


def test_dropout_between_layers_is_that_of_the_lstm() -> None:
    torch.manual_seed(0)
    lstm = FactoredLSTM.from_lstm(nn.LSTM(4, 6, 2, dropout=0.5), rank_hh=2)
    x = torch.randn(5, 3, 4)
    for training in (True, False):
        outs = []
        for module in (lstm.train(training), lstm.dense().train(training)):
            torch.manual_seed(7)
            with torch.no_grad():
                outs.append(module(x)[0])
        torch.testing.assert_close(*outs, rtol=0, atol=1e-6)


def test_unbatched_input() -> None:
    lstm, x = small()
    with torch.no_grad():
        for got, want in zip(values(lstm(x[:, 0])), values(lstm.dense()(x[:, 0])), strict=True):
            assert got.shape == want.shape
            torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def test_it_runs_compiled_by_torch() -> None:
    lstm, x = small()
    compiled = torch.compile(lstm, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x)[0], lstm(x)[0], rtol=0, atol=1e-6)
    compiled(x)[0].sum().backward()
    assert lstm.weight_hh_l0.U.grad is not None


def test_it_moves_to_another_dtype() -> None:
    lstm, x = small()
    with torch.no_grad():
        lstm(x)
        lstm.double()
        x = x.double()
        torch.testing.assert_close(lstm(x)[0], lstm.dense()(x)[0], rtol=0, atol=1e-12)
        lstm.bfloat16()
        half = lstm(x.bfloat16())[0]
    assert half.dtype == torch.bfloat16
    assert bool(half.isfinite().all())


def test_outputs_can_be_used_where_gradients_are_wanted_later() -> None:
    lstm, x = small()
    with torch.no_grad():
        out = lstm(x)[0]
    scale = torch.ones(6, requires_grad=True)
    (out * scale).sum().backward()
    assert scale.grad is not None


@pytest.fixture
def long_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make chunks of a few steps, so that runs have more than one."""
    monkeypatch.setattr("ckptshrink.runtime.steps._CHUNK_BYTES", 3 * 4 * 24 * 4)
    yield


@pytest.mark.usefixtures("long_chunks")
@pytest.mark.parametrize("route", ["loop", "compiled"])
@pytest.mark.parametrize("lengths", [None, [9, 9, 2], [9, 5, 1]])
@pytest.mark.parametrize("proj", [0, 3])
def test_chunks_of_time_join(route: str, lengths: list[int] | None, proj: int) -> None:
    torch.manual_seed(0)
    lstm = nn.LSTM(4, 6, 2, bidirectional=True, proj_size=proj)
    factored = FactoredLSTM.from_lstm(lstm, rank_hh=2, route=route)
    x: Any = torch.randn(9, 3, 4)
    if lengths is not None:
        x = pack_padded_sequence(x, lengths)
    with torch.no_grad():
        for got, want in zip(values(factored(x)), values(factored.dense()(x)), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def test_the_compiled_route_is_taken_where_it_is_asked_for_and_can_be() -> None:
    lstm = FactoredLSTM(4, 6, rank_hh=2, route="compiled")
    assert lstm.routes(batch=1, steps=5) == ["compiled"]
    assert lstm.routes(batch=100, steps=5) == ["loop"]
    assert FactoredLSTM(4, 6, ranks={"weight_l0": 2}, route="compiled").routes(1, 5) == ["loop"]


def test_a_dense_layer_is_torchs_own() -> None:
    assert FactoredLSTM(4, 6).routes(batch=2, steps=5) == ["dense"]


def test_its_picture_says_ranks_and_routes() -> None:
    lstm, x = small()
    with torch.no_grad():
        lstm(x)
    shown = repr(lstm)
    assert "4, 6, num_layers=2" in shown
    assert "weight_hh_l1=2" in shown
    assert "routes=" in shown


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: FactoredLSTM(4, 6, rank_hh=7), "rank 7 is not within 1 .. 6 of a 24 x 6 weight"),
        (lambda: FactoredLSTM(4, 6, ranks={"weight_hh_l1": 2}), "has no weight 'weight_hh_l1'"),
        (
            lambda: FactoredLSTM(4, 6, ranks={"weight_l0": 2, "weight_hh_l0": 2}),
            "can't both be given",
        ),
        (
            lambda: FactoredLSTM.from_lstm(nn.LSTM(4, 6, 2), share=True),
            "'weight_hh_l0' is dense, and has no V to share",
        ),
    ],
)
def test_ranks_that_make_no_sense_are_refused(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(RankError, match=said.replace(".", r"\.")):
        make()


def test_weights_that_are_no_lstm_are_refused_by_name() -> None:
    weights = {name: p.detach() for name, p in nn.LSTM(4, 6, 2).named_parameters()}
    with pytest.raises(LayoutError, match="weight_ih_l1: is missing"):
        FactoredLSTM.from_weights({n: w for n, w in weights.items() if n != "weight_ih_l1"})
    with pytest.raises(LayoutError, match=r"bias_hh_l0: is \(5,\)"):
        FactoredLSTM.from_weights({**weights, "bias_hh_l0": torch.zeros(5)})
    with pytest.raises(LayoutError, match="no LSTM"):
        FactoredLSTM.from_weights({"weight": torch.zeros(5, 5)})


def test_shapes_that_disagree_are_refused_as_by_torch() -> None:
    lstm, x = small()
    with pytest.raises(RuntimeError, match="Expected 4, got 3"):
        lstm(x[..., :3])
    with pytest.raises(RuntimeError, match=r"Expected hidden\[1\] size \(2, 3, 6\)"):
        lstm(x, (torch.zeros(2, 3, 6), torch.zeros(1, 3, 6)))
    with pytest.raises(ValueError, match="2D or 3D"):
        lstm(x[None])


@pytest.mark.parametrize("shape", [(0, 3, 4), (5, 0, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_odd_inputs_end_as_they_do_with_torch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    lstm, _ = small()
    ends = []
    for module in (lstm, lstm.dense()):
        try:
            with torch.no_grad():
                ends.append(str(tuple(module(torch.zeros(shape, dtype=dtype))[0].shape)))
        except (RuntimeError, ValueError) as error:
            ends.append(f"{type(error).__name__}: {str(error)[:40]}")
    assert ends[0] == ends[1]


def test_infinite_and_huge_inputs_come_to_the_same() -> None:
    lstm, x = small()
    x[0, 1], x[1, 2], x[2, 0] = float("inf"), float("nan"), 1e30
    with torch.no_grad():
        got, want = lstm(x)[0], lstm.dense()(x)[0]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6, equal_nan=True)
