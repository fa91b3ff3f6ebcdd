"""Training of recurrent language models: AWD-LSTM's recipe, and an ELMo's biLM.

Everything takes modules: a model that was made from scratch, one whose weights are pairs, or one
that was loaded from a file. The public names are imported when first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ckptshrink.training.bilm import BiLM, BiLMSizes
    from ckptshrink.training.bilm_hdf5 import read_bilm, write_bilm
    from ckptshrink.training.bilm_making import new_bilm
    from ckptshrink.training.making import new_language_model
    from ckptshrink.training.recipe import Recipe
    from ckptshrink.training.regularized import Dropouts, Regularized
    from ckptshrink.training.streams import Streams
    from ckptshrink.training.trainer import Report, Trainable, train

_HOMES = {
    "BiLM": "bilm",
    "BiLMSizes": "bilm",
    "Dropouts": "regularized",
    "Recipe": "recipe",
    "Regularized": "regularized",
    "Report": "trainer",
    "Streams": "streams",
    "Trainable": "trainer",
    "new_bilm": "bilm_making",
    "new_language_model": "making",
    "read_bilm": "bilm_hdf5",
    "train": "trainer",
    "write_bilm": "bilm_hdf5",
}

__all__ = [
    "BiLM",
    "BiLMSizes",
    "Dropouts",
    "Recipe",
    "Regularized",
    "Report",
    "Streams",
    "Trainable",
    "new_bilm",
    "new_language_model",
    "read_bilm",
    "train",
    "write_bilm",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
