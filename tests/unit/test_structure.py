"""The plain structure around tensors: what it names, and what is left when some are dropped."""

from typing import Any

from ckptshrink.io.structure import tensors_in, without

_NODE: dict[str, Any] = {
    "dict": [
        ["model", {"dict": [["a", {"tensor": "a"}], ["b", {"tensor": "b"}]]}],
        ["opt", {"dict": [["state", {"list": [{"tensor": "x"}, {"tuple": [{"tensor": "y"}]}]}]]}],
        ["epoch", {"value": 3}],
    ]
}


def test_names_in_stored_order() -> None:
    assert list(tensors_in(_NODE)) == ["a", "b", "x", "y"]


def test_dropped_entries_go_with_their_key() -> None:
    kept = without(_NODE, {"x", "y", "b"})
    assert kept == {
        "dict": [["model", {"dict": [["a", {"tensor": "a"}]]}], ["epoch", {"value": 3}]]
    }


def test_a_list_keeps_its_length() -> None:
    node = {"list": [{"tensor": "a"}, {"tensor": "b"}, {"value": 1}]}
    assert without(node, {"a"}) == {"list": [{"value": None}, {"tensor": "b"}, {"value": 1}]}


def test_deep_nesting_is_no_recursion_error() -> None:
    node: dict[str, Any] = {"tensor": "deep"}
    for _ in range(100_000):
        node = {"list": [node]}
    assert list(tensors_in(node)) == ["deep"]
