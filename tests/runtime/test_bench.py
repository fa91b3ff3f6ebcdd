"""What `bench` compares: the contestants of a layer compute the same."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ckptshrink import Request, Settings, Size, Target, compress
from ckptshrink.events import Progress
from ckptshrink.payload import Compute
from ckptshrink.runtime.bench import bench, dense_runs, factored_run
from ckptshrink.runtime.cells import Cell, cells_of

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
CPU = torch.device("cpu")
MODELS = [
    "torch/awd_lstm_masked.zip.pt",
    "torch/awd_gru.zip.pt",
    "torch/gru_state.legacy.pt",
    "torch/fastai_v1.zip.pt",
    "torch/lstm_state.zip.pt",
    "torch/word_language_model.zip.pt",
    "safetensors/lstm_bfloat16.safetensors",
    "elmo/elmo.hdf5",
    "elmo/one_layer/lm_weights.hdf5",
]


def outputs(result: Any) -> torch.Tensor:
    out: torch.Tensor = result[0]
    return out


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, about oneDNN
@pytest.mark.parametrize("grouping", ["stacked", "per-gate"])
@pytest.mark.parametrize("name", MODELS)
def test_contestants_compute_the_same(name: str, grouping: str, tmp_path: Path) -> None:
    request = Request(
        (Target("Wi"), Target("Wh")), size=Size(rank=3), grouping=grouping, settings=Settings()
    )
    compress(FIXTURES / name, tmp_path / "out", request, compute=Compute("cpu", 1))
    cells, _ = cells_of(tmp_path / "out")
    for cell in cells:
        x = torch.randn(5, 2, cell.n_inputs, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            factored = outputs(factored_run(cell, CPU)[0](x))
            for who, run in dense_runs(cell, CPU).items():
                seen = outputs(run(x))
                assert seen.shape == factored.shape == (5, 2, cell.projected or cell.hidden)
                torch.testing.assert_close(factored, seen, atol=1e-5, rtol=1e-5, msg=who)


def test_a_layer_of_torch_is_the_one_in_the_file(tmp_path: Path) -> None:
    """Weights, both biases and the order of layers and directions are those of the module."""
    torch.manual_seed(0)
    model = torch.nn.LSTM(6, 5, 2, bidirectional=True)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    cells, notes = cells_of(tmp_path / "model.pt")
    assert notes == []
    places = [(cell.layer, cell.direction) for cell in cells]
    assert places == [(k, d) for k in (0, 1) for d in ("forward", "backward")]
    state = model.state_dict()
    for cell in cells:
        end = f"_l{cell.layer}{'_reverse' if cell.direction == 'backward' else ''}"
        for name, weight in cell.weights().items():
            assert isinstance(weight, torch.Tensor)
            assert torch.equal(weight, state[name.replace("_l0", end)])


def test_the_forget_bias_and_gate_order_of_an_elmo_are_torchs() -> None:
    import h5py

    path = FIXTURES / "elmo" / "one_layer" / "lm_weights.hdf5"
    cell, *_ = cells_of(path)[0]
    with h5py.File(path) as file:
        scope = file["RNN_0/RNN/LSTMCell"]
        i, j, f, o = torch.from_numpy(scope["B"][...]).chunk(4)
        i_rows, j_rows, *_ = torch.from_numpy(scope["W_0"][...]).T.chunk(4)
    assert cell.bias_ih is not None and cell.bias_hh is not None
    torch.testing.assert_close(cell.bias_ih + cell.bias_hh, torch.cat([i, f + 1, j, o]))
    assert isinstance(cell.wi, torch.Tensor)
    got_i, _, got_g, _ = cell.wi.chunk(4)
    assert torch.equal(got_i, i_rows[:, : cell.n_inputs])
    assert torch.equal(got_g, j_rows[:, : cell.n_inputs])


def test_a_module_and_the_one_it_wraps_are_two_layers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {}
    for prefix in ("x.", "x.module."):
        layer = torch.nn.LSTM(3, 4)
        state |= {f"{prefix}{name}": value for name, value in layer.state_dict().items()}
    torch.save(state, tmp_path / "model.pt")
    cells, _ = cells_of(tmp_path / "model.pt")
    assert len(cells) == 2
    one, other = (cell.weights()["weight_hh_l0"] for cell in cells)
    assert isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
    assert not torch.equal(one, other)


def test_progress_ends_where_it_said_it_would() -> None:
    told: list[Progress] = []
    found = bench(
        FIXTURES / "torch" / "awd_lstm.zip.pt", batches=(1, 2), steps=2, rounds=2,
        compute=Compute("cpu", 1), listen=told.append,
    )  # fmt: skip
    assert [p.done for p in told] == list(range(1, told[0].total + 1))
    assert len({p.total for p in told}) == 1
    assert [row.cell is None for row in found.rows] == [False, False, False, True] * 2


def test_a_layer_that_is_no_lstm_is_told_and_not_timed(tmp_path: Path) -> None:
    state = torch.nn.LSTM(3, 4).state_dict()
    plain = torch.nn.RNN(3, 4).state_dict()
    both = {f"a.{n}": v for n, v in state.items()} | {f"b.{n}": v for n, v in plain.items()}
    torch.save(both, tmp_path / "model.pt")
    cells, notes = cells_of(tmp_path / "model.pt")
    assert [cell.name for cell in cells] == ["a"]
    assert notes == ["b layer 0 forward is no LSTM or GRU, and not timed"]


def test_weights_without_biases_make_a_layer_without(tmp_path: Path) -> None:
    torch.save(torch.nn.GRU(3, 4, bias=False).state_dict(), tmp_path / "model.pt")
    (cell,), _ = cells_of(tmp_path / "model.pt")
    assert isinstance(cell, Cell)
    assert (cell.kind, cell.bias_ih, cell.bias_hh) == ("gru", None, None)
    assert set(dense_runs(cell, CPU)) == {"nn.GRU", "nn.GRU without oneDNN"}
