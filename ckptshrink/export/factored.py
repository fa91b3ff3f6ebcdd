"""Write the artefact's tensors: factors of what is compressed, bytes of what is kept.

One tensor at a time, in the order of the file, so that memory holds the largest tensor and its
factors and never the model.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from ckptshrink.events import Listener, Progress
from ckptshrink.gates import GateMatrix
from ckptshrink.io.checkpoint import Reader
from ckptshrink.io.safetensors_file import plan_file, plan_shards
from ckptshrink.io.staged_file import StagedFile
from ckptshrink.io.staging import Staging
from ckptshrink.matrices import MatrixSource, compress_matrix
from ckptshrink.payload import to_bytes
from ckptshrink.plan import Plan, PlanItem
from ckptshrink.stored import Entry, entries_of, stored_dtype


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one plan item came to: the stored tensors, the error, what the factorizer said."""

    item: PlanItem
    stored_as: tuple[str, ...]
    rel_error: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Stored:
    """A stored tensor to come: what it is made from."""

    entry: Entry
    item: PlanItem
    matrix: GateMatrix | None


def write_factored(
    reader: Reader,
    plan: Plan,
    matrices: Mapping[str, GateMatrix],
    staging: Staging,
    *,
    device: torch.device,
    max_shard_bytes: int,
    listen: Listener,
) -> dict[str, Outcome]:
    """Write ``model.safetensors``, or shards and their index, and return what became of each item.

    Parameters
    ----------
    reader : Reader
        The opened source.
    matrices : mapping of str to GateMatrix
        By key, for every item of the plan that is one.
    max_shard_bytes : int
        Largest payload of one file.

    Raises
    ------
    NonFiniteError
        A matrix to be compressed holds NaN or infinity.
    OutputError
        The disk is full or failed.
    """
    stored = {s.entry[0]: s for s in _stored_tensors(reader, plan, matrices)}
    shards = plan_shards([s.entry for s in stored.values()], max_shard_bytes)
    work = _Work(reader, plan, device)
    total = sum(plan_item.nbytes_before for plan_item in plan.items)
    for shard in shards.files:
        layout = plan_file(shard.entries)
        out = staging.create(shard.name)
        out.write(layout.header)
        for name in layout.order:
            listen(Progress(stored[name].item.name, work.done, total))
            work.write(stored[name], out)
    if shards.index is not None:
        staging.create("model.safetensors.index.json").write(shards.index)
    listen(Progress("", total, total))
    return {
        item.name: _outcome(item, matrices.get(item.name), stored, work.results)
        for item in plan.items
    }


def _stored_tensors(
    reader: Reader, plan: Plan, matrices: Mapping[str, GateMatrix]
) -> Iterator[_Stored]:
    """Yield every tensor the artefact will hold; one that keeps all its parts stays whole."""
    tensors = reader.checkpoint.tensors
    cut = {matrices[i.name].source for i in plan.items if i.action == "factorize"}
    whole: set[str] = set()
    for item in plan.items:
        matrix = matrices.get(item.name)
        ref = tensors[matrix.source if matrix is not None else item.name]
        if item.action == "factorize" and matrix is not None and item.method and item.rank:
            dtype = stored_dtype(item.dtype, ref.dtype)
            for entry in entries_of(
                matrix, method=item.method, rank=item.rank, grouping=item.grouping, dtype=dtype
            ):
                yield _Stored(entry, item, matrix)
        elif item.action == "keep" and ref.name in cut and matrix is not None:
            yield _Stored((matrix.key, matrix.shape, ref.dtype), item, matrix)
        elif item.action == "keep" and ref.name not in whole:
            whole.add(ref.name)
            yield _Stored((ref.name, ref.shape, ref.dtype), item, None)


class _Work:
    """Makes payloads in the order the file wants them, and remembers what it found."""

    def __init__(self, reader: Reader, plan: Plan, device: torch.device) -> None:
        self.results: dict[str, tuple[float, tuple[str, ...]]] = {}
        self.done = 0
        self._reader = reader
        self._source = MatrixSource(reader)
        self._settings = plan.settings
        self._device = device
        self._waiting: dict[str, memoryview] = {}

    def write(self, stored: _Stored, out: StagedFile) -> None:
        """Write the bytes of a stored tensor."""
        name = stored.entry[0]
        if stored.item.action == "factorize" and stored.matrix is not None:
            if name not in self._waiting:
                self._factorize(stored.item, stored.matrix)
            out.give(self._waiting.pop(name))
        elif stored.matrix is not None:
            out.give(to_bytes(self._source.matrix(stored.matrix)).data)
            self.done += stored.item.nbytes_before
        else:
            for chunk in self._reader.chunks(name):
                out.write(chunk)
                self.done += len(chunk)

    def _factorize(self, item: PlanItem, matrix: GateMatrix) -> None:
        result = compress_matrix(self._source, matrix, item, self._settings, self._device)
        self._waiting |= {name: to_bytes(t).data for name, t in result.tensors.items()}
        self.results[item.name] = (result.rel_error, result.notes)
        self.done += item.nbytes_before


def _outcome(
    item: PlanItem,
    matrix: GateMatrix | None,
    stored: Mapping[str, _Stored],
    results: Mapping[str, tuple[float, tuple[str, ...]]],
) -> Outcome:
    if item.action == "factorize":
        names = tuple(name for name, tensor in stored.items() if tensor.item.name == item.name)
        return Outcome(item, names, *results[item.name])
    if item.action != "keep":
        return Outcome(item, ())
    # both rows of a packed tensor of which nothing is compressed point at the whole
    whole = matrix.source if matrix is not None and item.name not in stored else item.name
    return Outcome(item, (whole,), 0.0)
