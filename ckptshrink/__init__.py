"""Rewrite saved checkpoints into smaller ones, and prove what became of them.

The public names are imported when first used, so that ``import ckptshrink`` loads no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ckptshrink.version import __version__

if TYPE_CHECKING:
    from ckptshrink.io.detect import open_checkpoint
    from ckptshrink.layouts import recognise
    from ckptshrink.payload import Compute
    from ckptshrink.plan import Plan, Settings, read_plan
    from ckptshrink.planning.opened import plan_checkpoint
    from ckptshrink.planning.request import Request, Size, Target
    from ckptshrink.rewrite import compress, restore
    from ckptshrink.verification import verify

_HOMES = {
    "Compute": "ckptshrink.payload",
    "Plan": "ckptshrink.plan",
    "Request": "ckptshrink.planning.request",
    "Settings": "ckptshrink.plan",
    "Size": "ckptshrink.planning.request",
    "Target": "ckptshrink.planning.request",
    "compress": "ckptshrink.rewrite",
    "open_checkpoint": "ckptshrink.io.detect",
    "plan_checkpoint": "ckptshrink.planning.opened",
    "read_plan": "ckptshrink.plan",
    "recognise": "ckptshrink.layouts",
    "restore": "ckptshrink.rewrite",
    "verify": "ckptshrink.verification",
}

__all__ = [
    "Compute",
    "Plan",
    "Request",
    "Settings",
    "Size",
    "Target",
    "__version__",
    "compress",
    "open_checkpoint",
    "plan_checkpoint",
    "read_plan",
    "recognise",
    "restore",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
