"""Which settings the tasks have; imports nothing, so that a help text can."""

from collections.abc import Mapping
from typing import Final

DOWNSTREAM: Final = ("sst5", "snli", "squad")
"""Tasks whose model stands on an ELMo, in an interpreter that has AllenNLP."""

TASKS_OF_SETTING: Final[Mapping[str, tuple[str, ...]]] = {
    "vocab": ("lm",),
    "train_text": ("lm",),
    "splits": ("lm",),
    "unk": ("lm",),
    "eos": ("lm",),
    "archive": DOWNSTREAM,
    "train": DOWNSTREAM,
    "train_data": DOWNSTREAM,
    "validation_data": DOWNSTREAM,
    "python": DOWNSTREAM,
    "overrides": DOWNSTREAM,
    "command": ("command",),
    "better": ("command",),
    "units": ("command",),
}
"""Settings that not every task has, and those which have them."""
