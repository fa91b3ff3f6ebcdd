"""Which layers of torch can run factored weights, and how one turns into its factored stand-in."""

from collections.abc import Mapping
from typing import Final

from torch import nn

from ckptshrink.runtime.gru import FactoredGRU
from ckptshrink.runtime.linear import FactoredEmbedding, FactoredLinear, refusal
from ckptshrink.runtime.lstm import FactoredLSTM
from ckptshrink.runtime.weights import LowRank, PerGate

_KINDS: Final[dict[type[nn.Module], type[nn.Module]]] = {
    nn.Linear: FactoredLinear,
    nn.Embedding: FactoredEmbedding,
    nn.LSTM: FactoredLSTM,
    nn.GRU: FactoredGRU,
}
"""Stand-ins of torch's own layers, by exact class."""


def is_conv1d(layer: nn.Module) -> bool:
    """Tell Hugging Face's Conv1D: a linear layer whose weight is stored as (inputs, outputs)."""
    kind = type(layer)
    return kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")


def kind_of(layer: nn.Module) -> type[nn.Module]:
    """Return the class of the stand-in of a layer that has one."""
    return _KINDS[nn.Linear if is_conv1d(layer) else type(layer)]


def why_dense(layer: nn.Module, *around: nn.Module) -> str | None:
    """Return why a layer can't run factored weights, or None if it can.

    Subclasses can't: their forward may be another. One is `torch.nn.MultiheadAttention`'s output
    layer, whose weight is read and whose forward is never called.

    Parameters
    ----------
    layer : nn.Module
    *around : nn.Module
        Modules that hold it: fastai's weight drop has its raw weight there.
    """
    kind = type(layer).__name__
    if type(layer) not in _KINDS and not is_conv1d(layer):
        return f"{kind} runs dense weights only"
    own = _parameter_names(layer)
    for module in (layer, *around):
        for name in module._parameters:
            if name.endswith("_raw") and name.removesuffix("_raw") in own:
                # AWD-LSTM's WeightDrop: a pair would be overwritten
                return f"{kind} is given {name} anew before every forward"
    if set(layer._parameters) != own:
        return f"{kind} has other parameters than its class makes"
    if "forward" in vars(layer):
        return f"{kind} has had its forward replaced"
    return refusal(layer) if isinstance(layer, nn.Embedding) else None


def stand_in(layer: nn.Module, pairs: Mapping[str, LowRank | PerGate]) -> nn.Module:
    """Return the factored stand-in of a layer, with its other parameters as they are.

    Parameters
    ----------
    layer : nn.Module
        One that `why_dense` has nothing against.
    pairs : mapping of str to LowRank or PerGate
        By the layer's own names: ``"weight_hh_l0"``.
    """
    own = {name: p for name, p in layer._parameters.items() if p is not None}
    made: nn.Module
    if isinstance(layer, nn.LSTM):
        made = FactoredLSTM.from_weights(
            {**own, **pairs}, batch_first=layer.batch_first, dropout=layer.dropout
        )
    elif isinstance(layer, nn.GRU):
        made = FactoredGRU.from_weights(
            {**own, **pairs}, batch_first=layer.batch_first, dropout=layer.dropout
        )
    elif isinstance(layer, nn.Embedding):
        made = FactoredEmbedding(pairs["weight"], layer.padding_idx)
    else:
        made = FactoredLinear(pairs["weight"], own.get("bias"))
    return made.train(layer.training)


def become(layer: nn.Module, other: nn.Module) -> None:
    """Turn a layer into another one in place; its hooks stay.

    Replaced in the modules that hold it, the old layer would live on wherever else it is known: in
    a plain list, in a variable of the user's, as the root of the model.
    """
    of_every_module = vars(nn.Module()).keys() - {
        "_parameters", "_buffers", "_non_persistent_buffers_set", "_modules",
    }  # fmt: skip
    kept = {key: value for key, value in vars(layer).items() if key in of_every_module}
    layer.__class__ = type(other)
    vars(layer).clear()
    vars(layer).update({**vars(other), **kept})


def _parameter_names(layer: nn.Module) -> set[str]:
    """Return the names of the parameters that the class of a layer makes."""
    if isinstance(layer, nn.RNNBase):
        return set(layer._flat_weights_names)
    return {"weight"} if isinstance(layer, nn.Embedding) else {"weight", "bias"}
