"""AllenNLP's ELMo as far as this project depends on it: its modules' names, attributes and sums.

For where AllenNLP can't be installed. A sentence is run at a time and from zeros; AllenNLP's own
modules run batches, and keep states.
"""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class LstmCellWithProjection(nn.Module):
    """Gates i, f, g, o; the bias is the recurrent layer's, the forget bias in it."""

    def __init__(
        self, input_size: int, hidden_size: int, cell_size: int, *, backward: bool
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.cell_size = input_size, hidden_size, cell_size
        self.backward = backward
        self.memory_cell_clip_value: float | None = None
        self.state_projection_clip_value: float | None = None
        self.input_linearity: nn.Module = nn.Linear(input_size, 4 * cell_size, bias=False)
        self.state_linearity: nn.Module = nn.Linear(hidden_size, 4 * cell_size, bias=True)
        self.state_projection: nn.Module = nn.Linear(cell_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (T, P) for x (T, I)."""
        h, c = x.new_zeros(1, self.hidden_size), x.new_zeros(1, self.cell_size)
        outputs = []
        for x_t in x.flip(0) if self.backward else x:
            gates = self.input_linearity(x_t[None]) + self.state_linearity(h)
            i, f, g, o = gates.chunk(4, dim=1)
            c = i.sigmoid() * g.tanh() + f.sigmoid() * c
            if self.memory_cell_clip_value:
                c = c.clamp(-self.memory_cell_clip_value, self.memory_cell_clip_value)
            h = self.state_projection(o.sigmoid() * c.tanh())
            if self.state_projection_clip_value:
                h = h.clamp(-self.state_projection_clip_value, self.state_projection_clip_value)
            outputs.append(h)
        out = torch.cat(outputs)
        return out.flip(0) if self.backward else out


class ElmoLstm(nn.Module):
    """The cells, as ``forward_layer_0`` and so on."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        self.num_layers = options["n_layers"]
        for layer in range(self.num_layers):
            for direction in ("forward", "backward"):
                cell = LstmCellWithProjection(
                    options["projection_dim"],
                    options["projection_dim"],
                    options["dim"],
                    backward=direction == "backward",
                )
                cell.memory_cell_clip_value = options["cell_clip"]
                cell.state_projection_clip_value = options["proj_clip"]
                self.add_module(f"{direction}_layer_{layer}", cell)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return (T, 2P) of each layer for x (T, P)."""
        ahead = back = x
        outputs = []
        for layer in range(self.num_layers):
            cells = (
                self.get_submodule(f"forward_layer_{layer}"),
                self.get_submodule(f"backward_layer_{layer}"),
            )
            skipped = (ahead, back) if layer else (0, 0)
            ahead, back = cells[0](ahead) + skipped[0], cells[1](back) + skipped[1]
            outputs.append(torch.cat([ahead, back], dim=1))
        return outputs


class Highway(nn.Module):
    """One layer for both parts: what replaces the input, and the gate on the input."""

    def __init__(self, input_dim: int, num_layers: int) -> None:
        super().__init__()
        self._input_dim = input_dim
        self._layers = nn.ModuleList(nn.Linear(input_dim, 2 * input_dim) for _ in range(num_layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self._layers:
            new, gate = layer(x).chunk(2, dim=-1)
            x = gate.sigmoid() * x + (1 - gate.sigmoid()) * new.relu()
        return x


class ElmoCharacterEncoder(nn.Module):
    """Characters to words."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        self._options = options
        said = options["char_cnn"]
        self.output_dim = options["lstm"]["projection_dim"]
        d = said["embedding"]["dim"]
        self._char_embedding_weights = nn.Parameter(torch.zeros(262, d))
        for k, (width, n) in enumerate(said["filters"]):
            self.add_module(f"char_conv_{k}", nn.Conv1d(d, n, width))
        n_filters = sum(n for _, n in said["filters"])
        self._highways = Highway(n_filters, said["n_highway"])
        self._projection: nn.Module = nn.Linear(n_filters, self.output_dim)

    def forward(self, ids: Tensor) -> Tensor:
        """Return (N, P) for ids (N, C)."""
        said = self._options["char_cnn"]
        activation = {"relu": torch.relu, "tanh": torch.tanh}[said["activation"]]
        x = nn.functional.embedding(ids, self._char_embedding_weights).transpose(1, 2)
        convolutions = [self.get_submodule(f"char_conv_{k}") for k in range(len(said["filters"]))]
        x = torch.cat([activation(conv(x).amax(-1)) for conv in convolutions], dim=1)
        out: Tensor = self._projection(self._highways(x))
        return out


class ElmoBiLm(nn.Module):
    """Both, loaded from a file."""

    def __init__(self, options_file: Path, weight_file: Path) -> None:
        super().__init__()
        options = json.loads(Path(options_file).read_text())
        self._token_embedder = ElmoCharacterEncoder(options)
        self._word_embedding: nn.Module | None = None
        self._elmo_lstm = ElmoLstm(options["lstm"])
        with h5py.File(weight_file) as file, torch.no_grad():
            self._load(file)
        self.requires_grad_(False)

    def forward(self, ids: Tensor) -> list[Tensor]:
        """Return (T, P), then (T, 2P) of each layer, for the ids (T, C) of one sentence."""
        words = self._token_embedder(ids)
        return [words, *self._elmo_lstm(words)]

    def _load(self, file: Any) -> None:
        def copy(parameter: Tensor, value: NDArray[np.float32]) -> None:
            assert tuple(parameter.shape) == value.shape
            parameter.copy_(torch.from_numpy(value))

        def ordered(rows: NDArray[np.float32]) -> NDArray[np.float32]:
            i, j, f, o = np.split(rows, 4)
            return np.concatenate([i, f, j, o])

        embedder: Any = self._token_embedder
        copy(embedder._char_embedding_weights[1:], file["char_embed"][...])
        for k in range(len(embedder._options["char_cnn"]["filters"])):
            conv = embedder.get_submodule(f"char_conv_{k}")
            copy(conv.weight, file[f"CNN/W_cnn_{k}"][0].transpose(2, 1, 0))
            copy(conv.bias, file[f"CNN/b_cnn_{k}"][...])
        for k, layer in enumerate(embedder._highways._layers):
            high = {name: value[...].T for name, value in file[f"CNN_high_{k}"].items()}
            copy(layer.weight, np.concatenate([high["W_transform"], -high["W_carry"]]))
            copy(layer.bias, np.concatenate([high["b_transform"], -high["b_carry"]]))
        copy(embedder._projection.weight, file["CNN_proj/W_proj"][...].T)
        copy(embedder._projection.bias, file["CNN_proj/b_proj"][...])
        for k, direction in enumerate(("forward", "backward")):
            for layer in range(self._elmo_lstm.num_layers):
                cell: Any = self._elmo_lstm.get_submodule(f"{direction}_layer_{layer}")
                stored = file[f"RNN_{k}/RNN/MultiRNNCell/Cell{layer}/LSTMCell"]
                W, bias = ordered(stored["W_0"][...].T), ordered(stored["B"][...])
                bias[cell.cell_size : 2 * cell.cell_size] += 1
                copy(cell.input_linearity.weight, W[:, : cell.input_size])
                copy(cell.state_linearity.weight, W[:, cell.input_size :])
                copy(cell.state_linearity.bias, bias)
                copy(cell.state_projection.weight, stored["W_P_0"][...].T)


class Elmo(nn.Module):
    """What a task's model holds: a biLM, and the mix of its layers that the task has trained."""

    def __init__(self, options_file: Path, weight_file: Path) -> None:
        super().__init__()
        self._elmo_lstm = ElmoBiLm(options_file, weight_file)
        self.scalar_mix = nn.Parameter(torch.arange(3.0))

    def forward(self, ids: Tensor) -> Tensor:
        """Return (T, 2P) for the ids (T, C) of one sentence."""
        words, *others = self._elmo_lstm(ids)
        layers = [torch.cat([words, words], dim=1), *others]
        mixed: Tensor = sum(w * x for w, x in zip(self.scalar_mix, layers, strict=False))  # type: ignore[assignment]
        return mixed
