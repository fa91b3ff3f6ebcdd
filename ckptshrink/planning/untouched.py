"""Plan rows of everything that is not compressed, and the order of all rows."""

from collections.abc import Iterable, Mapping

from ckptshrink.gates import GateMatrix
from ckptshrink.io.checkpoint import Checkpoint
from ckptshrink.io.structure import tensors_in
from ckptshrink.layouts import Recognition
from ckptshrink.plan import NOT_TARGETED, PlanItem
from ckptshrink.planning.choice import kept_row
from ckptshrink.tensors import FACTORABLE, TensorRef


def untouched_rows(
    checkpoint: Checkpoint,
    recognition: Recognition,
    matrices: Mapping[str, GateMatrix],
    chosen: set[str],
) -> dict[str, PlanItem]:
    """Return the rows of everything that is not compressed."""
    by_source: dict[str, list[GateMatrix]] = {}
    for matrix in matrices.values():
        by_source.setdefault(matrix.source, []).append(matrix)
    compressed = {matrices[key].source for key in chosen}
    outside = _attributes(checkpoint)
    rows: dict[str, PlanItem] = {}
    for name, ref in checkpoint.tensors.items():
        for matrix in by_source.get(name, ()):
            if matrix.key not in chosen:
                rows[matrix.key] = kept_row(matrix, ref.dtype, NOT_TARGETED)
        if name not in by_source:
            row = _plain_row(ref, recognition, compressed)
            if row.action == "tied":
                row = row.model_copy(update={"role": _role(ref, recognition, by_source)})
            if name in outside and row.action == "keep":
                reason = "an attribute of a module, not part of its state dict"
                row = row.model_copy(
                    update={
                        "action": "drop",
                        "reason": reason,
                        "n_params_after": 0,
                        "nbytes_after": 0,
                    }
                )
            rows[name] = row
    return rows


def _role(
    ref: TensorRef, recognition: Recognition, by_source: Mapping[str, list[GateMatrix]]
) -> str | None:
    """Return the role of a second name: its own for a tied softmax, else that of the first."""
    own = recognition.roles_of_aliases.get(ref.name)
    owners = by_source.get(ref.shares_with or "")
    return own if own in {"embedding", "softmax"} or not owners else owners[0].role


def _attributes(checkpoint: Checkpoint) -> set[str]:
    """Return the tensors of a whole-module pickle that its state dict does not have."""
    if checkpoint.container.get("kind") != "module":
        return set()
    return set(checkpoint.tensors) - set(tensors_in(checkpoint.container.get("structure")))


def _plain_row(ref: TensorRef, recognition: Recognition, compressed: set[str]) -> PlanItem:
    """Return the row of a tensor that is no matrix, or repeats one, or is no part of the model."""
    counts = {"n_params_before": ref.n_params, "nbytes_before": ref.nbytes}
    kept = {**counts, "n_params_after": ref.n_params, "nbytes_after": ref.nbytes}
    if ref.name in recognition.dropped:
        reason = recognition.dropped[ref.name]
        return PlanItem(name=ref.name, action="drop", reason=reason, shape=ref.shape, **counts)
    if ref.shares_with is not None:
        owner = ref.shares_with
        return PlanItem(
            name=ref.name, action="tied", reason=f"the same storage as {owner}", of=owner,
            shape=ref.shape, **counts,
        )  # fmt: skip
    winner = recognition.copies.get(ref.name)
    if winner is not None and winner in compressed:
        return PlanItem(
            name=ref.name, action="copy", reason=f"a copy of {winner}, which wins", of=winner,
            shape=ref.shape, **counts,
        )  # fmt: skip
    if ref.name in recognition.kept:
        reason = recognition.kept[ref.name]
    elif winner is not None:
        reason = f"a copy of {winner}, which stays dense"
    elif ref.dtype not in FACTORABLE:
        reason = f"{ref.dtype}: not a floating weight"
    else:
        reason = f"{len(ref.shape)}-D: no matrix" if len(ref.shape) != 2 else "kept as asked"
    return PlanItem(name=ref.name, action="keep", reason=reason, shape=ref.shape, **kept)


def in_order(
    checkpoint: Checkpoint, matrices: Mapping[str, GateMatrix], rows: Mapping[str, PlanItem]
) -> Iterable[PlanItem]:
    """Return the rows in stored order, parts of one tensor in the order in which they lie."""
    place = {name: i for i, name in enumerate(checkpoint.tensors)}

    def position(key: str) -> tuple[int, int]:
        matrix = matrices.get(key)
        if matrix is None:
            return (place[key], 0)
        return (place[matrix.source], matrix.part.start if matrix.part else 0)

    return (rows[key] for key in sorted(rows, key=position))
