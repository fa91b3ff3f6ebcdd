"""Match stored names against the patterns of layout files, fast enough for 300,000 names."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from ckptshrink.layouts.rules import Pattern, Tokens

R = TypeVar("R")
_Groups = dict[str, str]

_REMEMBERED: Final = 4096
"""Names or parts of names that one memory holds before it is emptied."""

_WORDS: Final = re.compile("[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_LETTERS: Final = re.compile("[a-z]+")


@dataclass(frozen=True, slots=True)
class Hit(Generic[R]):
    """A rule whose pattern a name matches.

    Attributes
    ----------
    rule
    prefix : str
        Components before those that the scope matched, each ending in ``/``.
    groups : mapping of str to str
        Named groups that took part in the match.
    """

    rule: R
    prefix: str
    groups: Mapping[str, str]


class NameMatcher(Generic[R]):
    """Patterns of many rules. Remembers what leaves and scopes match, since they repeat."""

    def __init__(self, rules: Iterable[tuple[Pattern, R]]) -> None:
        self._rules = tuple(_Remembering(pattern, rule) for pattern, rule in rules)
        self._by_leaf: dict[str, list[tuple[_Remembering[R], _Groups]]] = {}

    def hits(self, name: str) -> list[Hit[R]]:
        """Return the rules that match `name`, in the order in which they were given."""
        parent, leaf = split_name(name)
        candidates = self._by_leaf.get(leaf)
        if candidates is None:
            _make_room(self._by_leaf)
            candidates = self._by_leaf[leaf] = [
                (known, _given(match))
                for known in self._rules
                if (match := known.pattern.leaf.fullmatch(leaf)) is not None
            ]
        found = []
        starts = [len(parent)]
        for known, leaf_groups in candidates:
            depth = known.pattern.depth
            while len(starts) <= depth and starts[-1] > 0:
                starts.append(parent.rfind("/", 0, starts[-1] - 1) + 1)
            scoped = known.scope(parent, starts[: depth + 1])
            if scoped is not None:
                n_scope, groups = scoped
                prefix = parent[: len(parent) - n_scope]
                found.append(Hit(known.rule, prefix, {**leaf_groups, **groups}))
        return found


class _Remembering(Generic[R]):
    """A rule's pattern, and what its scope made of the ends of paths."""

    def __init__(self, pattern: Pattern, rule: R) -> None:
        self.pattern = pattern
        self.rule = rule
        self._by_tail: dict[str, tuple[int, _Groups] | None] = {}

    def scope(self, parent: str, starts: list[int]) -> tuple[int, _Groups] | None:
        """Return how many characters at the end of `parent` the scope matches, and its groups.

        Parameters
        ----------
        starts : list of int
            Where the last components begin, the very last first.
        """
        scope = self.pattern.scope
        if scope is None:
            return (0, {})
        tail = parent[starts[-1] :]
        if tail not in self._by_tail:
            _make_room(self._by_tail)
            # starting at components only keeps a long name linear, where a leading .* would not
            matches = (scope.fullmatch(parent, start) for start in reversed(starts))
            match = next(filter(None, matches), None)
            self._by_tail[tail] = match and (len(parent) - match.start(), _given(match))
        return self._by_tail[tail]


def _given(match: re.Match[str]) -> _Groups:
    return {key: text for key, text in match.groupdict().items() if text is not None}


def _make_room(memory: dict[str, Any]) -> None:
    # a hostile file has as many different names as it has tensors
    if len(memory) >= _REMEMBERED:
        memory.clear()


def split_name(name: str) -> tuple[str, str]:
    """Return the path before a name's last component, every component ending in ``/``, and that.

    Examples
    --------
    >>> split_name("rnns.0.module.weight_ih_l0")
    ('rnns/0/module/', 'weight_ih_l0')
    """
    path = name.replace(".", "/")
    end = path.rfind("/") + 1
    return path[:end], path[end:]


class WordFinder:
    """Finds words that make a name look recurrent."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._by_component: dict[str, tuple[str | None, bool]] = {}

    def find(self, name: str) -> str | None:
        """Return the word for which a name looks recurrent, unless another word excuses it.

        Only the last two components count: ``rnn.fc.weight`` is a Linear in a model called so.
        """
        parent, leaf = split_name(name)
        above = parent[parent.rfind("/", 0, len(parent) - 1) + 1 : -1]
        (one, excused), (other, also_excused) = self._judged(leaf), self._judged(above)
        return None if excused or also_excused else one or other

    def _judged(self, component: str) -> tuple[str | None, bool]:
        """Return the recurrent word of a component, and whether the component excuses the name."""
        if component not in self._by_component:
            _make_room(self._by_component)
            # both ways, since a change of case parts LSTMCell rightly and RNNs wrongly
            words = [word.lower() for word in _WORDS.findall(component)]
            words += _LETTERS.findall(component.lower())
            tokens = self._tokens
            excused = not tokens.exempt.isdisjoint(words) or (
                tokens.exempt_component.fullmatch(component) is not None
            )
            found = next((word for word in words if tokens.recurrent.fullmatch(word)), None)
            self._by_component[component] = (found, excused)
        return self._by_component[component]
