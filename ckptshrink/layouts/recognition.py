"""From stored names and shapes to gate matrices, by the layout files. Reads no payload.

The story is `recognise`: set aside what is no part of the model, put recurrent cells together, find
which names only repeat others, give every other matrix its role, and list what looks recurrent and
fits nothing.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ckptshrink.errors import LayoutError
from ckptshrink.gates import GateLayout, GateMatrix
from ckptshrink.io.checkpoint import Checkpoint
from ckptshrink.layouts.cells import Cell, gather_cells, matrices_of, number_layers
from ckptshrink.layouts.files import load_layouts
from ckptshrink.layouts.names import NameMatcher, WordFinder, split_name
from ckptshrink.layouts.rules import (
    BIAS,
    NO_ROLE,
    CopyRule,
    Layout,
    ListRule,
    MatrixRule,
    RecurrentRule,
)
from ckptshrink.tensors import FACTORABLE, TensorRef

__all__ = ["Recognition", "fits_nothing", "load_layouts", "recognise"]

_FLOATING: Final = FACTORABLE | {"F8_E4M3", "F8_E5M2"}


@dataclass(frozen=True, slots=True)
class Recognition:
    """What the layouts say about a checkpoint's tensors.

    Attributes
    ----------
    family : str
        The first layout, by priority, whose marks or recurrent cells were found: ``"fastai"``,
        ``"awd-qrnn"``, ``"awd-lstm"`` (GRUs too), ``"elmo"``, ``"torch-rnn"``, ``"keras"``;
        ``"generic"`` if none were. For display; what a matrix is, its GateMatrix says.
    matrices : tuple of GateMatrix
        In stored order of the tensors, the parts of one in order. None for copies and aliases.
    copies : mapping of str to str
        Those of the checkpoint, and what names alone tell: a name that only repeats the values of
        another tensor, and that tensor.
    aliases : mapping of str to str
        A name that is the very same storage as another tensor, and that tensor.
    roles_of_aliases : mapping of str to str
        The role that an alias has by its own name: ``decoder.weight`` is the softmax, even where
        its values are stored as ``encoder.weight``.
    dropped : mapping of str to str
        Tensors that are no part of the model, and why.
    kept : mapping of str to str
        Tensors that look like weights and are none to compress, and why.
    unrecognised : tuple of (str, str)
        Floating tensors of two or more dimensions that look recurrent and fit no layout, and why
        they look so, or why their shapes don't fit. They have no matrix.
    notes : tuple of str
        What a user should know of such a checkpoint, one line each.
    """

    family: str
    matrices: tuple[GateMatrix, ...]
    copies: Mapping[str, str]
    aliases: Mapping[str, str]
    roles_of_aliases: Mapping[str, str]
    dropped: Mapping[str, str]
    kept: Mapping[str, str]
    unrecognised: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def recognise(
    checkpoint: Checkpoint, layouts: Sequence[Layout] | None = None, *, strict: bool = True
) -> Recognition:
    """Return which tensors of a checkpoint are which matrices.

    Parameters
    ----------
    checkpoint : Checkpoint
    layouts : sequence of Layout, optional
        By priority, as `load_layouts` returns them; the built-in ones if not given.
    strict : bool
        Whether weights that are named like a known cell's, and can't be one by their shapes, are an
        error; otherwise they are among the unrecognised.

    Raises
    ------
    LayoutError
        As above. Names the tensor and the shapes.
    """
    return _Recogniser(checkpoint, load_layouts() if layouts is None else layouts, strict).run()


def fits_nothing(ref: TensorRef, why: str, path: Path) -> LayoutError:
    """Return the error of a tensor that looks recurrent and fits no layout."""
    keep = f"--keep '{ref.name}' leaves it dense"
    plain = f"--target '{ref.name}' takes it as a plain matrix, " if ref.is_plain_matrix else ""
    return LayoutError(
        f"looks recurrent and fits no known layout: {why}",
        path=path,
        tensor=ref.name,
        hint=plain + keep,
    )


class _Recogniser:
    """What is known of a checkpoint so far; the methods are in the order in which they run.

    `known_as` holds names under which to look up roles, `claimed` the tensors of recurrent cells,
    `found` the families whose marks or cells there are; the other fields are those of Recognition.
    """

    def __init__(self, checkpoint: Checkpoint, layouts: Sequence[Layout], strict: bool) -> None:
        self.root = checkpoint.root
        self.tensors = checkpoint.tensors
        self.model_type = checkpoint.model_type
        self.layouts = layouts
        self.strict = strict
        self.copies = dict(checkpoint.copies)
        self.doubts = checkpoint.doubts
        self.aliases: dict[str, str] = {}
        self.dropped: dict[str, str] = {}
        self.kept: dict[str, str] = {}
        self.notes: dict[str, None] = {}
        self.matrices: list[GateMatrix] = []
        self.roles_of_aliases: dict[str, str] = {}
        self.unrecognised: dict[str, str] = {}
        self.known_as: dict[str, str] = {}
        self.claimed: set[str] = set()
        self.found: set[str] = set()

    def run(self) -> Recognition:
        self._follow_aliases()
        self._set_aside()
        self._find_marks()
        self._find_kept()
        cells = self._cells()
        self._find_copies(cells)
        self._find_recurrent()
        self._give_roles()
        place = {name: i for i, name in enumerate(self.tensors)}
        self.matrices.sort(key=lambda m: (place[m.source], m.part.start if m.part else 0))
        return Recognition(
            family=self._family(),
            matrices=tuple(self.matrices),
            copies={name: self._resolved(winner) for name, winner in self.copies.items()},
            aliases=self.aliases,
            roles_of_aliases=self.roles_of_aliases,
            dropped=self.dropped,
            kept=self.kept,
            unrecognised=tuple(
                (name, self.unrecognised[name])
                for name in sorted(self.unrecognised, key=place.__getitem__)
            ),
            notes=tuple(self.notes),
        )

    def _family(self) -> str:
        """Return the family by names, or what ``config.json`` calls it where that agrees."""
        found = [layout for layout in self.layouts if layout.family in self.found]
        if self.model_type is None:
            return found[0].family if found else "generic"
        if any(self.model_type in layout.model_types for layout in found):
            return self.model_type
        names = f"by its names it is {found[0].family}" if found else "no layout knows that"
        self.notes[f"config.json says model_type {self.model_type!r}, {names}"] = None
        return found[0].family if found else "generic"

    def _follow_aliases(self) -> None:
        """Find the tensor that owns the storage of each one that only shares it."""
        earlier = set()
        for name, ref in self.tensors.items():
            # an owner is stored earlier, so that chains end and are followed in one pass
            if ref.shares_with in earlier and ref.shares_with is not None:
                self.aliases[name] = self.aliases.get(ref.shares_with, ref.shares_with)
            earlier.add(name)

    def _set_aside(self) -> None:
        """Find what is no part of the model."""
        rules = [rule for layout in self.layouts for rule in layout.drops]
        heads = [(rule.head, rule.reason) for rule in rules if rule.head is not None]
        matcher = NameMatcher((r.pattern, r) for r in rules if r.pattern is not None)
        for name in self.tensors:
            path = name.replace(".", "/")
            reason = next((why for head, why in heads if head.fullmatch(path)), None)
            if reason is None:
                reason = next((hit.rule.reason for hit in matcher.hits(name)), None)
            if reason is not None:
                self.dropped[name] = reason
        for name, owner in self.aliases.items():
            if name not in self.dropped and owner in self.dropped:
                # an optimizer that holds the model's own weights, and was stored before it
                del self.dropped[owner]
                self.known_as[owner] = name

    def _find_marks(self) -> None:
        """Find the layouts that say by what names they are known."""
        matcher: NameMatcher[tuple[str, bool]] = NameMatcher(
            (mark.pattern, (layout.family, mark.wide))
            for layout in self.layouts
            for mark in layout.marks
        )
        for name, ref in self.tensors.items():
            if name in self.dropped:
                continue
            is_wide = len(ref.shape) == 2 and ref.shape[0] < ref.shape[1]
            for hit in matcher.hits(name):
                family, wide = hit.rule
                if is_wide or not wide:
                    self.found.add(family)

    def _find_kept(self) -> None:
        """Find what is no weight to compress, whatever it looks like."""
        matcher = NameMatcher(
            (rule.pattern, rule)
            for layout in self.layouts
            if self._holds(layout)
            for rule in layout.keeps
        )
        for name in self.tensors:
            hits = matcher.hits(name) if name not in self.dropped else []
            if hits:
                self.kept[name] = hits[0].rule.reason
                if hits[0].rule.note:
                    self.notes[hits[0].rule.note] = None

    def _cells(self) -> list[Cell]:
        """Put recurrent cells together and take their matrices."""
        family_of = {id(rule): layout.family for layout in self.layouts for rule in layout.cells}
        matcher = NameMatcher(
            (rule.pattern, rule)
            for layout in self.layouts
            if not layout.marks or layout.family in self.found
            for rule in layout.cells
        )
        claims = [
            (ref, split_name(ref.name)[0], hits[0])
            for ref in self._plain_matrices()
            if ref.name not in self.doubts and (hits := matcher.hits(ref.name))
        ]
        cells, made = [], []
        gathered = gather_cells(claims)
        for cell, layer in zip(gathered, number_layers(gathered), strict=True):
            try:
                found = matrices_of(cell, layer)
            except LayoutError as error:
                if cell.rule.suspect:
                    continue
                if self.strict:
                    error.path = str(self.root)
                    raise
                for ref in cell.weights.values():
                    self.unrecognised[ref.name] = f"{error.tensor}: {error.message}"
                continue
            if cell.rule.suspect:
                self.unrecognised |= {matrix.source: cell.rule.suspect for matrix in found}
                continue
            made += found
            cells.append(cell)
            self.found.add(family_of[id(cell.rule)])
        self._take(made)
        self.claimed.update(cell.weights[BIAS].name for cell in cells if BIAS in cell.weights)
        return cells

    def _take(self, made: Iterable[GateMatrix]) -> None:
        """Keep the matrices of cells; where the source is an alias, under its owner's name."""
        made = list(made)
        self.claimed = {matrix.source for matrix in made}
        self.matrices = [matrix for matrix in made if matrix.source not in self.aliases]
        moved: dict[str, str] = {}
        for matrix in made:
            alias = matrix.source
            owner = self.aliases.get(alias)
            if owner is None:
                continue
            if matrix.part is None:
                self.roles_of_aliases[alias] = matrix.role
            same_shape = self.tensors[owner].shape == self.tensors[alias].shape
            if same_shape and (owner not in self.claimed or moved.get(owner) == alias):
                # weight_hh_l0 stored before the weight_hh_l0_raw that it shares its storage with
                moved[owner] = alias
                self.claimed.add(owner)
                self.matrices.append(replace(matrix, source=owner))

    def _find_copies(self, cells: Iterable[Cell]) -> None:
        """Find what names alone tell to be a copy."""
        for cell in cells:
            for name, winner in cell.copies.items():
                self._copy(name, winner)
        held = [layout for layout in self.layouts if self._holds(layout)]
        rules: list[CopyRule | ListRule] = [rule for layout in held for rule in layout.copies]
        rules += [rule for layout in held for rule in layout.lists]
        matcher = NameMatcher((rule.pattern, rule) for rule in rules)
        listed: dict[str, list[str]] = {}
        for name in self.tensors:
            if name in self.dropped or name in self.claimed:
                continue
            for hit in matcher.hits(name):
                prefix = name[: len(hit.prefix)]
                if isinstance(hit.rule, CopyRule):
                    self._copy(name, prefix + hit.rule.of)
                    continue
                if prefix not in listed:
                    listed[prefix] = self._listed(prefix, hit.rule)
                place = int(hit.groups.get("index", 0))
                known = listed[prefix][place : place + 1]
                if not known or not self._copy(name, known[0]):
                    self._suspect(name, "it is in a list of recurrent weights, and repeats none")

    def _copy(self, name: str, winner: str) -> bool:
        """Note that `name` repeats `winner`, if it can; whether it does, so or as an alias."""
        if name in self.copies:
            return True
        one, other = self.tensors[name], self.tensors.get(winner)
        if other is None or other is one or (one.shape, one.dtype) != (other.shape, other.dtype):
            return False
        if self.aliases.get(name, name) != self.aliases.get(winner, winner):
            self.copies[name] = winner
        return True

    def _listed(self, prefix: str, rule: ListRule) -> list[str]:
        """Return the names that a list of a module's weights repeats, in its order."""
        outer = prefix[: len(split_name(prefix[:-1])[0])]
        names: list[str] = []
        for layer in range(len(self.tensors)):
            before = len(names)
            for direction in rule.directions:
                for template in rule.order:
                    stem = template.replace("{layer}", str(layer)).replace("{direction}", direction)
                    options = (prefix + stem + rule.raw, outer + stem + rule.raw, prefix + stem)
                    names += [name for name in options if name in self.tensors][:1]
            if len(names) == before:
                break
        return names

    def _find_recurrent(self) -> None:
        """Find what looks recurrent and was claimed by no layout."""
        matcher: NameMatcher[RecurrentRule] = NameMatcher(
            (rule.pattern, rule) for layout in self.layouts for rule in layout.recurrent
        )
        for name, why in self.doubts.items():
            self._suspect(name, why)
        finders = [WordFinder(layout.tokens) for layout in self.layouts if layout.tokens]
        beside = {split_name(name)[0] for name in self.claimed}
        for name, ref in self.tensors.items():
            if len(ref.shape) < 2 or name in self.claimed:
                continue
            hits = matcher.hits(name)
            if hits:
                self._suspect(name, hits[0].rule.why)
                continue
            word = next(filter(None, (finder.find(name) for finder in finders)), None)
            if word is not None and split_name(name)[0] not in beside:
                self._suspect(name, f"its name has the word {word!r}")

    def _suspect(self, name: str, why: str) -> None:
        """List a tensor that looks recurrent, if it could be a weight."""
        ref = self.tensors[name]
        if len(ref.shape) < 2 or ref.dtype not in _FLOATING:
            return
        if name in self.dropped or name in self.copies or name in self.kept:
            return
        if ref.dtype not in FACTORABLE:
            why = f"{why}, and {ref.dtype} is no type whose matrices are factorized"
        owner = self.aliases.get(name)
        if owner is None:
            self.unrecognised.setdefault(name, why)
        elif owner not in self.claimed and owner not in self.copies:
            self.unrecognised.setdefault(owner, f"{name} is the same storage, and {why}")

    def _give_roles(self) -> None:
        """Give every other matrix the role that its name tells, or linear."""
        matcher: NameMatcher[MatrixRule] = NameMatcher(
            (rule.pattern, rule)
            for layout in self.layouts
            if self._holds(layout)
            for rule in layout.matrices
        )
        for ref in self._plain_matrices():
            if ref.name in self.claimed or ref.name in self.unrecognised:
                continue
            hits = matcher.hits(self.known_as.get(ref.name, ref.name))
            role = hits[0].rule.role if hits else "linear"
            transposed = bool(hits) and hits[0].rule.transposed
            if role == NO_ROLE:
                continue
            if ref.name in self.aliases:
                self.roles_of_aliases.setdefault(ref.name, role)
                continue
            layout = GateLayout(axis=1, transposed=True) if transposed else GateLayout()
            shape = (ref.shape[0], ref.shape[1])
            self.matrices.append(GateMatrix(role, ref.name, shape, layout=layout))

    def _plain_matrices(self) -> Iterator[TensorRef]:
        """Yield the tensors that can be factorized and repeat no other by copying."""
        for name, ref in self.tensors.items():
            apart = name in self.dropped or name in self.copies or name in self.kept
            if ref.is_plain_matrix and not apart:
                yield ref

    def _holds(self, layout: Layout) -> bool:
        return not (layout.marks or layout.cells) or layout.family in self.found

    def _resolved(self, name: str) -> str:
        """Return the tensor at the end of a chain of copies and aliases."""
        seen = {name}
        while (following := self.copies.get(name, self.aliases.get(name))) not in {None, *seen}:
            name = str(following)
            seen.add(name)
        return name
