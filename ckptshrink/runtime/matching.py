"""Which tensor of a checkpoint goes to which tensor of a model, and what doesn't fit."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ckptshrink.errors import LayoutError
from ckptshrink.runtime.opened import Opened
from ckptshrink.runtime.state import owners_of

_SHOWN: Final = 3
"""Names of each kind that a message shows: enough to see what they have in common."""

_MAY_BE_ABSENT: Final = "num_batches_tracked"
"""Leaf of a buffer that torch's own loader lets a checkpoint lack: it is newer than BatchNorm."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A parameter or buffer of the model that the checkpoint has values for.

    Attributes
    ----------
    tensor : Tensor
        The model's own.
    names : tuple of str
        Every name that it has in the model.
    owner : str
        Name under which the checkpoint stores the values.
    """

    tensor: Tensor
    names: tuple[str, ...]
    owner: str


@dataclass(frozen=True, slots=True)
class Match:
    """What fits and what doesn't.

    Attributes
    ----------
    entries : tuple of Entry
    missing : tuple of str
        Names of the model that the checkpoint has no values for.
    unexpected : tuple of str
        Names of the checkpoint, after the prefix, that the model doesn't have.
    misfits : tuple of str
        What can't be loaded however lenient: a name and why, one line each.
    path : str
    hint : str
    """

    entries: tuple[Entry, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misfits: tuple[str, ...]
    path: str
    hint: str

    def check(self, *, strict: bool) -> None:
        """Raise one error about everything that doesn't fit.

        Raises
        ------
        LayoutError
            A shape differs, or nothing fits; if `strict`, a name is missing or unexpected.
        """
        said = [_listed("of another shape or value", self.misfits)] if self.misfits else []
        if strict or not self.entries:
            said += [_listed("missing", self.missing)] if self.missing else []
            said += [_listed("unexpected", self.unexpected)] if self.unexpected else []
        if said or not self.entries:
            what = "; ".join(said) or "it has no tensor of the model's"
            raise LayoutError(f"does not fit the model: {what}", path=self.path, hint=self.hint)


def match_names(tensors: Mapping[str, Tensor], opened: Opened, prefix: str) -> Match:
    """Match a model's state dict with a checkpoint by name.

    A name that repeats another one, in the model or in the checkpoint, needs no values of its own.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        By name; the very same tensor under two names is tied.
    opened : Opened
        Values are read only where a tied tensor of the model has two in the checkpoint.
    prefix : str
        What the checkpoint's names have before the model's; others are passed over.
    """
    facts = opened.facts
    state = owners_of(facts)
    # a pickled module has tensors beside its state dict; the user's module may well hold them
    owners = {name: facts.owner(name) for name in facts.shapes} | state
    groups: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(id(tensor), []).append(name)
    entries, missing, misfits = [], [], []
    for names in groups.values():
        tensor = tensors[names[0]]
        given = {name: owners[prefix + name] for name in names if prefix + name in owners}
        if not given:
            missing += [name for name in names if name.rpartition(".")[2] != _MAY_BE_ABSENT]
            continue
        shapes = {name: tuple(facts.shapes[owner]) for name, owner in given.items()}
        wrong = {name: shape for name, shape in shapes.items() if shape != tuple(tensor.shape)}
        misfits += [f"{n} {s} and in the model {tuple(tensor.shape)}" for n, s in wrong.items()]
        if not wrong:
            misfits += _disputed(opened, given)
        entries.append(Entry(tensor, tuple(names), next(iter(given.values()))))
    taken = {entry.owner for entry in entries}
    unexpected = [
        name.removeprefix(prefix)
        for name, owner in state.items()
        if name.startswith(prefix)
        and name.removeprefix(prefix) not in tensors
        and (owner == name or owner not in taken)
    ]
    return Match(
        entries=tuple(entries),
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        misfits=tuple(misfits),
        path=str(facts.path),
        hint=_hint(tensors, owners, missing, len(entries)),
    )


def _disputed(opened: Opened, given: Mapping[str, str]) -> list[str]:
    """Return what is one tensor in the model and has several values in the checkpoint."""
    (first, owner), *others = given.items()
    return [
        f"{name}, tied to {first} in the model and with values of its own in the checkpoint"
        for name, other in others
        if other != owner and not torch.equal(opened.tensor(other), opened.tensor(owner))
    ]


def _listed(what: str, names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{len(names)} {what} ({shown})"


def _hint(model: Iterable[str], stored: Iterable[str], missing: Iterable[str], matched: int) -> str:
    """Return what to try next: a prefix that makes more names match, or the lenient way."""
    prefix, count = _common_prefix(stored, set(model))
    if count > matched:
        return f"{count} names match after {prefix!r}: attach(model, path, prefix={prefix!r})"
    prefix, count = _common_prefix(missing, set(stored))
    if count > matched:
        part = prefix.removesuffix(".")
        return f"{count} names match within {part!r}: attach(model.get_submodule({part!r}), path)"
    return "prefix= takes names after a prefix; strict=False loads what fits; shapes must agree"


def _common_prefix(longer: Iterable[str], wanted: set[str]) -> tuple[str, int]:
    """Return the prefix without which most of the longer names are wanted ones, and how many."""
    counts: Counter[str] = Counter()
    for name in longer:
        at = name.find(".")
        while at >= 0:
            if name[at + 1 :] in wanted:
                counts[name[: at + 1]] += 1
            at = name.find(".", at + 1)
    best = counts.most_common(1)
    return best[0] if best else ("", 0)
