"""junit.py: what a CI reads as a success is one."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest

from vaefix.validate.report import to_junit
from vaefix.validate.verdict import Verdict

# junit-10.xsd: element -> its required attributes, the optional ones, and what may be in it.
SCHEMA: dict[str, tuple[set[str], set[str], set[str]]] = {
    "testsuites": (set(), {"name", "tests", "failures", "errors", "time"}, {"testsuite"}),
    "testsuite": (
        {"name", "tests", "failures", "errors"},
        {"skipped", "time", "timestamp", "hostname", "id", "package"},
        {"properties", "testcase", "system-out", "system-err"},
    ),
    "properties": (set(), set(), {"property"}),
    "property": ({"name", "value"}, set(), set()),
    "testcase": ({"name"}, {"classname", "time", "group"}, {"failure", "error", "skipped", "system-out", "system-err"}),
    "failure": (set(), {"type", "message"}, set()),
    "error": (set(), {"type", "message"}, set()),
    "system-out": (set(), set(), set()),
}


def parsed(verdict: Verdict) -> Element:
    root = ElementTree.fromstring(to_junit(verdict).encode())
    assert root.tag == "testsuites"
    for element in root.iter():
        required, optional, children = SCHEMA[element.tag]
        assert required <= {*element.keys()} <= required | optional, element.tag
        assert {child.tag for child in element} <= children, element.tag
    return root


@pytest.mark.parametrize("names", ["good", "good wrong broken blocked", "blocked", "good good", ""])
def test_counts_are_those_of_the_cases(samples: Any, names: str) -> None:
    root = parsed(samples.verdict(*(getattr(samples, name) for name in names.split())))
    for element in [root, *root.findall("testsuite")]:
        cases = [*element.iter("testcase")]
        assert int(element.attrib["tests"]) == len(cases) > 0
        for tag in ("failure", "error"):
            assert int(element.attrib[f"{tag}s"]) == sum(case.find(tag) is not None for case in cases)


def test_each_comparison_is_a_case_with_its_outcome_reason_and_numbers(full: Verdict) -> None:
    cases = {(case.get("classname"), case.get("name")): case for case in parsed(full).iter("testcase")}
    assert [*cases] == [
        ("unet", "parity good"),
        ("unet", "parity wrong"),
        ("unet", "parity broken"),
        ("vae_decoder", "emulated"),
    ]
    good, wrong, broken, blocked = cases.values()
    assert [child.tag for child in good] == ["system-out"]
    failure, error = wrong.find("failure"), blocked.find("error")
    assert failure is not None
    assert "PSNR" in failure.attrib["message"]
    assert broken.find("failure") is not None
    assert error is not None
    assert error.attrib["message"] == "the graph is unreadable; remedy: convert it again"
    assert good.findtext("system-out") == "max abs 0.0e+00, relative error 0.0e+00, PSNR inf dB"


def test_a_verdict_of_nothing_is_an_error(samples: Any) -> None:
    (case,) = parsed(samples.verdict()).iter("testcase")
    error = case.find("error")
    assert error is not None
    assert error.attrib["message"] == "nothing was compared"


def test_hostile_names_are_text(hostile: Verdict) -> None:
    root = parsed(hostile)
    assert not [*root.iter("script")]
    (name,) = {case.attrib["classname"] for case in root.iter("testcase")}
    assert name.startswith("<script>alert(1)</script>")
