"""The model card of an artefact: what it is, what became of each tensor, how to use it."""

from ckptshrink.manifest import Manifest, TensorRecord

_FRONT = """\
---
library_name: ckptshrink
base_model_relation: quantized
tags:
- low-rank
- compressed
---
"""

_FOOTNOTE = (
    "Bytes are those of the source's files, and of the files listed in `manifest.json`; tied "
    "weights count once."
)

_FROM_PRETRAINED = (
    "`from_pretrained` knows no factors, and would fill in random weights for them: give it the",
    "restored folder, and not this one.",
    "",
)


def model_card(manifest: Manifest) -> str:
    """Return the Markdown text of the card; the same manifest gives the same text."""
    source, totals = manifest.source, manifest.totals
    worst = max(
        (
            r.rel_error
            for r in manifest.tensors
            if r.action == "factorize" and r.rel_error is not None
        ),
        default=None,
    )
    lines = [
        f"{_FRONT}",
        f"# {_code(source.file)}, compressed",
        "",
        f"Made from {_code(source.file)} ({source.family}, {source.nbytes:,} bytes) by ckptshrink",
        f"{manifest.tool.version}; the source's SHA-256 is `{source.sha256}`.",
        "",
        "| | before | after |",
        "|---|---:|---:|",
        f"| parameters | {totals.n_params_before:,} | {totals.n_params_after:,} |",
        f"| bytes | {totals.nbytes_before:,} | {totals.nbytes_after:,} |",
        "",
        _FOOTNOTE + (f" The largest relative error is {worst:.4g}." if worst is not None else ""),
        "",
        "## Tensors",
        "",
        "| name | role | shape | fate | rank | error | parameters | why |",
        "|---|---|---|---|---:|---:|---:|---|",
        *(_row(record) for record in manifest.tensors),
        "",
        "## Use",
        "",
        "A factored tensor `T` is stored as `T.U` and `T.V` with T ≈ U V, in the orientation in",
        "which T was stored; a pruned one as `T.mask` (one bit an element) and `T.values`. Check",
        "the files, or get the dense checkpoint back in its own container:",
        "",
        "    ckptshrink verify .",
        "    ckptshrink restore . -o " + _shell(source.file),
        "",
        *(_FROM_PRETRAINED if "config.json" in source.sidecars else ()),
    ]
    return "\n".join(lines)


def _row(record: TensorRecord) -> str:
    fate = record.method if record.action == "factorize" else record.action
    error = f"{record.rel_error:.4g}" if record.action == "factorize" else ""
    shape = " × ".join(map(str, record.shape)) or "scalar"
    cells = (
        _code(record.name), record.role or "", shape, fate or "", str(record.rank or ""), error,
        f"{record.n_params_after:,}", _plain(record.reason),
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is and no table cell ends at."""
    kept = "".join(c if c.isprintable() else "?" for c in text)
    for mark in "\\`*_<>[]|":
        kept = kept.replace(mark, f"\\{mark}")
    return kept


def _code(text: str) -> str:
    """Return a name as code; a backtick or bar in it, possible in a hostile file, is replaced."""
    kept = "".join(c if c.isprintable() and c not in "`|" else "?" for c in text)
    return f"`{kept}`"


def _shell(name: str) -> str:
    safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in name).lstrip("-")
    return safe or "restored"
