"""Run the command line as ``python -m ckptshrink_cli``."""

from ckptshrink_cli.main import entry

entry()
