"""Layout files: what users can add, and how a fault in one is named."""

from pathlib import Path

import pytest
from indexes import Shapes, index_of

from ckptshrink.errors import LayoutError
from ckptshrink.layouts import recognise
from ckptshrink.layouts.files import load_layouts, parse_layout

THEIRS = b"""
family = "theirs"
priority = 45
about = "LSTMs of their own names"

[[cells]]
scope = '[^/]*lstm[^/]*/lstm_cell'
leaf = '(?P<part>kernel|recurrent):1'
parts = { kernel = "Wi", recurrent = "Wh" }
kinds = [{ cell = "lstm", gates = "ifco" }]
transposed = true
"""


def test_layouts_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "theirs.toml").write_bytes(THEIRS)
    layouts = load_layouts(tmp_path)
    shapes: Shapes = {
        "lstm/lstm_cell/kernel:1": (3, 16),
        "lstm/lstm_cell/recurrent:1": (4, 16),
    }
    found = recognise(index_of(shapes), layouts)
    assert found.family == "theirs"
    assert [(m.role, m.shape, m.layout.gates, m.layout.axis) for m in found.matrices] == [
        ("Wi", (3, 16), "ifco", 1),
        ("Wh", (4, 16), "ifco", 1),
    ]
    assert len(recognise(index_of(shapes)).unrecognised) == 2
    assert [layout.priority for layout in layouts] == sorted(layout.priority for layout in layouts)


def test_a_family_is_not_defined_twice(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(THEIRS.replace(b'"theirs"', b'"elmo"'))
    with pytest.raises(LayoutError, match="'elmo' is defined already") as caught:
        load_layouts(tmp_path)
    assert caught.value.path == str(tmp_path / "mine.toml")
    with pytest.raises(LayoutError, match="no folder"):
        load_layouts(tmp_path / "none")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"priority = 45", b"", "'priority' is missing"),
        (b"priority = 45", b"priority = true", "'priority' must be of type int"),
        (b"priority = 45", b"priority = 45\ncolour = 1", "unknown key 'colour'"),
        (b"transposed = true", b"transposed = true\nrows = 4", "cells[0]: unknown key 'rows'"),
        (b"transposed = true", b'transposed = "yes"', "'transposed' must be of type bool"),
        (b"(?P<part>kernel|", b"(?P<part>kernel|(", "doesn't compile"),
        (b"?P<part>", b"?P<door>", "unknown group 'door'"),
        (b'"Wh"', b'"W"', "must be one of"),
        (b'"ifco"', b'"iffo"', "a gate is named twice"),
        (b'kinds = [{ cell = "lstm", gates = "ifco" }]', b"", "parts and kinds"),
        (b'kinds = [{ cell = "lstm", gates = "ifco" }]', b"kinds = 4", "must hold tables"),
        (b"[[cells]]", b"[[cells", "no TOML"),
        (b"LSTMs", b"\xff", "no TOML"),
    ],
)
def test_faults_of_layout_files_are_named(old: bytes, new: bytes, message: str) -> None:
    assert old in THEIRS
    with pytest.raises(LayoutError) as caught:
        parse_layout(THEIRS.replace(old, new), "mine.toml")
    assert message in caught.value.message
    assert caught.value.path == "mine.toml"
