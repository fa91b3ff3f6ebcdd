"""Load an artefact into a user's own module, with factored layers in place of the dense ones.

The story is `attach`: match names and shapes, read every value, and only then change the model, so
that an error leaves it as it was.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ckptshrink.errors import LayoutError
from ckptshrink.gates import GateMatrix
from ckptshrink.runtime.matching import Entry, match_names
from ckptshrink.runtime.opened import Facts, Opened
from ckptshrink.runtime.stand_ins import become, is_conv1d, kind_of, stand_in, why_dense
from ckptshrink.runtime.weights import LowRank, PerGate, Product, Weight


@dataclass(frozen=True, slots=True)
class Swapped:
    """A weight that runs as factors: its name, the class of its layer, and the rank."""

    name: str
    kind: str
    rank: int


@dataclass(frozen=True, slots=True)
class MultipliedBack:
    """A weight that the artefact holds as factors and the model as a dense tensor, and why."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Attached:
    """What `attach` did with each name of the model and of the checkpoint.

    Attributes
    ----------
    swapped : tuple of Swapped
    multiplied_back : tuple of MultipliedBack
    loaded : tuple of str
        Names of the model that took their values as they are stored.
    missing : tuple of str
        Names of the model that the checkpoint has no values for; they kept theirs.
    unexpected : tuple of str
        Names of the checkpoint, after the prefix, that the model doesn't have. One that only
        repeats a tensor which the model does take isn't among them.
    """

    swapped: tuple[Swapped, ...]
    multiplied_back: tuple[MultipliedBack, ...]
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        """Return the counts in a line."""
        return ", ".join(f"{len(getattr(self, n))} {n.replace('_', ' ')}" for n in self.__slots__)


def attach(
    model: nn.Module, path: str | Path, *, strict: bool = True, prefix: str = ""
) -> Attached:
    """Load an artefact, or a checkpoint, into a module whose state-dict names are the source's.

    Layers whose weight is stored as factors turn into factored ones: `nn.Linear` and Hugging Face's
    Conv1D into `FactoredLinear`, `nn.Embedding` into `FactoredEmbedding`, `nn.LSTM` and `nn.GRU`
    into `FactoredLSTM` and `FactoredGRU`. They do so in place, as the same Python objects, so that
    a layer under two names, in a list of the user's, or given as the model itself is factored
    wherever it is used; its hooks stay. Weights that are one parameter in the model become one
    pair. Every other weight that is stored as factors is multiplied back.

    Dtype, device, `requires_grad` and training mode are those of the model. Factors are new
    parameters: make the optimizer afterwards. Code that reads ``layer.weight`` and hands it to a
    function of torch goes on working; see `Product`.

    Parameters
    ----------
    model : nn.Module
        Changed in place; left as it is where an error is raised.
    path : path
        An artefact's folder, or a checkpoint, of which every tensor is loaded as it is.
    strict : bool
        Whether names that only one side has are an error. Shapes that differ always are, and so is
        a checkpoint of which nothing fits.
    prefix : str
        What the checkpoint's names have before the model's, with its dot: ``"module."``. Names
        without it are no part of the model and are passed over.

    Returns
    -------
    Attached

    Raises
    ------
    LayoutError
        Names or shapes don't fit: all of them at once. Or the model can't be loaded: it has
        factored layers already, or parameters without values.
    CheckpointError, ManifestMismatchError
        The file can't be read.

    Examples
    --------
    >>> attached = attach(model, "artefact")  # doctest: +SKIP
    >>> print(attached)  # doctest: +SKIP
    4 swapped, 0 multiplied back, 7 loaded, 0 missing, 0 unexpected
    """
    tensors = _tensors_of(model)
    with Opened(Path(path)) as opened:
        match = match_names(tensors, opened, prefix)
        match.check(strict=strict)
        staged = _Staged(_places_of(model), _factored_of(opened.facts))
        for entry in match.entries:
            staged.add(entry, opened)
    staged.commit()
    fates = staged.fates
    return Attached(
        swapped=tuple(fate for fate in fates.values() if isinstance(fate, Swapped)),
        multiplied_back=tuple(fate for fate in fates.values() if isinstance(fate, MultipliedBack)),
        loaded=tuple(name for name, fate in fates.items() if fate is None),
        missing=match.missing,
        unexpected=match.unexpected,
    )


def _tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return what the model's state dict holds, the very parameters and buffers.

    Raises
    ------
    LayoutError
        It can't be loaded as it is.
    """
    if any(isinstance(module, Product) for module in model.modules()):
        raise LayoutError(
            "the model has factored layers already", hint="attach to one that its own code made"
        )
    state = model.state_dict(keep_vars=True)
    # what a module's get_extra_state returns is no tensor of the checkpoint
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    for name, tensor in tensors.items():
        if is_lazy(tensor):
            raise LayoutError("has no shape yet", tensor=name, hint="run the model once")
        if tensor.is_meta:
            raise LayoutError(
                "is on the meta device", tensor=name, hint='call model.to_empty(device="cpu")'
            )
    return tensors


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a parameter is used: its full name, its layer, its name there, and who holds that."""

    name: str
    layer: nn.Module
    leaf: str
    holder: nn.Module | None


def _places_of(model: nn.Module) -> dict[int, list[_Place]]:
    """Return the places of each parameter, by its id."""
    modules = dict(model.named_modules(remove_duplicate=False))
    places: dict[int, list[_Place]] = {}
    for path, layer in modules.items():
        holder = modules[path.rpartition(".")[0]] if path else None
        for leaf, parameter in layer._parameters.items():
            if parameter is not None:
                name = f"{path}.{leaf}" if path else leaf
                places.setdefault(id(parameter), []).append(_Place(name, layer, leaf, holder))
    return places


