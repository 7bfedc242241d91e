"""`pipeline("recommendation")` says what the model says, for every form of history."""

import json

import pytest
import torch
from tiny_models import tiny
from transformers import pipeline

from modeling_implicitrec import ImplicitRecProcessor, RecommendationPipeline, save_checkpoint

LOG = {
    "item_id": [*"abcabdabef"],
    "event_type": ["view", "buy"] * 5,
    "count": [1, 2, 3, 1, 2, 3, 1, 2, 3, 1],
    "duration": [10.0, 20.0, 30.0, 40.0, 50.0] * 2,
}
EVENTS = [
    {"item_id": "a", "event_type": "buy", "timestamp": 10, "count": 3, "duration": 50.0},
    {"item_id": "b", "event_type": "view", "timestamp": 20, "count": 1, "duration": 10.0},
    {"item_id": "unknown", "event_type": "view", "timestamp": 30, "count": 1, "duration": 10.0},
]
COLUMNS = {name: [event[name] for event in EVENTS] for name in EVENTS[0]}


@pytest.fixture(scope="module")
def recommend(tmp_path_factory) -> RecommendationPipeline:
    folder = tmp_path_factory.mktemp("checkpoint")
    processor = ImplicitRecProcessor.fit(LOG)
    sizes = {"vocab_size": processor.vocab_size, "num_event_types": processor.num_event_types}
    save_checkpoint(folder, model=tiny(**sizes), processor=processor)
    return pipeline("recommendation", model=str(folder), device="cpu")


def test_it_is_what_the_model_recommends(recommend):
    histories = [EVENTS, EVENTS[:1]]
    top = recommend.model.recommend(**recommend.processor(histories), top_k=3)
    ranked = recommend(histories, top_k=3)
    for row, tokens, scores in zip(ranked, top.item_tokens, top.scores, strict=True):
        assert [item["item_id"] for item in row] == recommend.processor.decode_items(tokens)
        assert [item["score"] for item in row] == scores.tolist()
        assert scores.tolist() == sorted(scores.tolist(), reverse=True)


def test_every_form_of_one_history_is_the_same_history(recommend):
    plural = {f"{name}s": values for name, values in COLUMNS.items()}
    assert recommend(EVENTS) == recommend(COLUMNS) == recommend(plural)
    assert recommend([EVENTS]) == recommend([COLUMNS]) == [recommend(EVENTS)]
    assert recommend(["a", "b"]) == recommend([{"item_id": "a"}, {"item_id": "b"}])
    assert recommend(EVENTS) != recommend(["a", "b"])  # times and strengths count


def test_batches_of_any_size_give_the_same(recommend):
    histories = [["a"], ["b", "c", "a", "d"], EVENTS, ["e", "f"], ["a", "b"]]
    one_by_one = [recommend(history) for history in histories]
    for size in (1, 2, 3, 5, 64):
        ranked = recommend(histories, batch_size=size)
        assert [[item["item_id"] for item in row] for row in ranked] == [
            [item["item_id"] for item in row] for row in one_by_one
        ]
        for row, expected in zip(ranked, one_by_one):
            assert [i["score"] for i in row] == pytest.approx(
                [i["score"] for i in expected], abs=1e-5
            )


def test_seen_items_and_short_lists(recommend):
    new = recommend(["a", "b"], top_k=50, exclude_seen=True)
    every = recommend(["a", "b"], top_k=50)
    assert sorted(item["item_id"] for item in new) == [*"cdef"]
    assert sorted(item["item_id"] for item in every) == [*"abcdef"]
    assert recommend(["a", "b"], top_k=2, exclude_seen=True) == new[:2]
    assert recommend(["never seen"], top_k=6) == recommend([["never seen"]], top_k=6)[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("a", "expected a history or a list of histories, got 'a'"),
        ([], "expected a history or a list of histories"),
        ([["a"], "b"], "history 1: expected a list of items or events"),
        ([[1]], "item ids of this processor are strings"),
        ({"timestamp": [1]}, "expected item_id in every event"),
    ],
)
def test_another_form_is_refused(recommend, given, message):
    with pytest.raises(ValueError, match=message):
        recommend(given)


def test_options_and_parts_that_do_not_fit_are_refused(recommend):
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        recommend(["a"], batch_size=0)
    with pytest.raises(ValueError, match="top_k must be at least 1"):
        recommend(["a"], top_k=0)
    with pytest.raises(TypeError, match="top_n"):
        recommend(["a"], top_n=3)
    other = ImplicitRecProcessor.fit({"item_id": [1, 2]})
    with pytest.raises(ValueError, match="do not belong together"):
        pipeline("recommendation", model=recommend.model, processor=other, device="cpu")


