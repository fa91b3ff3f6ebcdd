"""Run what was compressed, without multiplying it back.

The public names are imported when first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ckptshrink.runtime.allennlp import factor_elmo
    from ckptshrink.runtime.attaching import attach
    from ckptshrink.runtime.elmo import Elmo, load_elmo
    from ckptshrink.runtime.gru import FactoredGRU
    from ckptshrink.runtime.language_model import LanguageModel, load_language_model
    from ckptshrink.runtime.linear import FactoredEmbedding, FactoredLinear
    from ckptshrink.runtime.lstm import FactoredLSTM
    from ckptshrink.runtime.state import load_state_dict
    from ckptshrink.runtime.weights import LowRank, PerGate

_HOMES = {
    "Elmo": "elmo",
    "FactoredEmbedding": "linear",
    "FactoredGRU": "gru",
    "FactoredLSTM": "lstm",
    "FactoredLinear": "linear",
    "LanguageModel": "language_model",
    "LowRank": "weights",
    "PerGate": "weights",
    "attach": "attaching",
    "factor_elmo": "allennlp",
    "load_elmo": "elmo",
    "load_language_model": "language_model",
    "load_state_dict": "state",
}

__all__ = [
    "Elmo",
    "FactoredEmbedding",
    "FactoredGRU",
    "FactoredLSTM",
    "FactoredLinear",
    "LanguageModel",
    "LowRank",
    "PerGate",
    "attach",
    "factor_elmo",
    "load_elmo",
    "load_language_model",
    "load_state_dict",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