def _factored_of(facts: Facts) -> dict[str, GateMatrix]:
    """Return the matrices that are stored as factors, by the name of their tensor."""
    rows = facts.manifest.tensors if facts.manifest else ()
    factored = {row.name for row in rows if row.action == "factorize"}
    return {matrix.source: matrix for matrix in facts.matrices if matrix.key in factored}


@dataclass(slots=True)
class _Staged:
    """Every value that the model is to get, read and ready; the model is as it was.

    Attributes
    ----------
    places : mapping of int to list of _Place
    factored : mapping of str to GateMatrix
    values : list of (Tensor, Tensor)
        A tensor of the model's, and what is to be copied into it.
    layers : mapping of int to (nn.Module, mapping of str to LowRank or PerGate)
        A layer, and the pairs that it is to have.
    fates : mapping of str to Swapped, MultipliedBack or None
        By the model's names, in order.
    """

    places: dict[int, list[_Place]]
    factored: dict[str, GateMatrix]
    values: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    layers: dict[int, tuple[nn.Module, dict[str, LowRank | PerGate]]] = field(default_factory=dict)
    fates: dict[str, Swapped | MultipliedBack | None] = field(default_factory=dict)

    def add(self, entry: Entry, opened: Opened) -> None:
        """Read the values of an entry: as a pair where every layer that uses it can run one."""
        matrix = self.factored.get(entry.owner)
        if matrix is None:
            self.values.append((entry.tensor, _dense(entry, opened)))
            self.fates.update(dict.fromkeys(entry.names))
            return
        places = self.places.get(id(entry.tensor), [])
        weight = opened.weight(matrix)
        whys = _whys_dense(weight, matrix, places)
        if whys or isinstance(weight, Tensor):
            self.values.append((entry.tensor, _dense(entry, opened)))
            for name in entry.names:
                self.fates[name] = MultipliedBack(name, _why(name, whys))
            return
        turned = matrix.layout.transposed != is_conv1d(places[0].layer)
        pair = _like(entry.tensor, weight, turned=turned)
        for place in places:
            _, pairs = self.layers.setdefault(id(place.layer), (place.layer, {}))
            pairs[place.leaf] = pair
            kind = kind_of(place.layer).__name__
            self.fates[place.name] = Swapped(place.name, kind, pair.rank)

    def commit(self) -> None:
        """Change the model. What can fail for the layers' sake does before anything is changed."""
        made = [(layer, stand_in(layer, pairs)) for layer, pairs in self.layers.values()]
        with torch.no_grad():
            for tensor, value in self.values:
                tensor.copy_(value)
        for layer, other in made:
            become(layer, other)


def _whys_dense(weight: Weight, matrix: GateMatrix, places: list[_Place]) -> dict[str, str]:
    """Return why a weight must be multiplied back, by the name that is the reason; or nothing.

    The name is empty where it isn't one place of several.
    """
    if isinstance(weight, Tensor):
        return {"": "is pruned, and runs dense"}
    if matrix.part is not None:
        return {"": "is one of several matrices in a tensor"}
    if not places:
        return {"": "is no parameter of a module"}
    whys = {}
    for place in places:
        around = () if place.holder is None else (place.holder,)
        if why := why_dense(place.layer, *around):
            whys[place.name] = why
    turned = {matrix.layout.transposed != is_conv1d(place.layer) for place in places}
    if not whys and len(turned) > 1:
        return {"": "is one parameter of layers that hold it upright and transposed"}
    if not whys and turned == {True} and isinstance(weight, PerGate):
        return {"": "is a pair a gate, and held transposed"}
    return whys


def _why(name: str, whys: dict[str, str]) -> str:
    if name in whys or "" in whys:
        return whys.get(name, whys.get("", ""))
    other, why = next(iter(whys.items()))
    return f"is one parameter with {other}: {why}"


def _dense(entry: Entry, opened: Opened) -> Tensor:
    """Return the dense values of an entry.

    Raises
    ------
    LayoutError
        They would be cut to integers.
    """
    value = opened.tensor(entry.owner)
    if value.is_floating_point() and not entry.tensor.is_floating_point():
        raise LayoutError(
            f"is {value.dtype}, and the model's is {entry.tensor.dtype}",
            path=opened.facts.path,
            tensor=entry.owner,
        )
    return value


def _like(parameter: Tensor, weight: LowRank | PerGate, *, turned: bool) -> LowRank | PerGate:
    """Return a weight's factors where and how a parameter is; those of its transpose if `turned`.

    Opened weights are upright by the word of the layout; what counts is how the layer holds them.
    """
    if isinstance(weight, PerGate):
        pairs = zip(weight.gates, weight.pairs(), strict=True)
        return PerGate({gate: _pair_like(parameter, pair.U, pair.V) for gate, pair in pairs})
    U, V = (weight.V.T, weight.U.T) if turned else (weight.U, weight.V)
    return _pair_like(parameter, U, V)


def _pair_like(parameter: Tensor, U: Tensor, V: Tensor) -> LowRank:
    factors = (
        factor.detach().to(parameter.device, parameter.dtype).contiguous() for factor in (U, V)
    )
    return LowRank(*(nn.Parameter(factor, parameter.requires_grad) for factor in factors))
