"""Tables of labels: what would leak an answer, or mean nothing, is refused."""

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from modeling_implicitrec import SequenceRows, ask_table

DAY = 86_400


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"timestamp": 1_700_000_000_000}, "seconds since 1970 or a date.*1700000000000"),
        ({"timestamp": "soon"}, "seconds since 1970 or a date.*soon"),
        ({"timestamp": [DAY, DAY, np.nan]}, "seconds since 1970 or a date.*nan"),
        ({"timestamp": DAY, "label": ["a", None, "b"]}, "1 of 3 have none"),
        ({"user_id": [5, 6, 6]}, "one label, got 1 more, the first of 6"),
        ({"user_id": ["A", "B", "C"]}, "got 0 of 3; users are such as '5', .* 'A'"),
    ],
)
def test_labels_that_would_leak_or_mean_nothing_are_refused(changed, message):
    log = {"user_id": [5, 6, 7], "input_ids": [[1]] * 3, "timestamps": [[0]] * 3}
    table = pd.DataFrame({"user_id": [5, 6, 7], "label": [0, 1, 0]}).assign(**changed)
    with pytest.raises(ValueError, match=message):
        ask_table(SequenceRows(Dataset.from_dict(log)), table)


def test_rows_without_times_have_no_moments():
    rows = SequenceRows(Dataset.from_dict({"user_id": [5], "input_ids": [[1]]}))
    with pytest.raises(ValueError, match="rows with timestamps, these have none"):
        ask_table(rows, pd.DataFrame({"user_id": [5], "label": [0]}))
