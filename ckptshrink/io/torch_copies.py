"""Tensors that repeat another tensor: the very same elements, or a copy that its owner outranks."""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from ckptshrink.io.torch_tensors import StoredView

_WEIGHT: Final = re.compile(r"(?:(?P<module>.*)\.)?(?P<leaf>weight(?:_\w+)?)", re.DOTALL)
_FLAT: Final = re.compile(r"(?:(?P<module>.*)\.)?_flat_weights\.(?P<index>[0-9]{1,6})", re.DOTALL)


def shared_with(views: Mapping[str, StoredView]) -> dict[str, str]:
    """Return, for each tensor that is the same elements as an earlier one, the earliest one."""
    first: dict[StoredView, str] = {}
    shared: dict[str, str] = {}
    for name, view in views.items():
        owner = first.setdefault(view, name)
        if owner != name:
            shared[name] = owner
    return shared


def copies_of_weights(
    views: Mapping[str, StoredView],
    shared: Mapping[str, str],
    flat_names: Mapping[str, tuple[str, ...]],
) -> dict[str, str]:
    """Return the tensors that repeat a weight in a storage of their own, by the weight that wins.

    Weight drop keeps the trained weight as ``weight_hh_l0_raw`` and puts a masked copy of it under
    the plain name at each training step; in older torch the list ``_flat_weights`` refers to the
    copy. The copy has zeros that no weight has: compressing it would spoil the model.

    Parameters
    ----------
    views : mapping of str to StoredView
    shared : mapping of str to str
        What `shared_with` returned.
    flat_names : mapping of str to tuple of str
        For a recurrent module by its name: the weights that its ``_flat_weights`` stand for.
    """
    raws = {name: None for name in views if name.endswith("_raw")}
    by_place: dict[tuple[str, tuple[int, ...]], str] = {}
    for raw in raws:
        by_place.setdefault((raw.rpartition(".")[0], views[raw].shape), raw)
    copies: dict[str, str] = {}
    for name, view in views.items():
        dropped = _raw_of(name, raws)
        if dropped is not None and views[dropped].shape == view.shape:
            copies[name] = dropped
    winners = {shared.get(name, name): raw for name, raw in copies.items()}
    for name, view in views.items():
        flat = _FLAT.fullmatch(name)
        if flat is None:
            continue
        module, index = flat["module"] or "", int(flat["index"])
        names = flat_names.get(module, ())
        if index < len(names):
            stood_for = [*_raws_of(module, names[index]), _below(module, names[index])]
        else:  # no list of names: only a raw weight of the same shape will do
            stood_for = [by_place.get((place, view.shape), "") for place in _enclosing(module)]
        fitting = [n for n in stood_for if n in views and views[n].shape == view.shape]
        winner = winners.get(shared.get(name, name)) or next(iter(fitting), None)
        if winner is not None:
            copies[name] = winner
    # One that lies in the very storage of the winner is tied to it, which says more.
    return {n: w for n, w in copies.items() if shared.get(n, n) != shared.get(w, w)}


def _raw_of(name: str, raws: Collection[str]) -> str | None:
    """Return the raw weight of a dropped one: beside it, or one level up as fastai v1 has it."""
    match = _WEIGHT.fullmatch(name)
    if match is None or match["leaf"].endswith("_raw"):
        return None
    return next((r for r in _raws_of(match["module"] or "", match["leaf"]) if r in raws), None)


def _raws_of(module: str, leaf: str) -> Iterator[str]:
    return (_below(place, f"{leaf}_raw") for place in _enclosing(module))


def _enclosing(module: str) -> tuple[str, ...]:
    """Return the module's name and the name one level up."""
    return (module, module.rpartition(".")[0]) if module else ("",)


def _below(module: str, leaf: str) -> str:
    return f"{module}.{leaf}" if module else leaf
