"""HTML that holds whatever a file says and is never moved by it.

Names of tensors and files, messages and notes come from strangers. Everything on a page goes
through `text`, `code` or `href`; what these give is inert in an element and in a quoted attribute.
"""

import base64
import hashlib
import html
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, NamedTuple
from urllib.parse import quote

from ckptshrink.errors import printable
from ckptshrink.zoo.pages.style import SCRIPT, STYLE

_MOST_TEXT: Final = 2_000
_MOST_NAME: Final = 300

_UNBROKEN: Final = 12
_BREAKS: Final = re.compile(r"[/_.]+(?=\w)")


def _hash(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


_POLICY: Final = (
    f"default-src 'none'; style-src {_hash(STYLE)}; script-src {_hash(SCRIPT)}; "
    "base-uri 'none'; form-action 'none'"
)
"""Our style and our script and nothing else: should a name ever get out of its place, it could
neither run nor load anything, nor change how the page looks."""


def text(said: object, most: int = _MOST_TEXT) -> str:
    r"""Return any text as HTML; no more of it than `most` characters, without its middle.

    Control characters, lone surrogates and marks that turn the direction of writing are shown as
    escapes.

    Examples
    --------
    >>> text("<b>\u202e'x'")
    '&lt;b&gt;\\u202e&#x27;x&#x27;'
    >>> text("a" * 50, most=20)
    'aaaaaaaaaa … (50 characters) … aaaaa'
    """
    whole = str(said)
    if len(whole) > most:
        head, tail = whole[: most // 2], whole[-(most // 4) :]
        whole = f"{head} … ({len(whole):,} characters) … {tail}"
    return html.escape(printable(whole))


def name(said: str, most: int = _MOST_NAME) -> str:
    """Return a name, set apart from what is around it, whichever way its letters are written.

    Where it is long it may be broken after the marks between its parts.

    Examples
    --------
    >>> name("lm.pt"), name("a_rather/long_name/lm.pt")
    ('<bdi>lm.pt</bdi>', '<bdi>a_<wbr>rather/<wbr>long_<wbr>name/<wbr>lm.<wbr>pt</bdi>')
    """
    shown = text(said, most)
    if len(said) > _UNBROKEN:
        shown = _BREAKS.sub(r"\g<0><wbr>", shown)
    return f"<bdi>{shown}</bdi>"


def code(said: str, most: int = _MOST_NAME) -> str:
    """Return a name as a program would say it."""
    return f"<code>{name(said, most)}</code>"


def href(path: str) -> str:
    """Return the relative URL of a path, fit for a quoted attribute.

    Examples
    --------
    >>> href("../a b/50%.pt"), href("javascript:alert(1)"), href("//example.org")
    ('../a%20b/50%25.pt', './javascript%3Aalert%281%29', './//example.org')
    """
    try:
        raw = path.encode("utf-8", "surrogateescape")  # the bytes that the name has on the disk
    except UnicodeEncodeError:
        raw = path.encode("utf-8", "replace")
    # with a dot in front it can name neither a scheme nor a host
    return ("" if path.startswith("../") else "./") + quote(raw, safe="/")


def link(path: str, shown: str) -> str:
    """Return a link; `shown` is HTML."""
    return f'<a href="{href(path)}">{shown}</a>'


class Cell(NamedTuple):
    """What stands in a cell.

    Attributes
    ----------
    content : str
        HTML.
    value : float or None
        What it is sorted by, where that is not its text.
    mark : str
        Its class.
    """

    content: str
    value: float | None = None
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes
    ----------
    title : str
    kind : "row", "number", "word", "long" or ""
        ``row`` is the header of its row, ``word`` is never broken, ``long`` may be a sentence.
    """

    title: str
    kind: Literal["row", "number", "word", "long", ""] = ""

    def head(self) -> str:
        """Return the cell above the column."""
        return f'<th scope="col"{_class(self.kind)}>{self.title}</th>'

    def cell(self, cell: Cell | str) -> str:
        """Return a cell below."""
        content, value, mark = (cell, None, "") if isinstance(cell, str) else cell
        if self.kind == "row":
            return f'<th scope="row">{content}</th>'
        key = "" if value is None else f' data-v="{value}"'
        return f"<td{_class(self.kind, mark)}{key}>{content}</td>"


@lru_cache(maxsize=1_000)
def _class(kind: str, mark: str = "") -> str:
    own = {"number": "n", "word": "w", "long": "long"}.get(kind, "")
    names = f"{own} {mark}".strip()
    return f' class="{names}"' if names else ""


def row(columns: Sequence[Column], cells: Iterable[Cell | str], mark: str = "") -> str:
    """Return a row of a table."""
    found = (column.cell(cell) for column, cell in zip(columns, cells, strict=True))
    start = f'<tr class="{mark}">' if mark else "<tr>"
    return f"{start}{''.join(found)}</tr>\n"


def table(
    columns: Sequence[Column],
    rows: Iterable[str],
    label: str,
    *,
    sortable: bool = False,
) -> Iterator[str]:
    """Yield a table that scrolls by itself where it is too wide.

    Parameters
    ----------
    columns : sequence of Column
    rows : iterable of str
        See `row`.
    label : str
        What a screen reader calls it; plain text.
    sortable : bool
        Whether the script makes buttons of the heads of its columns.
    """
    said = text(label, _MOST_NAME)
    yield f'<div class="scroll" role="region" tabindex="0" aria-label="{said}">\n'
    yield '<table class="sortable">\n' if sortable else "<table>\n"
    yield f"<thead><tr>{''.join(column.head() for column in columns)}</tr></thead>\n<tbody>\n"
    yield from rows
    yield "</tbody>\n</table>\n</div>\n"


def facts(pairs: Iterable[tuple[str, str]], kind: Literal["facts", "tiles"] = "facts") -> str:
    """Return terms and what they are; these are HTML."""
    found = (f"<dt>{term}</dt><dd>{what}</dd>" for term, what in pairs)
    if kind == "tiles":
        found = (f"<div>{each}</div>" for each in found)
    return f'<dl class="{kind}">\n' + "\n".join(found) + "\n</dl>\n"


def document(title: str, body: Iterable[str]) -> Iterator[str]:
    """Yield a page.

    Parameters
    ----------
    title : str
        Plain text.
    body : iterable of str
        HTML.
    """
    yield (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{text(title, _MOST_NAME)}</title>\n<style>{STYLE}</style>\n"
        f"<script>{SCRIPT}</script>\n</head>\n<body>\n"
    )
    yield from body
    yield "</body>\n</html>\n"
