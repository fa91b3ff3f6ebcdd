"""A verdict as JUnit XML, which Jenkins, GitLab and most other servers show as test results."""

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import Final

from ckptshrink.errors import printable
from ckptshrink.evaluation.gate import wording
from ckptshrink.evaluation.gate.verdict import Check, Verdict

_CLASS: Final = "ckptshrink.gate"
"""Class of every test case. Models and tasks stand in the name of a case: servers split the class
at its dots, and would file ``elmo.hdf5`` as the class ``hdf5`` of a package ``elmo``."""


def junit(verdict: Verdict) -> bytes:
    """Return a JUnit document with one test case for each rule.

    FAIL is a ``failure``. INCONCLUSIVE is an ``error`` of type ``inconclusive``, since a skipped
    case is green. The name of a case has the task, the model and the metric in it and none of the
    numbers, so that a server can follow it from run to run. Control characters, which XML can't
    carry, are escaped.
    """
    n_failures = sum(check.status == "FAIL" for check in verdict.checks)
    n_errors = sum(check.status == "INCONCLUSIVE" for check in verdict.checks)
    counts = {
        "tests": str(len(verdict.checks)), "failures": str(n_failures), "errors": str(n_errors)
    }  # fmt: skip
    root = ET.Element("testsuites", {"name": "ckptshrink gate", **counts})
    suite = ET.SubElement(root, "testsuite", {"name": _suite(verdict), **counts, "skipped": "0"})
    for check, name in zip(verdict.checks, case_names(verdict), strict=True):
        _add_case(suite, check, name)
    ET.indent(root, " ")
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def case_names(verdict: Verdict) -> tuple[str, ...]:
    """Return the names of the test cases: no two are alike, since servers keep one of those."""
    names: list[str] = []
    for check in verdict.checks:
        name = f"{_suite(verdict)}: {wording.metric(check)}"
        if name in names:
            name = f"{name} ({check.rule.kind})"
        plain, number = name, 2
        while name in names:
            name, number = f"{plain} {number}", number + 1
        names.append(name)
    return tuple(names)


def _suite(verdict: Verdict) -> str:
    return f"{printable(verdict.task)}: {printable(verdict.candidate)}"


def _add_case(suite: ET.Element, check: Check, name: str) -> None:
    case = ET.SubElement(suite, "testcase", {"classname": _CLASS, "name": name})
    if check.status == "PASS":
        return
    failed = check.status == "FAIL"
    kind, type_ = ("failure", "fail") if failed else ("error", "inconclusive")
    said = ET.SubElement(case, kind, {"type": type_, "message": wording.because(check)})
    said.text = "\n".join(_lines(check))


def _lines(check: Check) -> Iterator[str]:
    """Yield what a server shows below the name of a case that did not pass."""
    yield f"{check.status}: {wording.because(check)}"
    yield f"baseline: {wording.value(check, check.baseline)}"
    yield f"candidate: {wording.value(check, check.candidate)}"
    found = {
        "loss": wording.loss(check),
        "interval": wording.interval(check),
        "allowed": wording.allowed(check.rule),
        "examples": "" if check.n is None else str(check.n),
        "smallest loss that would show": wording.detectable(check),
        "decided by": check.method,
        "reason of the rule": wording.reason(check),
    }
    yield from (f"{what}: {text}" for what, text in found.items() if text)
