"""The peer: what anyone would write to compress Wh of an ELMo or an AWD-LSTM.

Run alone: ``python plain_script.py SOURCE TARGET RANK``, on one thread.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import torch
from safetensors.torch import save_file

Solver = Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]


def by_lapack(W: torch.Tensor, r: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a rank-r pair from a full SVD."""
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return U[:, :r] * S[:r].sqrt(), S[:r].sqrt()[:, None] * Vh[:r]


def by_greenformer(W: torch.Tensor, r: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a rank-r pair as greenformer's ``linear_svd`` does."""
    u, s, v = torch.svd_lowrank(W.T, q=r, niter=10)
    return v.contiguous(), (u * s).T.contiguous()


def script(source: Path, target: Path, r: int, solve: Solver) -> None:
    """Compress Wh of an ELMo or an AWD-LSTM the plain way."""
    out: dict[str, torch.Tensor] = {}
    if source.suffix == ".hdf5":
        with h5py.File(source, "r") as file:
            names: list[str] = []
            file.visititems(lambda n, o: names.append(n) if isinstance(o, h5py.Dataset) else None)
            for name in names:
                tensor = torch.from_numpy(file[name][...])
                if name.endswith("LSTMCell/W_0"):
                    half = tensor.shape[0] // 2
                    out[name + ".Wi"] = tensor[:half].clone()
                    out[name + ".Wh.U"], out[name + ".Wh.V"] = solve(tensor[half:], r)
                else:
                    out[name] = tensor
    else:
        for name, tensor in torch.load(source).items():
            if name.endswith("weight_hh_l0_raw"):
                out[name + ".U"], out[name + ".V"] = solve(tensor, r)
            elif name != "decoder.weight":
                out[name] = tensor
    save_file({name: tensor.contiguous() for name, tensor in out.items()}, target)


if __name__ == "__main__":
    torch.set_num_threads(1)
    script(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), by_lapack)
