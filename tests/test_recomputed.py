"""Every number of the published page follows from the tables beside it, and the audit would notice if it did not."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from audit import Page, sections
from audited_claims import CLAIMS, interval, median

import bnsmooth_cli as bns
from bnsmooth_cli.studies.verdicts import ELSEWHERE

pytestmark = pytest.mark.slow

PUBLISHED = Path(__file__).parents[1] / "docs/reproduction"


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(PUBLISHED)


def test_every_number_of_the_page_follows_from_the_tables_beside_it(page):
    assert page.audit() == []


def test_any_other_number_is_found(page):
    """Every cell of numbers is changed in its last digit."""
    changed = []

    def another(line: re.Match[str]) -> str:
        cells = line[0].split(" | ")
        labels = 2 if "decades" in line[0] or " units " in line[0] or " points " in line[0] else 1
        for i, cell in enumerate(cells):
            if i >= labels and re.search(r"\d", cell) and "`" not in cell:
                cells[i] = re.sub(r"\d(?=\D*$)", lambda digit: str((int(digit[0]) + 3) % 10), cell)
                changed.append(cells[i].removesuffix(" |"))
        return " | ".join(cells)

    text = re.sub(r"(?<=\n)\| (?!---)[^\n]+(?=\n)(?!\n\| ---)", another, page.text)
    found = [line for line in page.audit(text) if " is not " in line]
    assert len(changed) > 500
    assert len(found) >= len(changed)


def test_what_no_test_knows_is_found(page):
    heading = next(line for line in page.text.splitlines() if line.startswith("| study | content | runs |"))
    *_, last = sections(page.text)
    changes = {
        heading: heading.replace("runs | ", ""),  # and no other column says n
        f"## {last}\n": f"## {last}\n\n| seeds | new |\n| --- | --- |\n| 5 | 1.2 |\n\nOf which 3.4 are new.\n",
        " seeds 0 to 4, ": " seeds 0 to 3, ",
    }
    text = page.text
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    found = "\n".join(page.audit(text))
    for said in (
        ": | study | content | steps | recorded time |: a table that no test knows",
        f"{last}: | seeds | new |: a table that no test knows",
        f"{last}: a number that no test knows: 3.4",
        "seeds 0 to 3, 201 steps' is not",
        "no table of studies",
    ):
        assert said in found


def test_the_tables_of_claims_are_the_audited_ones(page):
    """The values of each seed and the statistics, which the page shows rounded."""
    for name, claims in page.verdicts.items():
        rows = bns.read_table(page.folder / f"tables/{name}.claims.parquet").to_dict("records")
        audited = [(number, *claims[number][:2], row) for number in CLAIMS for row in claims[number][2]]
        rows = [row for row in rows if row["part"] != ELSEWHERE]
        assert len(rows) == len(audited), name
        for row, (number, verdict, strength, wanted) in zip(rows, audited, strict=True):
            about = f"{name}, claim {number}: {row['part']}"
            assert (row["claim"], row["part"]) == (number, wanted["part"].text)
            assert (row["verdict"], row["part_verdict"]) == (verdict, wanted["verdict"]), about
            numbers = [
                strength,
                wanted["p"],
                wanted["against"],
                wanted.get("paper", math.nan),
                median(wanted["values"]),
            ]
            columns = ["power", "p_value", "p_against", "paper", "median"]
            found = np.array([row[column] for column in columns], float)
            np.testing.assert_allclose(found, numbers, rtol=1e-9, err_msg=about)
            np.testing.assert_allclose(row["values"], wanted["values"], rtol=1e-9, err_msg=about)
            np.testing.assert_allclose([row["low"], row["high"]], interval(wanted["values"]), rtol=1e-9, err_msg=about)
