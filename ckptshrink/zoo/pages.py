"""What is shown in a browser: a page for each model, and an index of all."""

import html
from collections.abc import Iterable, Iterator
from typing import Any

from ckptshrink.manifest import Manifest
from ckptshrink.zoo.records import Record


def report_page(record: Record, manifest: Manifest | None) -> str:
    """Return the page of one model.

    Parameters
    ----------
    record : Record
    manifest : Manifest or None
        Of its artefact, where there is one.
    """
    title = html.escape(record.name)
    return f"<!doctype html><title>{title}</title>{title}: {record.status}\n"


def index_lines(totals: dict[str, Any], rows: Iterable[dict[str, Any]], out: Any) -> Iterator[str]:
    """Yield the page of a whole batch, line by line."""
    yield "<!doctype html>"
    for row in rows:
        yield f"<p>{html.escape(row['name'])}</p>\n"