def test_of_a_long_history_the_latest_events_are_read(tmp_path):
    processor = ImplicitRecProcessor.fit(LOG)
    model = tiny(vocab_size=processor.vocab_size, num_event_types=3, max_position_embeddings=4)
    save_checkpoint(tmp_path, model=model, processor=processor)
    recommend = pipeline("recommendation", model=str(tmp_path), device="cpu")
    assert recommend([*"abcdefabcd"]) == recommend([*"abcd"])
    recommend.processor.max_length = 2
    assert recommend([*"abcdefabcd"]) == recommend([*"cd"])
    with pytest.raises(ValueError, match=r"longer than max_position_embeddings 4.*adapt_to"):
        model.recommend(**ImplicitRecProcessor.fit(LOG)([[*"abcde"]]))


def test_only_candidates_are_ranked(recommend):
    every = recommend([EVENTS, ["c"]], top_k=6)

    def among(place: int, items: str) -> list[str]:
        return [item["item_id"] for item in every[place] if item["item_id"] in items]

    def found(*histories, **asked) -> list[list[str]]:
        return [[i["item_id"] for i in row] for row in recommend(list(histories), **asked)]

    given = ["f", "c", "unknown", "d", "c"]
    expected = [among(0, "fcd"), among(1, "fcd")]
    assert found(EVENTS, ["c"], candidate_item_ids=given) == expected
    assert found(EVENTS, ["c"], candidate_item_ids=given, batch_size=1) == expected
    own = [["f", "a"], ["b", "c", "e"]]
    assert found(EVENTS, ["c"], candidate_item_ids=own) == [among(0, "fa"), among(1, "bce")]
    assert found(["c"], candidate_item_ids=["c", "d"], exclude_seen=True) == [["d"]]
    assert recommend(["c"], candidate_item_ids=["unknown"]) == []
    with pytest.raises(ValueError, match="must be a list of item ids, or one for each of 2, got"):
        recommend([["a"], ["b"]], candidate_item_ids=[["a"]])


def test_the_moment_of_asking_is_that_of_each_history():
    processor = ImplicitRecProcessor.fit({"item_id": [*"abcdef"]})
    model = tiny(vocab_size=7, use_query_time=True, num_trend_events=4, trend_context=1)
    model.fit_trend(processor.encode_items([*"eeef"]), [1000, 1001, 1002, 50_000])
    with torch.no_grad():
        model.head.trend.level.fill_(4.0)
    recommend = pipeline("recommendation", model=model, processor=processor, device="cpu")
    events = {"item_id": ["a", "b"], "timestamp": [900, 950]}
    histories, asked = [events, ["c"], events], [1100, 1100, 50_100]
    ranked = recommend(histories, query_time=asked, top_k=1)
    assert [row[0]["item_id"] for row in ranked[::2]] == ["e", "f"]
    assert ranked[1] == recommend(["c"], top_k=1)  # it has no times
    for history, moment, row in zip(histories, asked, ranked):
        (alone,) = recommend(history, query_time=moment, top_k=1)
        assert alone["item_id"] == row[0]["item_id"]
        assert alone["score"] == pytest.approx(row[0]["score"], abs=1e-5)
    with pytest.raises(ValueError, match="query_time must be seconds since 1970, or one for each"):
        recommend(events, query_time=1_700_000_000_000)


def test_it_saves_a_whole_checkpoint(recommend, tmp_path):
    recommend.save_pretrained(tmp_path)
    again = pipeline("recommendation", model=str(tmp_path), device="cpu")
    assert again(EVENTS) == recommend(EVENTS)
    kept = json.loads((tmp_path / "config.json").read_text())["custom_pipelines"]
    assert kept["recommendation"]["impl"] == "pipeline_implicitrec.RecommendationPipeline"
    assert (tmp_path / "pipeline_implicitrec.py").exists()
    assert torch.equal(again.model.item_frequency, recommend.model.item_frequency)


def test_an_item_id_that_is_a_float_is_named():
    processor = ImplicitRecProcessor.fit({"item_id": [*"aab"]})
    model = tiny(vocab_size=processor.vocab_size)
    recommend = pipeline("recommendation", model=model, processor=processor, device="cpu")
    with pytest.raises(ValueError, match="item ids must be strings or integers, got 1.5"):
        recommend([1.5])
