"""Which matrices a request is about: roles, globs and exact names → gate matrices."""

import difflib
import fnmatch
from collections.abc import Mapping

from ckptshrink.errors import NothingMatchedError
from ckptshrink.gates import ROLES, GateMatrix
from ckptshrink.io.checkpoint import Checkpoint
from ckptshrink.layouts import Recognition, fits_nothing
from ckptshrink.plan import Plan
from ckptshrink.planning.request import Request, Target
from ckptshrink.tensors import FACTORABLE, TensorRef


def matrices_of(
    plan: Plan, checkpoint: Checkpoint, recognition: Recognition
) -> dict[str, GateMatrix]:
    """Return every matrix by key, with those that the plan takes as plain matrices."""
    named = {matrix.key: matrix for matrix in recognition.matrices}
    for item in plan.items:
        if item.action == "factorize" and item.name not in named:
            named.update(plain_matrix(checkpoint.tensors.get(item.name)))
    return named


def candidates(
    checkpoint: Checkpoint, recognition: Recognition, request: Request
) -> dict[str, GateMatrix]:
    """Return every matrix by key; what looks recurrent and fits no layout must be spoken for."""
    matrices = {matrix.key: matrix for matrix in recognition.matrices}
    named = [s for t in request.targets for s in _selectors(t) if s not in {*ROLES, "all"}]
    issues = []
    for name, why in recognition.unrecognised:
        if any(_matches(name, glob) for glob in request.keep):
            continue
        if any(_matches(name, glob) for glob in named):
            matrices.update(plain_matrix(checkpoint.tensors[name]))
        else:
            issues.append((name, why))
    if issues:
        name, why = issues[0]
        more = f" (and {len(issues) - 1} more)" if len(issues) > 1 else ""
        raise fits_nothing(checkpoint.tensors[name], why + more, checkpoint.root)
    return {
        key: matrix
        for key, matrix in matrices.items()
        if checkpoint.tensors[matrix.source].dtype in FACTORABLE and 0 not in matrix.shape
    }


def _selectors(target: Target) -> list[str]:
    return [part.strip() for part in target.selector.split(",") if part.strip()]


def _matches(name: str, glob: str) -> bool:
    return name == glob or fnmatch.fnmatchcase(name, glob)


def resolve(
    checkpoint: Checkpoint,
    recognition: Recognition,
    matrices: Mapping[str, GateMatrix],
    request: Request,
) -> dict[str, Target]:
    """Return the target that holds for each matrix asked for: the last one that names it."""
    kept = {
        k
        for k, m in matrices.items()
        if any(_matches(m.source, g) or _matches(k, g) for g in request.keep)
    }
    asked: dict[str, Target] = {}
    for glob in request.keep:
        if not any(_matches(name, glob) for name in (*checkpoint.tensors, *matrices)):
            raise _nothing(glob, checkpoint, matrices, option="--keep")
    for target in request.targets:
        for selector in _selectors(target):
            keys = _selected(selector, recognition, matrices)
            if not keys:
                raise _nothing(selector, checkpoint, matrices, option="--target")
            for key in keys:
                if key not in kept:
                    asked[key] = target
    return {key: asked[key] for key in matrices if key in asked}


def _selected(
    selector: str, recognition: Recognition, matrices: Mapping[str, GateMatrix]
) -> list[str]:
    """Return the keys a selector names; a tied or copied name stands for the one it repeats."""
    if selector == "all":
        return list(matrices)
    repeats = {**recognition.aliases, **recognition.copies}
    if selector in ROLES:
        # a tied softmax is reached by its own role; a second name of a gate matrix has none
        owners = {
            repeats[name]
            for name, role in recognition.roles_of_aliases.items()
            if role == selector and role in {"embedding", "softmax"}
        }
        return [k for k, m in matrices.items() if m.role == selector or m.source in owners]
    owners = {owner for name, owner in repeats.items() if _matches(name, selector)}
    return [
        k
        for k, m in matrices.items()
        if _matches(k, selector) or _matches(m.source, selector) or m.source in owners
    ]


def _nothing(
    selector: str, checkpoint: Checkpoint, matrices: Mapping[str, GateMatrix], *, option: str
) -> NothingMatchedError:
    present = sorted({m.role for m in matrices.values()}, key=ROLES.index)
    names = [selector] if any(_matches(n, selector) for n in checkpoint.tensors) else []
    if names:
        return NothingMatchedError(
            f"{option} {selector!r} names only tensors that are no matrices",
            path=checkpoint.root,
            hint="see them all: ckptshrink inspect",
        )
    known = [*present, *(["all"] if matrices else []), *matrices, *checkpoint.tensors]
    folded = {name.lower(): name for name in reversed(known)}
    close = difflib.get_close_matches(selector.lower(), list(folded)[:10_000], n=1, cutoff=0.5)
    roles = f"roles here: {', '.join(present) or 'none'}"
    return NothingMatchedError(
        f"{option} {selector!r} matches nothing",
        path=checkpoint.root,
        hint=f"did you mean {folded[close[0]]!r}? {roles}" if close else roles,
    )


def plain_matrix(ref: TensorRef | None) -> dict[str, GateMatrix]:
    """Return a 2-D floating tensor as a matrix of no known role, by key; else nothing."""
    if ref is None or not ref.is_plain_matrix:
        return {}
    return {ref.name: GateMatrix("linear", ref.name, (ref.shape[0], ref.shape[1]))}
