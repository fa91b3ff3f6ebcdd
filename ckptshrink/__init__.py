"""Rewrite saved checkpoints into smaller ones, and prove that they still work."""

from ckptshrink.version import __version__

__all__ = ["__version__"]
