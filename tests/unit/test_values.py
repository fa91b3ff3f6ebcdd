"""The small values everything else is made of: errors, digests, names that import late."""

import hashlib
import os
from pathlib import Path

import pytest

from ckptshrink.digest import CHUNK, canonical_json, file_sha256, value_sha256
from ckptshrink.errors import CkptshrinkError, PlanError, printable
from ckptshrink.gates import GateLayout, GateMatrix, Part
from ckptshrink.payload import TORCH_DTYPES
from ckptshrink.registry import Registry
from ckptshrink.stored import blocks_of, entries_of
from ckptshrink.tensors import ITEMSIZE, nbytes_of


def test_an_error_says_what_and_where() -> None:
    error = CkptshrinkError("is wrong", path=Path("a/b.pt"), tensor="rnn.weight", hint="mend it")
    assert str(error) == "rnn.weight [a/b.pt]: is wrong"
    assert str(CkptshrinkError("is wrong", path="b.pt")) == "b.pt: is wrong"
    assert str(CkptshrinkError("is wrong", tensor="t")) == "t: is wrong"
    assert str(CkptshrinkError("is wrong")) == "is wrong"


def test_names_from_files_reach_no_terminal_raw() -> None:
    assert printable("\x1b[31mred\n\u202e") == "\\x1b[31mred\\n\\u202e"
    assert printable("Umlaut ü 日本") == "Umlaut ü 日本"
    assert "\x1b" not in str(CkptshrinkError("is wrong", tensor="\x1b[2J"))


def test_a_file_is_hashed_as_its_bytes(tmp_path: Path) -> None:
    for size in (0, 1, CHUNK - 1, CHUNK, CHUNK + 1):
        data = os.urandom(size)
        (tmp_path / "f").write_bytes(data)
        assert file_sha256(tmp_path / "f") == hashlib.sha256(data).hexdigest()


def test_a_value_has_one_text() -> None:
    assert canonical_json({"b": [1, "ü"], "a": None}) == '{"a":null,"b":[1,"ü"]}'.encode()
    assert value_sha256({"a": 1, "b": 2}) == value_sha256({"b": 2, "a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


def test_a_registry_imports_late_and_suggests() -> None:
    table = Registry("method", {"svd": "math:sqrt", "prune": "nowhere:nothing"}, "no.such.group")
    assert table.names() == ("svd", "prune")
    assert table.get("svd")(9) == 3
    with pytest.raises(PlanError, match="unknown method 'svdd'; known: svd, prune") as caught:
        table.get("svdd")
    assert caught.value.hint == "did you mean 'svd'?"


def test_gates_of_a_transposed_part_are_runs_of_columns() -> None:
    layout = GateLayout("ijfo", axis=1, transposed=True, joint_input=True, forget_bias=1.0)
    matrix = GateMatrix("Wh", "W_0", (8, 64), 0, "forward", layout, Part(0, 8, 16), "lstm")
    assert matrix.key == "W_0.Wh"
    assert blocks_of(matrix, "stacked") == [("W_0.Wh", None, (8, 64))]
    assert blocks_of(matrix, "per-gate") == [
        (f"W_0.Wh.{gate}", Part(1, 16 * i, 16 * (i + 1)), (8, 16)) for i, gate in enumerate("ijfo")
    ]
    entries = entries_of(matrix, method="svd", rank=3, grouping="per-gate", dtype="BF16")
    assert entries[:2] == [("W_0.Wh.i.U", (8, 3), "BF16"), ("W_0.Wh.i.V", (3, 16), "BF16")]
    assert sum(nbytes_of(shape, dtype) for _, shape, dtype in entries) == 4 * 3 * (8 + 16) * 2


def test_a_plain_matrix_has_one_block_whatever_the_grouping() -> None:
    matrix = GateMatrix("linear", "dense.weight", (5, 7))
    assert blocks_of(matrix, "per-gate") == [("dense.weight", None, (5, 7))]


def test_every_dtype_code_has_a_torch_dtype_of_its_size() -> None:
    assert {code: dtype.itemsize for code, dtype in TORCH_DTYPES.items()} == ITEMSIZE
