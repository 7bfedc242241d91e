"""Counts and matrices of encoded rows."""

import numpy as np
import pytest
from datasets import Dataset

from modeling_implicitrec import matrices, user_counts

DAY = 86_400


def test_events_and_users_are_counted() -> None:
    rows = [{"input_ids": [1, 1, 3]}, {"input_ids": [3]}, {"input_ids": []}]
    for data in (rows, Dataset.from_list(rows)):
        assert matrices.item_counts(data, 5).tolist() == [0, 2, 0, 2, 0]
        assert user_counts(data, 5).tolist() == [0, 1, 0, 2, 0]


def test_a_filtered_dataset_is_read_as_filtered() -> None:
    data = Dataset.from_list([{"input_ids": [1]}, {"input_ids": [2, 2]}, {"input_ids": [3]}])
    assert matrices.item_counts(data.select([2, 0]), 4).tolist() == [0, 1, 0, 1]
    assert matrices.item_counts(data.select(range(1, 3)), 4).tolist() == [0, 0, 2, 1]


def test_the_last_days_end_with_the_last_event() -> None:
    rows = [
        {"input_ids": [1, 2], "timestamps": [0, 5 * DAY]},
        {"input_ids": [2, 3], "timestamps": [7 * DAY, 9 * DAY]},
    ]
    assert user_counts(rows, 4, days=4.5).tolist() == [0, 0, 2, 1]
    assert user_counts(rows, 4, days=4).tolist() == [0, 0, 1, 1]
    dense = matrices.binary_matrix(rows, 4, days=2.5).toarray()
    np.testing.assert_array_equal(dense, [[0, 0, 0, 0], [0, 0, 1, 1]])
    with pytest.raises(ValueError, match="days must be positive"):
        user_counts(rows, 4, days=0)
