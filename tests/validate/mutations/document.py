"""The tables of docs/validation.md. To make them again:

    python -m pytest tests/validate/mutations -m "" -o junit_family=xunit1 --junitxml=results.xml
    python -m tests.validate.mutations.document results.xml

Rows whose test was not run, or failed, keep what they say.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from xml.etree import ElementTree

from .conversions import HEALTHY, Conversion
from .fault import GENERATION, Fault
from .faults import FAULTS

DOCUMENT = Path(__file__).parents[3] / "docs" / "validation.md"
FAULT_HEAD = ("Planted", "In", "Caught by", "Saying")
HEALTHY_HEAD = ("Converted", "For", "Stored in", "Compared", "Closest to its limit: relative error")
Row = tuple[str, ...]


def fault_row(fault: Fault) -> Row:
    """What is known beforehand: all cells but the last."""
    caught = f"{fault.component}: {fault.caught}"
    layer = f", first differs in `{fault.layer}`" if fault.layer else ""
    drawn = f"; {GENERATION}: {fault.drawn}" if fault.drawn else ""
    emulated = f"; in f32 it is right, --emulate {fault.emulate} shows it" if fault.emulate else ""
    return fault.name, fault.where or fault.base, f"{caught}{layer}{drawn}{emulated}"


def healthy_row(conversion: Conversion) -> Row:
    """What is known beforehand: all cells but the last."""
    precision = ", ".join(stored if name == "*" else f"{name} {stored}" for name, stored in conversion.precision.items())
    return conversion.about, conversion.target, precision, conversion.what


def read(text: str, head: Row) -> dict[Row, str]:
    """Of the table with this head: the cells of a row but the last -> the last."""
    _, _, rest = text.partition(_line(head))
    lines = rest.lstrip("\n").partition("\n\n")[0].splitlines()[1:]
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    return {row[:-1]: row[-1] for row in rows}


def written(text: str, head: Row, rows: Mapping[Row, str]) -> str:
    """The text with other rows in the table that has this head."""
    before, line, rest = text.partition(_line(head))
    _, gap, after = rest.lstrip("\n").partition("\n\n")
    table = "\n".join([line, _line("---" for _ in head), *(_line((*cells, last)) for cells, last in rows.items())])
    return f"{before}{table}\n{gap[1:]}{after}" if gap else f"{before}{table}\n"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def measured(results: Path) -> dict[str, str]:
    """What the tests that passed have measured, by the name of their parameter; results: JUnit XML of pytest."""
    found = {}
    for case in ElementTree.parse(results).iter("testcase"):
        value = case.find("properties/property[@name='measured']")
        if value is not None and case.find("failure") is None:
            name = case.attrib["name"].partition("[")[2].removesuffix("]")
            found[name] = value.attrib["value"].replace("|", "/").partition("\n")[0]
    return found


def main(results: Iterable[str]) -> None:
    """Write the tables."""
    found = {name: value for path in results for name, value in measured(Path(path)).items()}
    text = DOCUMENT.read_text(encoding="utf-8")
    faults = {fault_row(fault): fault.id for fault in FAULTS}
    healthy = {healthy_row(conversion): conversion.id for conversion in HEALTHY}
    for head, rows in ((FAULT_HEAD, faults), (HEALTHY_HEAD, healthy)):
        old = read(text, head)
        text = written(text, head, {row: found.get(name, old.get(row, "")) for row, name in rows.items()})
    DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
