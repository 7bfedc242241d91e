"""Each row of the page of faults names a test or a script that is there."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "robustness.md").read_text()


def test_every_row_names_tests_and_scripts_that_exist():
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith("| tried |")]
    assert len(rows) > 30
    for row in rows:
        named = re.findall(r"`((?:tests|scripts)/[^`]+)`", row.rsplit(" | ", 1)[1])
        assert named, row
        for name in named:
            path, _, test = name.partition("::")
            source = (ROOT / path).read_text()
            assert not test or re.search(rf"^(async )?def {test}\(", source, re.M), name


def test_what_the_page_says_of_fake_users_is_what_was_measured():
    runs = json.loads((ROOT / "docs/results/poisoning.json").read_text())["runs"].values()
    assert len(runs) >= 3

    def reach(arm: str, scorer: str = "implicitrec") -> float:
        return sum(run["attacks"][arm]["exposure"][scorer] for run in runs) / len(runs)

    plain, followed = (
        reach("quiet, 5 %", one) for one in ("implicitrec", "co-occurrence (last 3, window 3)")
    )
    assert reach("quiet, 1 %") < 0.02 and 0.08 < plain < 0.12 and 0.17 < reach("quiet, 10 %") < 0.23
    assert plain < 0.5 * followed
    assert all(
        reach("quiet, 5 %", one) < 0.02 for one in ("EASE (lambda 30)", "item kNN (100 neighbours)")
    )
    assert reach("loud, 5 %, bots are dropped") == 0
    assert 0.01 < reach("loud, 5 %, bots are kept") < 0.05
    wild = reach("heavy, 5 %, nothing clipped") - plain
    assert wild > plain
    assert reach("heavy, 5 %, weights up to 10") - plain < 0.5 * wild
    assert reach("heavy, 5 %, weights up to 2") - plain < 0.3 * wild
