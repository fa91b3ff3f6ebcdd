"""ELMo's LSTMs: projected and clipped cells, stacked apart for each direction."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ckptshrink.runtime.layer import LSTMWeights
from ckptshrink.runtime.recurrence import Recurrence
from ckptshrink.runtime.weights import Weight, held, rank_of, shape_of


class ProjectedLSTM(nn.Module):
    """One direction of one layer, with a projection of the state and bounds on it.

    Parameters
    ----------
    wi : Weight
        (4H, I), gates in the order i, f, g, o.
    wh : Weight
        (4H, P).
    bias : (4H,)
        The forget bias in it.
    proj : Weight or None
        (P, H); None where P is H.
    cell_clip, proj_clip : float or None
        Bounds on the magnitude of the cell and of the projected state.
    reverse : bool
        Whether time runs backwards.
    """

    def __init__(
        self,
        wi: Weight,
        wh: Weight,
        bias: Tensor,
        proj: Weight | None,
        *,
        cell_clip: float | None = None,
        proj_clip: float | None = None,
        reverse: bool = False,
    ) -> None:
        super().__init__()
        self.wi = held(wi)
        self.wh = held(wh)
        self.bias = nn.Parameter(bias)
        self.proj = None if proj is None else held(proj)
        self.cell_clip = cell_clip
        self.proj_clip = proj_clip
        self.reverse = reverse
        self._recurrence = Recurrence()

    @property
    def hidden(self) -> int:
        """Number H of cells."""
        return len(self.bias) // 4

    @property
    def state(self) -> int:
        """Size P of the state."""
        return shape_of(self.wh)[1]

    def forward(
        self, x: Tensor, batch_sizes: Sequence[int], h: Tensor, c: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return outputs (N, P) of a packed x (N, I), and the last states (B, P) and (B, H)."""
        weights = LSTMWeights(
            wi=self.wi,
            wh=self.wh,
            bias=self.bias,
            proj=self.proj,
            cell_clip=self.cell_clip,
            proj_clip=self.proj_clip,
        )
        out, h, c = self._recurrence(
            weights, x, h, c, batch_sizes=batch_sizes, reverse=self.reverse
        )
        return out, h, c

    def extra_repr(self) -> str:
        """Return sizes, each weight's rank, and bounds."""
        ranks = {"wi": rank_of(self.wi), "wh": rank_of(self.wh)}
        if self.proj is not None:
            ranks["proj"] = rank_of(self.proj)
        said = [f"{shape_of(self.wi)[1]} -> {self.hidden} -> {self.state}"]
        said += [f"{name} {'dense' if r is None else f'rank {r}'}" for name, r in ranks.items()]
        for name in ("cell_clip", "proj_clip"):
            if getattr(self, name) is not None:
                said.append(f"{name}={getattr(self, name):g}")
        return ", ".join(said)


class BiLM(nn.Module):
    """Layers of LSTMs; forward and backward ones see nothing of each other.

    Parameters
    ----------
    forward_layers : sequence of ProjectedLSTM
    backward_layers : sequence of ProjectedLSTM
        As many, or none for a model of one direction.
    skip_connections : bool
        Whether each layer but the first adds its input to its output.
    stateful : bool
        Whether a batch starts from the states in which the last one ended, row by row, as
        bilm-tf and AllenNLP do it; from zeros otherwise.
    """

    def __init__(
        self,
        forward_layers: Sequence[ProjectedLSTM],
        backward_layers: Sequence[ProjectedLSTM],
        *,
        skip_connections: bool,
        stateful: bool,
    ) -> None:
        super().__init__()
        self.forward_layers = nn.ModuleList(forward_layers)
        self.backward_layers = nn.ModuleList(backward_layers)
        self.skip_connections = skip_connections
        self.stateful = stateful
        self._states: list[tuple[Tensor, Tensor]] | None = None

    @property
    def directions(self) -> int:
        """1 or 2."""
        return 2 if len(self.backward_layers) else 1

    @property
    def width(self) -> int:
        """Size of the outputs, directions * P."""
        return sum(lstm.state for lstm in next(self._layers()))

    def forward(self, packed: PackedSequence) -> list[Tensor]:
        """Return the packed outputs (N, directions * P) of every layer for a packed input."""
        sizes = packed.batch_sizes.tolist()
        started = self._start(packed)
        ended: list[tuple[Tensor, Tensor]] = []
        outputs = []
        inputs = [packed.data] * self.directions
        for number, layer in enumerate(self._layers()):
            for k, lstm in enumerate(layer):
                out, h, c = lstm(inputs[k], sizes, *started[len(ended)])
                ended.append((h, c))
                inputs[k] = out + inputs[k] if self.skip_connections and number > 0 else out
            outputs.append(torch.cat(inputs, dim=-1))
        if self.stateful:
            self._keep(ended, packed)
        return outputs

    def reset(self) -> None:
        """Forget the states, so that the next batch starts from zeros."""
        self._states = None

    def extra_repr(self) -> str:
        """Return what is no shape."""
        return f"skip_connections={self.skip_connections}, stateful={self.stateful}"

    def _layers(self) -> Iterator[tuple[ProjectedLSTM, ...]]:
        stacks: list[Any] = [self.forward_layers, self.backward_layers]
        return zip(*stacks[: self.directions], strict=True)

    def _start(self, packed: PackedSequence) -> list[tuple[Tensor, Tensor]]:
        """Return the states of this batch's rows, in the order in which they are packed."""
        x, batch = packed.data, int(packed.batch_sizes[0])
        zeros = [
            (x.new_zeros(batch, lstm.state), x.new_zeros(batch, lstm.hidden))
            for layer in self._layers()
            for lstm in layer
        ]
        if self._states is None or not self.stateful:
            return zeros
        return [
            (_rows(h, h0, packed.sorted_indices), _rows(c, c0, packed.sorted_indices))
            for (h, c), (h0, c0) in zip(self._states, zeros, strict=True)
        ]

    def _keep(self, ended: list[tuple[Tensor, Tensor]], packed: PackedSequence) -> None:
        """Keep the states in the order of the batch; rows that it had not keep theirs."""
        order = packed.unsorted_indices
        new = [tuple(_ordered(t.detach(), order) for t in pair) for pair in ended]
        if self._states is not None:
            new = [
                tuple(torch.cat([t, old[len(t) :].to(t)]) for t, old in zip(*pairs, strict=True))
                for pairs in zip(new, self._states, strict=True)
            ]
        self._states = [(h, c) for h, c in new]


def _rows(kept: Tensor, zeros: Tensor, order: Tensor | None) -> Tensor:
    """Return kept states, zeros below them where this batch is larger, as the batch is packed."""
    return _ordered(torch.cat([kept[: len(zeros)].to(zeros), zeros[len(kept) :]]), order)


def _ordered(rows: Tensor, order: Tensor | None) -> Tensor:
    return rows if order is None else rows.index_select(0, order)
