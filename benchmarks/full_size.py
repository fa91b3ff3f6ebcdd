"""Full-size checkpoints with random weights of a decaying spectrum."""

from collections import OrderedDict
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray


def decaying(rng: np.random.Generator, m: int, n: int) -> NDArray[np.float32]:
    """Return (m, n) with singular values near k^-0.6 and 30 % (Frobenius) of white noise."""
    k = min(m, n)
    scale = np.arange(1, k + 1, dtype=np.float32) ** -0.6
    left = rng.standard_normal((m, k), dtype=np.float32) * (scale / np.sqrt(m))
    W = left @ (rng.standard_normal((k, n), dtype=np.float32) / np.float32(np.sqrt(n)))
    noise = rng.standard_normal((m, n), dtype=np.float32)
    share = np.float32(0.3 * np.linalg.norm(W) / np.linalg.norm(noise))
    return (W + share * noise).astype(np.float32)


def make_elmo(path: Path, seed: int = 0) -> Path:
    """Write an ELMo of the original size (2 layers of 4096 cells, 512 projected), once."""
    if path.exists():
        return path
    rng = np.random.default_rng(seed)
    p, d, widths = 512, 4096, (32, 32, 64, 128, 256, 512, 1024)
    features = sum(widths)
    with h5py.File(path, "w") as file:

        def put(name: str, array: NDArray[np.float32]) -> None:
            file.create_dataset(name, data=array.astype(np.float32), track_times=False)

        put("char_embed", rng.standard_normal((261, 16)))
        for i, width in enumerate(widths):
            put(f"CNN/W_cnn_{i}", rng.standard_normal((1, i + 1, 16, width)) * 0.1)
            put(f"CNN/b_cnn_{i}", np.zeros(width, np.float32))
        for i in range(2):
            for gate in ("carry", "transform"):
                put(f"CNN_high_{i}/W_{gate}", decaying(rng, features, features))
                put(f"CNN_high_{i}/b_{gate}", np.zeros(features, np.float32))
        put("CNN_proj/W_proj", decaying(rng, features, p))
        put("CNN_proj/b_proj", np.zeros(p, np.float32))
        for direction in range(2):
            for layer in range(2):
                cell = f"RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell"
                joint = np.concatenate([decaying(rng, p, 4 * d), decaying(rng, p, 4 * d)])
                put(f"{cell}/W_0", joint)
                put(f"{cell}/B", np.zeros(4 * d, np.float32))
                put(f"{cell}/W_P_0", decaying(rng, d, p))
    return path


def make_awd(path: Path, seed: int = 0) -> Path:
    """Write the state dict of the Penn Treebank AWD-LSTM (400, 1150, 3 layers, tied), once."""
    if path.exists():
        return path
    rng = np.random.default_rng(seed)
    state: OrderedDict[str, torch.Tensor] = OrderedDict()
    state["encoder.weight"] = torch.from_numpy(decaying(rng, 10_000, 400))
    for layer, (hidden, inputs) in enumerate([(1150, 400), (1150, 1150), (400, 1150)]):
        stem = f"rnns.{layer}."
        state[stem + "weight_hh_l0_raw"] = torch.from_numpy(decaying(rng, 4 * hidden, hidden))
        state[stem + "module.weight_ih_l0"] = torch.from_numpy(decaying(rng, 4 * hidden, inputs))
        state[stem + "module.bias_ih_l0"] = torch.zeros(4 * hidden)
        state[stem + "module.bias_hh_l0"] = torch.zeros(4 * hidden)
    state["decoder.weight"] = state["encoder.weight"]
    state["decoder.bias"] = torch.zeros(10_000)
    torch.save(state, path)
    return path
