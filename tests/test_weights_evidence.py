"""What the page on weights claims is what the ablation measured."""

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
NUMBER = r"0\.\d{4} ± 0\.\d{4}"


def test_every_number_of_the_page_is_in_the_tables():
    claimed = re.findall(NUMBER, (DOCS / "weights_evidence.md").read_text())
    measured = set(re.findall(NUMBER, (DOCS / "results" / "weights.md").read_text()))
    assert len(claimed) > 20
    assert [number for number in claimed if number not in measured] == []
