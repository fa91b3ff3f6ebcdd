"""Names that stand for objects which are imported when first asked for."""

import difflib
import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from ckptshrink.errors import PlanError


class Registry:
    """A table from lower-case, hyphenated names to lazy ``"module:attribute"`` references.

    Third parties add names by an entry point of the group given; a name that is
    already taken is refused, so that an installed package can't replace a built-in.

    Parameters
    ----------
    kind : str
        What the table holds, for messages: ``"method"``.
    builtin : mapping of str to str
        Names and their ``"module:attribute"``.
    group : str
        Entry point group, for instance ``"ckptshrink.factorizers"``.
    """

    def __init__(self, kind: str, builtin: Mapping[str, str], group: str) -> None:
        self.kind = kind
        self._builtin = dict(builtin)
        self._group = group
        self._loaded: dict[str, Any] = {}

    def names(self) -> tuple[str, ...]:
        """Return every known name, built-in first."""
        found = (e.name for e in entry_points(group=self._group))
        return (*self._builtin, *sorted(set(found) - set(self._builtin)))

    def check(self, name: str) -> None:
        """Refuse a name that is not known, without importing what it stands for.

        Raises
        ------
        PlanError
            See `get`.
        """
        if name not in self.names():
            raise self._unknown(name)

    def get(self, name: str) -> Any:
        """Import and return the object called `name`.

        Raises
        ------
        PlanError
            No such name; the message lists what there is and what is close.
        """
        if name not in self._loaded:
            if name in self._builtin:
                module, _, attribute = self._builtin[name].partition(":")
                self._loaded[name] = getattr(importlib.import_module(module), attribute)
            else:
                self._loaded[name] = self._from_entry_point(name)
        return self._loaded[name]

    def _from_entry_point(self, name: str) -> Any:
        for entry in entry_points(group=self._group):
            if entry.name == name:
                return entry.load()
        raise self._unknown(name)

    def _unknown(self, name: str) -> PlanError:
        close = difflib.get_close_matches(name, self.names(), n=1)
        return PlanError(
            f"unknown {self.kind} {name!r}; known: {', '.join(self.names())}",
            hint=f"did you mean {close[0]!r}?" if close else None,
        )
