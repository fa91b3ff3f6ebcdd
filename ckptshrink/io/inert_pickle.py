"""An inert decoder of pickles: it builds records, and imports, calls and sets nothing.

A name stays a `Token`, a call becomes a `Made` record of what would have been called. There is no
find_class here and no call of anything that a file names, so that there is nothing to bypass.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import Final

from ckptshrink.io.pickle_machine import MAX_OPS, Machine, python2_text
from ckptshrink.io.pickle_records import Items, Pairs, Persistent, Value, without_collection


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Decoded:
    """One decoded pickle: its value, where it ended, and its persistent ids in order."""

    value: Value
    end: int
    persistent: tuple[Persistent, ...]


def decode(data: bytes, start: int = 0, *, path: str | PathLike[str] | None = None) -> Decoded:
    r"""Decode the pickle, of any protocol from 0 to 5, that begins at `start`.

    Parameters
    ----------
    data : bytes
        What follows the pickle's STOP is not looked at.
    start : int
        Where the pickle begins.
    path : path, optional
        The file it is from, for messages.

    Returns
    -------
    Decoded
        Its `end` is the position after STOP, where a stacked pickle begins.

    Raises
    ------
    TruncatedPickleError
        `data` ends first.
    CorruptCheckpointError
        An opcode is unknown, or does not fit what is on the stack.
    UnsafeCheckpointError
        A limit is exceeded, or an extension code or out-of-band buffer is asked for.

    Examples
    --------
    >>> decode(b"cos\nsystem\n(S'ls'\ntR.").value.target.qualified
    'os.system'
    """
    machine = Machine(data, start, path)
    value = run(machine)
    return Decoded(value, machine.pos, tuple(machine.persistent))


def run(machine: Machine) -> Value:
    """Run a machine up to STOP, and return the value on top; raises as `decode` does."""
    with without_collection():
        return _run(machine)


def _run(machine: Machine) -> Value:
    data = machine.data
    size = len(data)
    for n_ops in range(MAX_OPS):
        if machine.pos >= size:
            raise machine.truncated()
        op = data[machine.pos]
        machine.pos += 1
        if op == _STOP:
            return machine.pop()
        handler = _HANDLERS.get(op)
        if handler is None:
            raise machine.corrupt(f"unknown pickle opcode {op:#04x}")
        handler(machine)
        if not n_ops & 0xFF:  # often enough, and not felt
            machine.check_limits()
    raise machine.unsafe(f"more than {MAX_OPS:,} pickle opcodes")


_STOP: Final = ord(".")
_Handler = Callable[[Machine], object]
_HANDLERS: Final[dict[int, _Handler]] = {
    # The machine itself.
    0x80: Machine.protocol,
    0x95: Machine.frame,
    ord("("): lambda m: m.marks.append(len(m.stack)),
    ord("0"): Machine.drop,
    ord("1"): Machine.pop_to_mark,
    ord("2"): lambda m: m.stack.append(m.top()),
    ord("p"): lambda m: m.memoize(m.line_index()),
    ord("q"): lambda m: m.memoize(m.uint(1)),
    ord("r"): lambda m: m.memoize(m.uint(4)),
    0x94: lambda m: m.memoize(len(m.memo)),
    ord("g"): lambda m: m.recall(m.line_index()),
    ord("h"): lambda m: m.recall(m.uint(1)),
    ord("j"): lambda m: m.recall(m.uint(4)),
    # Numbers.
    ord("N"): lambda m: m.stack.append(None),
    0x88: lambda m: m.stack.append(True),
    0x89: lambda m: m.stack.append(False),
    ord("I"): Machine.integer_line,
    ord("J"): lambda m: m.stack.append(int.from_bytes(m.take(4), "little", signed=True)),
    ord("K"): lambda m: m.stack.append(m.uint(1)),
    ord("M"): lambda m: m.stack.append(m.uint(2)),
    ord("L"): lambda m: m.stack.append(m.number(int, m.line().removesuffix(b"L"))),
    0x8A: lambda m: m.long_bytes(m.uint(1)),
    0x8B: lambda m: m.long_bytes(m.uint(4)),
    ord("F"): lambda m: m.stack.append(m.number(float, m.line())),
    ord("G"): lambda m: m.stack.append(struct.unpack(">d", m.take(8))[0]),
    # Strings.
    ord("S"): Machine.quoted_line,
    ord("T"): lambda m: m.stack.append(python2_text(m.take(m.uint(4)))),
    ord("U"): lambda m: m.stack.append(python2_text(m.take(m.uint(1)))),
    ord("V"): Machine.unicode_line,
    ord("X"): lambda m: m.stack.append(m.utf8(m.take(m.uint(4)))),
    0x8C: lambda m: m.stack.append(m.utf8(m.take(m.uint(1)))),
    0x8D: lambda m: m.stack.append(m.utf8(m.take(m.uint(8)))),
    ord("B"): lambda m: m.stack.append(m.take(m.uint(4))),
    ord("C"): lambda m: m.stack.append(m.take(m.uint(1))),
    0x8E: lambda m: m.stack.append(m.take(m.uint(8))),
    0x96: lambda m: m.stack.append(m.take(m.uint(8))),
    # Containers.
    ord(")"): lambda m: m.stack.append(Items("tuple", [])),
    ord("t"): lambda m: m.stack.append(Items("tuple", m.pop_to_mark())),
    0x85: lambda m: m.tuple_of(1),
    0x86: lambda m: m.tuple_of(2),
    0x87: lambda m: m.tuple_of(3),
    ord("]"): lambda m: m.stack.append(Items("list", [])),
    ord("l"): lambda m: m.stack.append(Items("list", m.pop_to_mark())),
    ord("a"): lambda m: m.extend([m.pop()], ("list",)),
    ord("e"): lambda m: m.extend(m.pop_to_mark(), ("list",)),
    0x8F: lambda m: m.stack.append(Items("set", [])),
    0x90: lambda m: m.extend(m.pop_to_mark(), ("set",)),
    0x91: lambda m: m.stack.append(Items("frozenset", m.pop_to_mark())),
    ord("}"): lambda m: m.stack.append(Pairs([])),
    ord("d"): lambda m: m.stack.append(Pairs(m.pop_pairs())),
    ord("s"): Machine.set_item,
    ord("u"): lambda m: m.update(m.pop_pairs()),
    # Names, calls and references: recorded.
    ord("c"): lambda m: m.stack.append(m.named()),
    0x93: Machine.stack_global,
    ord("R"): Machine.call,
    0x81: Machine.call,
    0x92: Machine.call_with_keywords,
    ord("i"): Machine.instance,
    ord("o"): Machine.object,
    ord("b"): Machine.build,
    ord("P"): lambda m: m.refer(m.utf8(m.line())),
    ord("Q"): lambda m: m.refer(m.pop()),
    # Refused.
    0x82: Machine.refuse,
    0x83: Machine.refuse,
    0x84: Machine.refuse,
    0x97: Machine.refuse,
    0x98: Machine.refuse,
}
