"""An inert decoder of pickles: it builds records, and imports, calls and sets nothing.

A name stays a `Token`, a call becomes a `Made` record of what would have been called. There is no
find_class here and no call of anything that a file names, so that there is nothing to bypass.
"""

import codecs
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import Final

from ckptshrink.errors import CorruptCheckpointError, UnsafeCheckpointError
from ckptshrink.io.pickle_records import Items, Made, Pairs, Persistent, Token, Value

MAX_BYTES: Final = 128 << 20
"""Bytes that one pickle may take. Weights lie beside it; it holds names, options, a vocabulary."""

MAX_OPS: Final = 2_000_000
"""Opcodes in one pickle: a vocabulary of 270,000 words, as list and as dict, takes 1.3 million."""

MAX_STACK: Final = 200_000
"""Values waiting on the stack. Picklers batch by 1,000, so that only deep nesting comes near."""

_MAX_DIGITS: Final = 1024
_HIGHEST_PROTOCOL: Final = 5


class TruncatedPickleError(CorruptCheckpointError):
    """The bytes given end inside the pickle."""


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
    return _Machine(data, start, path).run()


class _Machine:
    """The pickle machine: a stack with marks, a memo, and a position in the bytes."""

    __slots__ = ("data", "marks", "memo", "path", "persistent", "pos", "stack", "start")

    def __init__(self, data: bytes, start: int, path: str | PathLike[str] | None) -> None:
        self.data = data
        self.pos = self.start = start
        self.path = path
        self.stack: list[Value] = []
        self.marks: list[int] = []
        self.memo: dict[int, Value] = {}
        self.persistent: list[Persistent] = []

    def run(self) -> Decoded:
        data, size = self.data, len(self.data)
        for n_ops in range(MAX_OPS):
            if self.pos >= size:
                raise self.truncated()
            op = data[self.pos]
            self.pos += 1
            if op == _STOP:
                return Decoded(self.pop(), self.pos, tuple(self.persistent))
            handler = _HANDLERS.get(op)
            if handler is None:
                raise self.corrupt(f"unknown pickle opcode {op:#04x}")
            handler(self)
            if not n_ops & 0xFF:  # often enough, and not felt
                self.check_limits()
        raise self.unsafe(f"more than {MAX_OPS:,} pickle opcodes")

    def check_limits(self) -> None:
        if len(self.stack) + len(self.marks) > MAX_STACK:
            raise self.unsafe("nested too deeply for a checkpoint")
        if self.pos - self.start > MAX_BYTES:
            raise self.unsafe(f"a pickle of more than {MAX_BYTES:,} bytes")

    # Errors have the position: it is what one looks up in a disassembly.

    def corrupt(self, message: str) -> CorruptCheckpointError:
        return CorruptCheckpointError(self.placed(message), path=self.path)

    def unsafe(self, message: str) -> UnsafeCheckpointError:
        return UnsafeCheckpointError(self.placed(message), path=self.path)

    def placed(self, message: str) -> str:
        return f"{message}, at byte {self.pos - self.start:,} of the pickle"

    def truncated(self) -> TruncatedPickleError:
        return TruncatedPickleError(
            "ends inside its pickle", path=self.path, hint="fetch the file again"
        )

    # Arguments. A length is compared with the bytes there are before anything is made of it.

    def take(self, n: int) -> bytes:
        end = self.pos + n
        if end > len(self.data):
            raise self.truncated()
        chunk = self.data[self.pos : end]
        self.pos = end
        return chunk

    def uint(self, nbytes: int) -> int:
        return int.from_bytes(self.take(nbytes), "little")

    def line(self) -> bytes:
        end = self.data.find(b"\n", self.pos)
        if end < 0:
            raise self.truncated()
        chunk = self.data[self.pos : end]
        self.pos = end + 1
        return chunk

    def utf8(self, data: bytes) -> str:
        try:
            return str(data, "utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise self.corrupt("a string that is not UTF-8") from error

    def number(self, convert: Callable[[bytes], int | float], line: bytes) -> int | float:
        if len(line) > _MAX_DIGITS:  # int() takes quadratic time
            raise self.unsafe(f"a number of {len(line):,} digits")
        try:
            return convert(line)
        except ValueError as error:
            raise self.corrupt("a number that is none") from error

    # The stack. What lies under the last mark belongs to an outer object.

    def top(self) -> Value:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise self.corrupt("a pickle opcode with nothing on the stack")
        return self.stack[-1]

    def pop(self) -> Value:
        value = self.top()
        del self.stack[-1]
        return value

    def pop_to_mark(self) -> list[Value]:
        if not self.marks:
            raise self.corrupt("a pickle opcode without its mark")
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def pop_args(self) -> list[Value]:
        args = self.pop()
        if not isinstance(args, Items) or args.kind != "tuple":
            raise self.corrupt("a call without a tuple of arguments")
        return args.items

    def pop_pairs(self) -> list[tuple[Value, Value]]:
        flat = self.pop_to_mark()
        if len(flat) % 2:
            raise self.corrupt("a key without a value")
        return list(zip(flat[::2], flat[1::2], strict=True))

    # What the opcodes do, where it takes more than a line.

    def drop(self) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.pop()

    def memoize(self, index: int) -> None:
        if index >= MAX_OPS:
            raise self.unsafe(f"memo index {index:,}")
        self.memo[index] = self.top()

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise self.corrupt(f"memo index {index:,} was never stored")
        self.stack.append(self.memo[index])

    def line_index(self) -> int:
        return int(self.number(int, self.line()))

    def integer_line(self) -> None:
        line = self.line()
        flags = {b"00": False, b"01": True}  # protocols 0 and 1 have no opcode for a bool
        self.stack.append(flags[line] if line in flags else self.number(int, line))

    def long_bytes(self, n: int) -> None:
        if n > _MAX_DIGITS:
            raise self.unsafe(f"an integer of {n:,} bytes")
        self.stack.append(int.from_bytes(self.take(n), "little", signed=True))

    def quoted_line(self) -> None:
        line = self.line().strip()
        if len(line) < 2 or line[0] != line[-1] or line[:1] not in (b"'", b'"'):
            raise self.corrupt("a string without its quotes")
        self.stack.append(_python2_text(_ESCAPE.sub(_unescaped, line[1:-1])))

    def unicode_line(self) -> None:
        try:
            # Called by name and not through str(), which would import the codec's module.
            self.stack.append(codecs.raw_unicode_escape_decode(self.line())[0])
        except ValueError as error:
            raise self.corrupt("a string with a broken escape") from error

    def tuple_of(self, n: int) -> None:
        items = [self.pop() for _ in range(n)]
        self.stack.append(Items("tuple", items[::-1]))

    def named(self) -> Token:
        return Token(self.utf8(self.line()), self.utf8(self.line()))

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise self.corrupt("a global whose name is not a string")
        self.stack.append(Token(module, name))

    def refer(self, pid: Value) -> None:
        reference = Persistent(pid)
        self.persistent.append(reference)
        self.stack.append(reference)

    def call(self) -> None:
        args = self.pop_args()
        self.stack.append(Made(self.pop(), args))

    def call_with_keywords(self) -> None:
        kwargs = self.pop()
        if not isinstance(kwargs, Pairs):
            raise self.corrupt("keyword arguments that are not a dict")
        args = self.pop_args()
        self.stack.append(Made(self.pop(), args, kwargs))

    def instance(self) -> None:
        target = self.named()
        self.stack.append(Made(target, self.pop_to_mark()))

    def object(self) -> None:
        items = self.pop_to_mark()
        if not items:
            raise self.corrupt("an object without a class")
        self.stack.append(Made(items[0], items[1:]))

    def build(self) -> None:
        state = self.pop()
        made = self.top()
        # BUILD on a class would set its attributes; a second one would hide what the first set.
        if not isinstance(made, Made) or made.state is not None:
            raise self.corrupt("a state for something that takes none")
        made.state = state

    def extend(self, new: list[Value], kinds: tuple[str, ...]) -> None:
        target = self.top()
        if isinstance(target, Items) and target.kind in kinds:
            target.items.extend(new)
        elif isinstance(target, Made):
            if target.items is None:
                target.items = []
            target.items.extend(new)
        else:
            raise self.corrupt("items for something that takes none")

    def update(self, new: list[tuple[Value, Value]]) -> None:
        target = self.top()
        if isinstance(target, Pairs):
            target.pairs.extend(new)
        elif isinstance(target, Made):
            if target.pairs is None:
                target.pairs = []
            target.pairs.extend(new)
        else:
            raise self.corrupt("keys for something that takes none")

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.update([(key, value)])

    def protocol(self) -> None:
        version = self.uint(1)
        if version > _HIGHEST_PROTOCOL:
            raise self.corrupt(f"pickle protocol {version}")

    def frame(self) -> None:
        if self.uint(8) > len(self.data) - self.pos:
            raise self.truncated()

    def refuse(self) -> None:
        raise self.unsafe("an extension code or out-of-band buffer, which no checkpoint has")


def _unescaped(match: re.Match[bytes]) -> bytes:
    code = match[1]
    return bytes([int(code[1:], 16)]) if len(code) == 3 else _ESCAPES.get(code, match[0])


def _python2_text(data: bytes) -> str:
    """Decode a string of Python 2, in which text and bytes were the same thing."""
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError:
        return str(data, "latin-1")


_STOP: Final = ord(".")
# The escapes of Python 2's repr() of a string. codecs.escape_decode warns of any other one.
_ESCAPE: Final = re.compile(rb"\\(x[0-9a-fA-F]{2}|.)", re.DOTALL)
_ESCAPES: Final = {b"\\": b"\\", b"'": b"'", b'"': b'"', b"n": b"\n", b"r": b"\r", b"t": b"\t"}
_Handler = Callable[[_Machine], object]
_HANDLERS: Final[dict[int, _Handler]] = {
    # The machine itself.
    0x80: _Machine.protocol,
    0x95: _Machine.frame,
    ord("("): lambda m: m.marks.append(len(m.stack)),
    ord("0"): _Machine.drop,
    ord("1"): _Machine.pop_to_mark,
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
    ord("I"): _Machine.integer_line,
    ord("J"): lambda m: m.stack.append(int.from_bytes(m.take(4), "little", signed=True)),
    ord("K"): lambda m: m.stack.append(m.uint(1)),
    ord("M"): lambda m: m.stack.append(m.uint(2)),
    ord("L"): lambda m: m.stack.append(m.number(int, m.line().removesuffix(b"L"))),
    0x8A: lambda m: m.long_bytes(m.uint(1)),
    0x8B: lambda m: m.long_bytes(m.uint(4)),
    ord("F"): lambda m: m.stack.append(m.number(float, m.line())),
    ord("G"): lambda m: m.stack.append(struct.unpack(">d", m.take(8))[0]),
    # Strings.
    ord("S"): _Machine.quoted_line,
    ord("T"): lambda m: m.stack.append(_python2_text(m.take(m.uint(4)))),
    ord("U"): lambda m: m.stack.append(_python2_text(m.take(m.uint(1)))),
    ord("V"): _Machine.unicode_line,
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
    ord("s"): _Machine.set_item,
    ord("u"): lambda m: m.update(m.pop_pairs()),
    # Names, calls and references: recorded.
    ord("c"): lambda m: m.stack.append(m.named()),
    0x93: _Machine.stack_global,
    ord("R"): _Machine.call,
    0x81: _Machine.call,
    0x92: _Machine.call_with_keywords,
    ord("i"): _Machine.instance,
    ord("o"): _Machine.object,
    ord("b"): _Machine.build,
    ord("P"): lambda m: m.refer(m.utf8(m.line())),
    ord("Q"): lambda m: m.refer(m.pop()),
    # Refused.
    0x82: _Machine.refuse,
    0x83: _Machine.refuse,
    0x84: _Machine.refuse,
    0x97: _Machine.refuse,
    0x98: _Machine.refuse,
}
