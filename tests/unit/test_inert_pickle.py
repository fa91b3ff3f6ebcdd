"""The inert decoder agrees with pickle on plain values, and calls nothing on anything else."""

import collections
import os
import pickle
import pickletools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptshrink.errors import CorruptCheckpointError, UnsafeCheckpointError
from ckptshrink.io import inert_pickle, pickle_machine
from ckptshrink.io.inert_pickle import decode
from ckptshrink.io.pickle_machine import TruncatedPickleError
from ckptshrink.io.pickle_records import (
    Items,
    Made,
    Pairs,
    Persistent,
    Token,
    Value,
    as_items,
    as_pairs,
    attributes,
    class_name,
)

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def plain(value: Value) -> Any:
    """Turn records of plain values into the values, for comparison."""
    if isinstance(value, Made):
        kinds = {"builtins.set": set, "builtins.frozenset": frozenset}
        if class_name(value) in kinds:
            return kinds[class_name(value)](plain(value.args[0]))
        assert class_name(value) == "_codecs.encode"  # bytes, before protocol 3
        return plain(value.args[0]).encode("latin-1")
    if isinstance(value, Pairs):
        return {plain(k): plain(v) for k, v in value.pairs}
    if isinstance(value, Items):
        kinds = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
        return kinds[value.kind](map(plain, value.items))
    return value


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**900), 2**900)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(min_size=1)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(SCALARS, inner, max_size=4)
        | st.frozensets(st.integers(), max_size=4)
        | st.sets(st.text(max_size=3), max_size=4)
    ),
    max_leaves=20,
)


@given(VALUES, st.sampled_from(PROTOCOLS))
def test_plain_values_are_those_of_pickle(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    decoded = decode(data + b"more")
    assert plain(decoded.value) == value
    assert decoded.end == len(data)


@given(VALUES, st.sampled_from(PROTOCOLS), st.data())
def test_every_prefix_is_truncated(value: Any, protocol: int, data: st.DataObject) -> None:
    whole = pickle.dumps(value, protocol)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(TruncatedPickleError):
        decode(whole[:cut])


def test_every_opcode_of_pickle_is_known() -> None:
    known = {chr(code) for code in inert_pickle._HANDLERS} | {"."}
    assert known == {op.code for op in pickletools.opcodes}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_call_stays_a_record(protocol: int) -> None:
    class Gadget:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, ("exit 1",)

    value = decode(pickle.dumps(Gadget(), protocol)).value
    assert isinstance(value, Made)
    assert class_name(value) in {"posix.system", "nt.system"}
    assert value.args == ["exit 1"]


class Slotted:
    """An object with state in both a dict and slots."""

    __slots__ = ("__dict__", "slot")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_objects_keep_class_state_and_items(protocol: int) -> None:
    ordered = collections.OrderedDict([("b", 1), ("a", 2)])
    found = decode(pickle.dumps(ordered, protocol)).value
    assert as_pairs(found) == [("b", 1), ("a", 2)]
    counter = decode(pickle.dumps(collections.defaultdict(list, {3: 4}), protocol)).value
    assert as_pairs(counter) == [(3, 4)]
    deque = decode(pickle.dumps(collections.deque([5, 6]), protocol)).value
    assert class_name(deque) == "collections.deque"
    assert isinstance(deque, Made)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_slots_and_dict_are_both_attributes(protocol: int) -> None:
    value = Slotted()
    value.slot, value.plain = 1, 2  # type: ignore[attr-defined]
    found = decode(pickle.dumps(value, protocol)).value
    assert dict(attributes(found) or ()) == {"plain": 2, "slot": 1}
    assert class_name(found) == f"{__name__}.Slotted"


def test_an_ordered_dict_of_python_2_is_a_call_on_lists() -> None:
    two = b"\x80\x02ccollections\nOrderedDict\n](](U\x01aK\x05e](U\x01bK\x07ee\x85R."
    assert as_pairs(decode(two).value) == [("a", 5), ("b", 7)]
    lone = b"\x80\x02ccollections\nOrderedDict\n](](U\x01aee\x85R."
    assert as_pairs(decode(lone).value) == []  # a list of another length is no pair


def test_names_of_python_2_are_todays() -> None:
    assert class_name(decode(b"c__builtin__\nset\n((ltR.").value) == "builtins.set"
    made = decode(b"ccopy_reg\n_reconstructor\n(cmodel\nNet\nc__builtin__\nobject\nNtR.").value
    assert class_name(made) == "model.Net"


def test_strings_of_python_2() -> None:
    assert decode(b"S'a\\x41\\n\\'\\\\'\n.").value == "aA\n'\\"
    assert decode(b"U\x02\xc3\xa9.").value == "é"
    assert decode(b"U\x01\xe9.").value == "é"  # not UTF-8, so Latin-1
    assert decode(b"Va\\u20ac\n.").value == "a€"


def test_a_class_of_the_legacy_container_is_named() -> None:
    data = b"(X\x06\x00\x00\x00modulecmodel\nNet\nNNtQ)\x81."
    decoded = decode(data)
    assert class_name(decoded.value) == "model.Net"
    assert [type(p) for p in decoded.persistent] == [Persistent]


def test_shared_objects_are_shared_records() -> None:
    inner: list[int] = []
    value = decode(pickle.dumps([inner, inner, []])).value
    items = as_items(value)
    assert items is not None
    assert items.items[0] is items.items[1]
    assert items.items[0] is not items.items[2]


@pytest.mark.parametrize(
    "data",
    [
        b"\xff.",  # no opcode
        b".",  # nothing on the stack
        b"(.",
        b"R.",
        b"K\x01K\x02R.",  # called without arguments
        b"K\x01]R.",
        b"t.",  # no mark
        b"e.",
        b"(K\x01e.",  # only a mark's worth on the stack
        b"h\x07.",  # never stored
        b"K\x01K\x02a.",  # appended to a number
        b")K\x02a.",  # a tuple takes no items
        b"(K\x01d.",  # a key without a value
        b"](K\x01u.",
        b"]K\x01K\x02s.",
        b"cos\nsystem\n}b.",  # a state set on a function
        b"]}b.",
        b"cos\nsystem\n)R}b}b.",
        b"K\x01K\x02\x93.",  # a name that is no string
        b"(o.",  # an object without a class
        b"cos\nsystem\n)]\x92.",  # keywords that are no dict
        b"I12x\n.",
        b"F1.2.3\n.",
        b"Lx\n.",
        b"Sabc\n.",
        b"V\\u12\n.",
        b"X\x01\x00\x00\x00\xff.",
        b"\x80\x06N.",
    ],
)
def test_nonsense_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptCheckpointError) as raised:
        decode(data, path="model.pt")
    assert not isinstance(raised.value, TruncatedPickleError)
    assert str(raised.value).startswith("model.pt: ")
    assert "of the pickle" in str(raised.value)


