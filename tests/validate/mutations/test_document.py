"""docs/validation.md lists exactly the faults and conversions that are tested."""

from __future__ import annotations

import re

from .conversions import HEALTHY
from .document import DOCUMENT, FAULT_HEAD, HEALTHY_HEAD, fault_row, healthy_row, read
from .fault import FIRST_OUTPUT, GENERATION
from .faults import FAULTS

TEXT = DOCUMENT.read_text(encoding="utf-8")
AGAIN = "make the tables again, see document.py"


def test_the_table_of_faults_is_that_of_the_tests() -> None:
    rows = read(TEXT, FAULT_HEAD)
    assert [*rows] == [fault_row(fault) for fault in FAULTS], AGAIN
    assert all(rows.values()), AGAIN


def test_the_table_of_healthy_conversions_is_that_of_the_tests() -> None:
    rows = read(TEXT, HEALTHY_HEAD)
    assert [*rows] == [healthy_row(conversion) for conversion in HEALTHY], AGAIN
    assert all(rows.values()), AGAIN


def test_there_are_enough_of_both_and_they_are_different() -> None:
    assert len({(fault.name, fault.component) for fault in FAULTS}) >= 60
    assert {fault.component for fault in FAULTS} == {*FIRST_OUTPUT, GENERATION}
    assert len({fault.id for fault in FAULTS}) == len(FAULTS)
    assert len({healthy_row(conversion) for conversion in HEALTHY}) == len(HEALTHY) >= 60


def test_the_counts_in_the_text_are_true() -> None:
    counts = re.findall(r"\*\*(\d+) faults\*\* and \*\*(\d+) healthy conversions\*\*", TEXT)
    assert counts == [(str(len(FAULTS)), str(len(HEALTHY)))]
