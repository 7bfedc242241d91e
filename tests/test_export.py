"""An exported model gives the model's scores, for batches and lengths it was not exported with."""

import pytest
import torch

from modeling_implicitrec import (
    ImplicitRecConfig,
    ImplicitRecForScoring,
    ModelScorer,
    OnnxScorer,
    evaluate,
    export_onnx,
)

pytest.importorskip("onnxruntime", reason="exporting is tested with the extra `onnx`")
pytest.importorskip("onnxscript", reason="exporting is tested with the extra `onnx`")


def tiny(**changes) -> ImplicitRecForScoring:
    torch.manual_seed(0)
    sizes = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 32}
    sizes |= {"num_hidden_layers": 1, "max_position_embeddings": 8}
    model = ImplicitRecForScoring(ImplicitRecConfig(**sizes | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(scope="module")
def model() -> ImplicitRecForScoring:
    """With every term on."""
    torch.manual_seed(0)
    model = tiny(
        num_event_types=3,
        negative_event_type_ids=[2],
        num_platforms=3,
        use_gaps=True,
        use_weight_gate=True,
        use_query_time=True,
        copy_prior=True,
        num_cooccurrences=4,
    )
    model.fit_cooccurrences(torch.randint(1, 31, (31, 4)), torch.rand(31, 4))
    return model


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    return export_onnx(model, tmp_path_factory.mktemp("exported") / "model.onnx")


def batch(users: int, length: int) -> dict[str, torch.Tensor]:
    """Histories of three years, padded on the right."""
    shape = (users, length)
    events = {
        "input_ids": torch.randint(1, 31, shape),
        "input_weights": torch.rand(shape) * 3,
        "timestamps": 10**9 + torch.randint(1, 10**7, shape).cumsum(1),
        "event_type_ids": torch.randint(0, 3, shape),
        "platform_ids": torch.randint(0, 3, shape),
    }
    for values in events.values():
        values[0, 1:] = 0
    return events | {"query_time": torch.full((users,), 2 * 10**9)}


@pytest.mark.parametrize(("users", "length"), [(1, 1), (1, 8), (5, 8), (4, 3)])
def test_scores_are_the_models_for_any_batch_and_length(model, path, users, length):
    inputs = batch(users, length)
    found = OnnxScorer(path, model.config, threads=1).run(inputs)
    with torch.no_grad():
        expected = model(**inputs).logits
        state = model.update(**{n: v for n, v in inputs.items() if n != "query_time"})
        states = model.state_centre(state.last_hidden_state)
    close = {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(torch.from_numpy(found["logits"])[:, 1:], expected[:, 1:], **close)
    torch.testing.assert_close(torch.from_numpy(found["states"]), states, **close)


def test_what_is_missing_is_named(model, path):
    scorer = OnnxScorer(path, model.config)
    inputs = batch(2, 3)
    del inputs["timestamps"]
    with pytest.raises(ValueError, match=r"\['timestamps'\] are missing"):
        scorer.run(inputs)


def test_eight_bits_are_smaller_and_evaluated_as_the_model_is(tmp_path):
    model = tiny(vocab_size=8001, hidden_size=32, max_position_embeddings=4)
    floats = export_onnx(model, tmp_path / "model.onnx", times=False)
    small = export_onnx(model, tmp_path / "int8.onnx", times=False, int8=True)
    assert small.stat().st_size < 0.5 * floats.stat().st_size
    rows = [
        {"input_ids": [a, a + 1], "input_weights": [1.0, 2.0], "target_ids": [b]}
        for a, b in torch.randint(1, 1999, (40, 2)).tolist()
    ]
    best = ModelScorer(model).score(rows)[:, 1:].argmax(1) + 1
    rows = [row | {"target_ids": [int(top)]} for row, top in zip(rows, best)]
    scorers = {"floats": OnnxScorer(floats, model.config), "int8": OnnxScorer(small, model.config)}
    ndcg = {
        name: evaluate(s, rows, seen="keep", num_items=8000, progress=False).metrics["ndcg@10"]
        for name, s in scorers.items()
    }
    assert ndcg["floats"] == 1.0
    assert 0.8 < ndcg["int8"] <= 1.0


def test_a_recurrent_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="GRU"):
        export_onnx(tiny(sequence_mixer="gru"), tmp_path / "model.onnx")