@pytest.mark.parametrize(
    "data",
    [
        b"\x82\x01.",
        b"\x83\x01\x00.",
        b"\x84\x01\x00\x00\x00.",
        b"\x97.",
        b"]\x98.",
        b"Nr\xff\xff\xff\xff.",
        b"Np4294967296\n.",
        b"\x8b\xff\xff\xff\x7f.",
        b"L" + b"9" * 5000 + b"L\n.",
        b"I" + b"9" * 5000 + b"\n.",
    ],
)
def test_what_no_checkpoint_has_is_unsafe(data: bytes) -> None:
    with pytest.raises(UnsafeCheckpointError):
        decode(data)


@pytest.mark.parametrize(
    "data",
    [
        b"\x8d" + (2**60).to_bytes(8, "little") + b"abc",
        b"\x8e" + (2**63).to_bytes(8, "little"),
        b"\x96" + (2**64 - 1).to_bytes(8, "little"),
        b"X\xff\xff\xff\xffabc",
        b"T\xff\xff\xff\xffabc",
        b"\x95" + (2**62).to_bytes(8, "little") + b"N.",
        b"cos\nsystem",
        b"",
    ],
)
def test_lengths_are_compared_with_the_bytes_there_are(data: bytes) -> None:
    with pytest.raises(TruncatedPickleError):
        decode(data)


def test_limits_on_opcodes_stack_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inert_pickle, "MAX_OPS", 1000)
    with pytest.raises(UnsafeCheckpointError, match="1,000 pickle opcodes"):
        decode(b"N0" * 2000)
    monkeypatch.setattr(pickle_machine, "MAX_STACK", 300)
    with pytest.raises(UnsafeCheckpointError, match="nested too deeply"):
        decode(b"(" * 600 + b".")
    monkeypatch.setattr(pickle_machine, "MAX_BYTES", 10_000)
    with pytest.raises(UnsafeCheckpointError, match="10,000 bytes"):
        decode((b"X\x00\x10\x00\x00" + b"a" * 4096 + b"0") * 400)


def test_deep_nesting_within_the_limits_is_no_recursion() -> None:
    depth = 90_000
    decoded = decode(b"]" * depth + b"a" * (depth - 1) + b".")
    value, levels = decoded.value, 0
    while isinstance(value, Items) and value.items:
        value, levels = value.items[0], levels + 1
    assert levels == depth - 1
    del decoded, value  # freeing it must not recurse either


def test_a_token_says_where_it_is_from() -> None:
    value = decode(b"\x80\x04\x8c\x02os\x8c\x06system\x93.").value
    assert isinstance(value, Token)
    assert value.qualified == "os.system"
