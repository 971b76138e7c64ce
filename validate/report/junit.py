"""A verdict as JUnit XML, which every CI reads."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from ..verdict import Comparison, Verdict
from .summary import legible, numbers, reason

_NOTHING = Comparison("all", "validation", obstacle="nothing was compared")


def to_junit(verdict: Verdict) -> str:
    """One test suite per component, one test case per comparison.

    What failed is a `failure`; what could not be compared is an `error`, and so is a verdict of no comparisons: nothing
    but a comparison that passed looks like one.
    Source of the format: junit-10.xsd of the Jenkins xUnit plugin, which GitHub's and GitLab's readers follow.
    """
    comparisons = verdict.comparisons or (_NOTHING,)
    root = Element("testsuites", {"name": "vaefix-validate", **_counts(comparisons)})
    for component, group in groupby(comparisons, key=lambda comparison: comparison.component):
        cases = tuple(group)
        counts = _counts(cases)
        suite = SubElement(root, "testsuite", {"name": legible(component), **counts, "skipped": "0"})
        properties = SubElement(suite, "properties")
        for name in ("artifact", "reference", "target"):
            SubElement(properties, "property", name=name, value=legible(getattr(verdict, name)))
        for comparison in cases:
            _case(suite, comparison)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _counts(comparisons: Sequence[Comparison]) -> dict[str, str]:
    statuses = [comparison.status for comparison in comparisons]
    return {
        "tests": str(len(statuses)),
        "failures": str(statuses.count("failed")),
        "errors": str(statuses.count("not compared")),
    }


def _case(suite: Element, comparison: Comparison) -> None:
    name = legible(f"{comparison.kind} {comparison.output}".strip())
    case = SubElement(suite, "testcase", classname=legible(comparison.component), name=name)
    if comparison.status != "passed":
        tag = "failure" if comparison.status == "failed" else "error"
        why = reason(comparison)
        SubElement(case, tag, type=comparison.status, message=why).text = why
    if comparison.difference is not None:
        max_abs, relative, psnr_db = numbers(comparison)
        lines = [f"max abs {max_abs}, relative error {relative}, PSNR {psnr_db} dB"]
        lines += [legible(f"warning: {warning}") for warning in comparison.warnings]
        SubElement(case, "system-out").text = "\n".join(lines)
