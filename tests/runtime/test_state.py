"""`load_state_dict` against what torch, safetensors and h5py read of the same files."""

from pathlib import Path

import h5py
import pytest
import torch
import torch_gold
from safetensors.torch import load_file, save_model
from torch import Tensor, nn

from ckptshrink.errors import CheckpointError
from ckptshrink.payload import Compute
from ckptshrink.planning.request import Request, Size, parse_target
from ckptshrink.rewrite import compress
from ckptshrink.runtime.state import load_state_dict

MODULES = (
    "awd_lstm_bare.zip.pt", "awd_lstm_bare.legacy.pt", "awd_lstm_masked.zip.pt", "awd_gru.zip.pt",
    "awd_lstm_evaluated.zip.pt", "awd_qrnn.legacy.pt", "word_language_model.zip.pt",
)  # fmt: skip
STATES = ("awd_lstm_state.zip.pt", "awd_lstm_state.legacy.pt", "gru_state.legacy.pt")


def shrunk(path: Path, out: Path, targets: str = "all") -> Path:
    request = Request(tuple(map(parse_target, targets.split())), size=Size(rank=2))
    compress(path, out, request, compute=Compute("cpu", 1))
    return out


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    assert list(ours) == list(theirs)
    return all(torch.equal(ours[n], theirs[n]) for n in theirs)


@pytest.mark.parametrize("name", MODULES)
def test_a_pickled_modules_state_dict_comes_back(fixtures: Path, name: str) -> None:
    path = fixtures / "torch" / name
    module = torch_gold.load(path)
    state = load_state_dict(str(path))
    assert same(state, dict(module.state_dict()))
    module.load_state_dict(state)


@pytest.mark.parametrize("name", STATES)
def test_a_state_dict_comes_back(fixtures: Path, name: str) -> None:
    path = fixtures / "torch" / name
    assert same(load_state_dict(path), dict(torch_gold.load(path)))


def test_tied_names_have_the_same_tensor(fixtures: Path, tmp_path: Path) -> None:
    path = fixtures / "torch" / "awd_lstm_evaluated.zip.pt"
    for source in (path, shrunk(path, tmp_path / "out")):
        state = load_state_dict(source)
        assert state["decoder.weight"] is state["encoder.weight"]
        raw = state["rnns.1.module.weight_hh_l0_raw"]
        assert state["rnns.1.module.weight_hh_l0"] is raw
        assert state["rnns.0.module.weight_hh_l0_raw"] is not raw


def test_a_masked_copy_has_the_raw_weights_values(fixtures: Path) -> None:
    state = load_state_dict(fixtures / "torch" / "fastai_v1.zip.pt")
    saved = torch_gold.load(fixtures / "torch" / "fastai_v1.zip.pt")["model"]
    assert list(state) == list(saved)
    name = "0.rnns.0.module.weight_hh_l0"
    assert not torch.equal(saved[name], saved["0.rnns.0.weight_hh_l0_raw"])
    assert torch.equal(state[name], saved["0.rnns.0.weight_hh_l0_raw"])


def test_an_artefacts_tensors_are_multiplied_back(fixtures: Path, tmp_path: Path) -> None:
    path = fixtures / "torch" / "awd_lstm.zip.pt"
    out = shrunk(path, tmp_path / "out", "Wh embedding")
    source, state = load_state_dict(path), load_state_dict(out)
    pairs = load_file(out / "model.safetensors")
    assert list(state) == list(source)
    assert "criterion.tail_vectors" in state
    factored = {n.removesuffix(".U") for n in pairs if n.endswith(".U")}
    assert "encoder.weight" in factored
    for name, value in state.items():
        stored = "encoder.weight" if name == "decoder.weight" else name
        if stored in factored:
            want = pairs[f"{stored}.U"].double() @ pairs[f"{stored}.V"].double()
            assert float((value - want).abs().max()) <= 1e-6
            assert int(torch.linalg.matrix_rank(value.double(), rtol=1e-5)) == 2
        else:
            assert torch.equal(value, source[name])
    model = torch_gold.load(path)[0]
    model.load_state_dict({n: v for n, v in state.items() if not n.startswith("criterion.")})


def test_an_elmos_tensors_keep_their_packing(fixtures: Path, tmp_path: Path) -> None:
    path = fixtures / "elmo" / "elmo.hdf5"
    state = load_state_dict(path)
    with h5py.File(path) as file:
        names: list[str] = []
        file.visititems(lambda n, x: names.append(n) if isinstance(x, h5py.Dataset) else None)
        assert set(state) == set(names)
        assert all((state[n].numpy() == file[n][()]).all() for n in names)
    factored = load_state_dict(shrunk(path, tmp_path / "out", "Wh"))
    name = "RNN_0/RNN/MultiRNNCell/Cell0/LSTMCell/W_0"
    assert factored[name].shape == state[name].shape
    changed = (factored[name] != state[name]).any(dim=1)
    assert changed.tolist() == [False] * 32 + [True] * 32


def test_safetensors_come_back_with_the_names_that_were_left_out(
    fixtures: Path, tmp_path: Path
) -> None:
    path = fixtures / "safetensors" / "lstm_float16.safetensors"
    state = load_state_dict(path)
    assert {v.dtype for v in state.values()} == {torch.float16}
    want = load_file(path)
    assert set(state) == set(want)
    assert all(torch.equal(state[n], want[n]) for n in want)
    tied = nn.ModuleDict({"encoder": nn.Embedding(30, 8), "decoder": nn.Linear(8, 30)})
    tied["decoder"].weight = tied["encoder"].weight
    save_model(tied, str(tmp_path / "tied.safetensors"))
    state = load_state_dict(tmp_path / "tied.safetensors")
    assert state["encoder.weight"] is state["decoder.weight"]
    tied.load_state_dict(state)


def test_tensors_that_are_no_weights_come_back(tmp_path: Path) -> None:
    saved = {
        "bn.num_batches_tracked": torch.tensor(5), "position_ids": torch.arange(4)[None],
        "mask": torch.tensor([True, False]), "codes": torch.arange(-3, 3, dtype=torch.int8),
        "w": torch.randn(2, 2).to(torch.float8_e4m3fn),
    }  # fmt: skip
    torch.save(saved, tmp_path / "m.pt")
    state = load_state_dict(tmp_path / "m.pt")
    assert list(state) == list(saved)
    for name, value in saved.items():
        assert state[name].dtype == value.dtype
        assert torch.equal(state[name].float(), value.float())


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        load_state_dict(tmp_path / "absent.pt")
