"""An exported model gives the model's scores, for batches and lengths it was not exported with."""

import logging
import re

import pytest
import torch

from modeling_implicitrec import (
    ImplicitRecConfig,
    ImplicitRecForScoring,
    ModelScorer,
    OnnxScorer,
    evaluate,
    export_onnx,
    quantize_onnx,
)

pytest.importorskip("onnxruntime", reason="exporting is tested with the extra `onnx`")
pytest.importorskip("onnxscript", reason="exporting is tested with the extra `onnx`")


@pytest.fixture(scope="module")
def model() -> ImplicitRecForScoring:
    """With every term on, and none of them zero."""
    torch.manual_seed(0)
    config = ImplicitRecConfig(
        vocab_size=2001,
        hidden_size=32,
        num_hidden_layers=1,
        max_position_embeddings=8,
        num_event_types=3,
        negative_event_type_ids=[2],
        num_platforms=3,
        use_gaps=True,
        use_weight_gate=True,
        use_query_time=True,
        copy_prior=True,
        num_cooccurrences=4,
        num_trend_events=40,
        trend_context=5,
    )
    model = ImplicitRecForScoring(config).eval()
    model.fit_cooccurrences(torch.randint(1, 2001, (2001, 4)), torch.rand(2001, 4))
    model.fit_trend(torch.randint(1, 2001, (40,)), 10**9 + torch.arange(40) * 10**6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    return export_onnx(model, tmp_path_factory.mktemp("exported") / "model.onnx")


def batch(users: int, length: int) -> dict[str, torch.Tensor]:
    """Histories of three years, padded on the right."""
    shape = (users, length)
    events = {
        "input_ids": torch.randint(1, 2001, shape),
        "input_weights": torch.rand(shape) * 3,
        "timestamps": 10**9 + torch.randint(1, 10**7, shape).cumsum(1),
        "event_type_ids": torch.randint(0, 3, shape),
        "platform_ids": torch.randint(0, 3, shape),
    }
    for values in events.values():
        values[0, 1:] = 0
    moments = 10**9 + torch.randint(0, 4 * 10**7, (users,))
    moments[1:2] = 0  # nobody says when
    return events | {"query_time": moments}


def test_open_axes_are_named(model, path):
    import onnx

    graph = onnx.load(path).graph
    shapes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.output, *graph.value_info]
    }
    assert shapes["input_ids"] == shapes["timestamps"] == ["batch", "length"]
    assert shapes["query_time"] == ["batch"]
    assert shapes["logits"] == ["batch", 2001] and shapes["states"] == ["batch", 32]
    numbered = re.compile(r"\bs\d+\b")
    names = {str(axis) for shape in shapes.values() for axis in shape}
    assert not [name for name in names if numbered.search(name)]


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


def test_eight_bits_are_smaller_and_evaluated_as_the_model_is(model, path, tmp_path):
    small = quantize_onnx(path, tmp_path / "int8.onnx")
    assert small.stat().st_size < 0.9 * path.stat().st_size
    rows = []
    for _ in range(40):
        row = {name: values[1].tolist() for name, values in batch(2, 8).items()}
        del row["query_time"]
        rows.append(row)
    best = ModelScorer(model).score(rows)[:, 1:].argmax(1) + 1
    rows = [row | {"target_ids": [int(top)]} for row, top in zip(rows, best)]
    ndcg = {}
    for name, file in (("floats", path), ("int8", small)):
        scorer = OnnxScorer(file, model.config, threads=1)
        found = evaluate(scorer, rows, seen="keep", num_items=2000, progress=False)
        ndcg[name] = found.metrics["ndcg@10"]
    assert ndcg["floats"] == 1.0
    assert 0.8 < ndcg["int8"] <= 1.0


def test_a_recurrent_model_is_refused(tmp_path):
    recurrent = ImplicitRecForScoring(ImplicitRecConfig(vocab_size=5, sequence_mixer="gru"))
    with pytest.raises(ValueError, match="GRU"):
        export_onnx(recurrent, tmp_path / "model.onnx")


def test_exporting_is_quiet(tmp_path, caplog, recwarn):
    model = ImplicitRecForScoring(ImplicitRecConfig(vocab_size=101, hidden_size=8))
    made = export_onnx(model, tmp_path / "model.onnx")
    quantize_onnx(made, tmp_path / "model.int8.onnx")
    said = [record for record in caplog.records if record.levelname != "DEBUG"]
    assert not said and not recwarn.list
    logging.getLogger("after").warning("heard")
    assert "heard" in caplog.text
