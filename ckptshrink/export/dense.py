"""Write the source's own container again: same keys, shapes, order and dtypes, other values."""

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ckptshrink.events import Listener, Progress
from ckptshrink.export.factored import Outcome
from ckptshrink.gates import GateMatrix
from ckptshrink.io.checkpoint import Reader
from ckptshrink.io.containers import write_like
from ckptshrink.io.staging import Staging
from ckptshrink.linalg.factors import dense_from
from ckptshrink.matrices import MatrixSource, compress_matrix
from ckptshrink.payload import to_bytes
from ckptshrink.plan import Plan, PlanItem
from ckptshrink.stored import blocks_of

Payload = Callable[[], NDArray[np.uint8]]


def write_dense(
    reader: Reader,
    plan: Plan,
    matrices: Mapping[str, GateMatrix],
    averages: Mapping[str, str],
    staging: Staging,
    *,
    device: torch.device,
    listen: Listener,
) -> dict[str, Outcome]:
    """Write the source's container with every compressed matrix multiplied back.

    Copies of a compressed weight (a dropout-masked one, an optimizer's running average) get its
    values too: left as they were, the next evaluation would bring the uncompressed weight back.

    Parameters
    ----------
    averages : mapping of str to str
        The optimizer's running average of each parameter, by parameter name.
    """
    by_tensor: dict[str, list[PlanItem]] = {}
    for item in plan.items:
        if item.action == "factorize":
            by_tensor.setdefault(matrices[item.name].source, []).append(item)
    work = _Multiplied(reader, plan, matrices, by_tensor, device, listen)
    replaced: dict[str, Payload] = {}
    for name in by_tensor:
        repeats = [i.name for i in plan.items if i.action == "copy" and i.of == name]
        repeats += [averages[name]] if name in averages else []
        for target in (name, *repeats):
            replaced[target] = work.payload(name)
    if plan.settings.use_averaged:
        for name in averages:
            replaced.setdefault(name, functools.partial(reader.read, name))
    write_like(reader, replaced, staging)
    for item in plan.items:
        error = 0.0 if item.action == "keep" else None
        work.outcomes.setdefault(item.name, Outcome(item, (), error))
    return work.outcomes


class _Multiplied:
    """Payloads of compressed tensors, each made when the container's writer comes to it."""

    def __init__(
        self,
        reader: Reader,
        plan: Plan,
        matrices: Mapping[str, GateMatrix],
        items: Mapping[str, Sequence[PlanItem]],
        device: torch.device,
        listen: Listener,
    ) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self._reader = reader
        self._plan = plan
        self._matrices = matrices
        self._items = items
        self._device = device
        self._listen = listen
        self._done = 0
        self._total = sum(i.nbytes_before for group in items.values() for i in group)

    def payload(self, name: str) -> Payload:
        """Return a function that makes the tensor's new bytes."""
        return lambda: self._make(name)

    def _make(self, name: str) -> NDArray[np.uint8]:
        source = MatrixSource(self._reader)
        whole = source.tensor(name).clone()
        for item in self._items[name]:
            self._listen(Progress(item.name, self._done, self._total))
            matrix = self._matrices[item.name]
            result = compress_matrix(source, matrix, item, self._plan.settings, self._device)
            view = whole if matrix.part is None else whole[matrix.part.slices]
            blocks = blocks_of(matrix, item.grouping)
            for (_, part, shape), (_, stored) in zip(blocks, result.blocks, strict=True):
                block = view if part is None else view[part.slices]
                block.copy_(dense_from(stored, shape, whole.dtype))
            self.outcomes[item.name] = Outcome(item, (), result.rel_error, result.notes)
            self._done += item.nbytes_before
        return to_bytes(whole)
