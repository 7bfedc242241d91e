"""The model's properties: what padding, order, weights and saving may and may not change."""

import json
import math
import subprocess
import sys

import pytest
import torch
from tiny_models import MIXERS, histories, tiny

from modeling_implicitrec import ImplicitRecConfig, ImplicitRecForScoring, ImplicitRecProcessor
from modeling_implicitrec.head_implicitrec import (
    SCALAR_STEP,
    StateCentre,
)


@pytest.mark.parametrize("mixer", MIXERS)
def test_padding_on_the_right_changes_nothing(mixer):
    model, batch = tiny(sequence_mixer=mixer, copy_prior=True), histories()
    padded = {name: torch.cat([x, torch.zeros(3, 4).to(x)], dim=1) for name, x in batch.items()}
    torch.testing.assert_close(model(**padded).logits, model(**batch).logits)


@pytest.mark.parametrize("mixer", MIXERS)
def test_padding_on_the_left_changes_nothing(mixer):
    model, batch = tiny(sequence_mixer=mixer), histories()
    padded = {name: torch.cat([torch.zeros(3, 4).to(x), x], dim=1) for name, x in batch.items()}
    torch.testing.assert_close(model(**padded).logits, model(**batch).logits)


@pytest.mark.parametrize("mixer", MIXERS)
def test_later_events_do_not_reach_earlier_states(mixer):
    model, batch = tiny(sequence_mixer=mixer), histories()
    before = model(**batch).last_hidden_state
    batch["input_ids"][:, 5:] = 7
    after = model(**batch).last_hidden_state
    torch.testing.assert_close(after[:, :5], before[:, :5])
    assert not torch.allclose(after[:, 5:], before[:, 5:])


@pytest.mark.parametrize("mixer", MIXERS)
def test_an_event_of_weight_zero_changes_nothing(mixer):
    model, batch = tiny(sequence_mixer=mixer, copy_prior=True), histories()
    batch["input_weights"][:, 3] = 0
    changed = {name: x.clone() for name, x in batch.items()}
    changed["input_ids"][:, 3] = 9
    torch.testing.assert_close(model(**changed).logits, model(**batch).logits)
    without = {name: torch.cat([x[:, :3], x[:, 4:]], dim=1) for name, x in batch.items()}
    torch.testing.assert_close(
        model.model(**without).last_hidden_state[:, -1],
        model.model(**batch).last_hidden_state[:, -1],
    )


def test_weight_three_counts_as_three_copies():
    model = tiny(num_hidden_layers=1)
    with torch.no_grad():
        model.model.evidence_bias.position.weight.zero_()
        model.model.evidence_bias.beta.zero_()
        model.model.weight_embedding.bins.weight.zero_()
    once = model(torch.tensor([[4, 5, 6]]), input_weights=torch.tensor([[1.0, 3.0, 1.0]])).logits
    copies = model(torch.tensor([[4, 5, 5, 5, 6]])).logits
    torch.testing.assert_close(once, copies)


def test_the_copy_prior_learns_how_much_a_weight_counts():
    prior = tiny(copy_prior=True).head.copy
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.zero_()
    weights = torch.tensor([[4.0, 0.25, 0.0, 9.0]])
    history = {"input_ids": torch.tensor([[4, 5, 6, 7]]), "weights": weights}
    history["columns"] = torch.tensor([2])
    for power, counts in ((1.0, [4.0, 0.25, 0, 0]), (0.5, [2.0, 0.5, 0, 0]), (0.0, [1, 1, 0, 0])):
        prior.evidence.data.fill_((power - 1) / SCALAR_STEP)
        torch.testing.assert_close(prior(history)[1], torch.tensor([counts], dtype=torch.float))


def test_the_weight_gate_scales_an_event_by_its_weight():
    layer = tiny(use_weight_gate=True, num_weight_bins=7).model.weight_embedding  # a bin a decade
    events, weights = torch.ones(1, 2, 16), torch.tensor([[1.0, 10.0]])
    with torch.no_grad():
        layer.bins.weight.zero_()
        layer.gate.weight.zero_()
        torch.testing.assert_close(layer(events, weights), events)
        layer.gate.weight[4] = math.log(2) / SCALAR_STEP
    torch.testing.assert_close(layer(events, weights)[0, :, 0], torch.tensor([1.0, 2.0]))


def test_a_batch_gives_what_each_history_gives_alone():
    model, batch = tiny(copy_prior=True), histories()
    together = model(**batch).logits
    alone = [model(**{name: x[i : i + 1] for name, x in batch.items()}).logits for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_eager_attention_agrees_with_sdpa():
    model, batch = tiny(), histories()
    fused = model(**batch).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(**batch).logits, fused)


def test_gradient_checkpointing_gives_the_same_gradient():
    batch = histories() | {"labels": histories()["input_ids"].roll(-1, 1)}
    gradients = []
    for checkpointing in (False, True):
        model = tiny(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**batch).loss.backward()
        gradients.append(model.model.blocks[0].mlp.down_proj.weight.grad)
    torch.testing.assert_close(*gradients)


def test_candidates_get_the_scores_of_the_full_catalogue():
    model, batch = tiny(copy_prior=True), histories()
    candidates = torch.tensor([[1, 5, 9], [2, 2, 30], [8, 7, 6]])
    scores = model(**batch, candidate_ids=candidates).logits
    torch.testing.assert_close(scores, model(**batch).logits.gather(1, candidates))


def test_the_cooccurrence_prior_adds_its_counts_to_the_items_that_it_names():
    model = tiny(num_cooccurrences=2, cooccurrence_context=1)
    items, counts = torch.zeros(31, 2, dtype=torch.int32), torch.zeros(31, 2)
    items[4, 0], counts[4, 0] = 9, 1.0
    without = model(torch.tensor([[4]])).logits
    model.fit_cooccurrences(items, counts)
    raised = (model(torch.tensor([[4]])).logits - without)[0]
    assert raised[9] > 0.1
    assert raised[10:].abs().max() == 0


def test_catalogue_and_candidates_agree_however_many_items_the_prior_names():
    every = torch.arange(1, 31).expand(3, 30)
    for context in (1, 4):  # fewer and more sources than items
        model = tiny(num_cooccurrences=10, cooccurrence_context=context)
        generator = torch.Generator().manual_seed(2)
        items = torch.stack([torch.randperm(30, generator=generator)[:10] + 1 for _ in range(31)])
        model.fit_cooccurrences(items, torch.rand(31, 10, generator=generator))
        batch = histories()
        full = model(**batch).logits[:, 1:]
        torch.testing.assert_close(model(**batch, candidate_ids=every).logits, full)


def test_what_all_histories_share_is_taken_off_their_states():
    centre = StateCentre(ImplicitRecConfig(vocab_size=31, hidden_size=16)).train()
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(16, generator=generator)
    own = torch.randn(64, 16, generator=generator)
    for _ in range(100):
        centre(shared + own)
    torch.testing.assert_close(centre.eval()(shared + own), own - own.mean(0), atol=1e-3, rtol=0)
    before = centre.mean.clone()
    centre(own + 5)
    torch.testing.assert_close(centre.mean, before)  # evaluation moves nothing
    centre.train()(own[:0])
    torch.testing.assert_close(centre.mean, before)  # nor does a batch without labels


def test_item_dropout_hides_items_from_the_body_while_training():
    model = tiny(item_dropout_prob=1.0, hidden_dropout_prob=0.0)
    batch = histories()
    others = batch | {"input_ids": batch["input_ids"] % 30 + 1}
    assert not torch.allclose(model(**batch).last_hidden_state, model(**others).last_hidden_state)
    model.train()
    torch.testing.assert_close(model(**batch).last_hidden_state, model(**others).last_hidden_state)


@pytest.mark.parametrize("name", ["hidden_dropout_prob", "item_dropout_prob", "label_smoothing"])
def test_a_probability_lies_between_0_and_1(name):
    with pytest.raises(ValueError, match=f"{name} must be from 0 to 1, got 1.5"):
        ImplicitRecConfig(vocab_size=3, **{name: 1.5})


def test_cross_fitted_counts_are_read_in_training_only():
    model = tiny(num_cooccurrences=2, hidden_dropout_prob=0.0)
    empty = torch.zeros(31, 2)
    folds = (torch.full((2, 31, 2), 7), torch.stack([empty, empty + 50]))
    folds[0][..., 1] = 0
    model.fit_cooccurrences(empty.long(), empty, folds=folds)
    batch = {name: values[:1] for name, values in histories().items()}
    batch |= {"target_ids": torch.tensor([[7]])}
    evaluated = model(**batch).loss
    model.train()
    model.state_centre.eval()
    without, other = (model(**batch, fold_ids=torch.tensor([f])).loss for f in (0, 1))
    torch.testing.assert_close(without, evaluated)
    assert other < without - 1
    assert not any("fold" in name for name in model.state_dict())
    with pytest.raises(ValueError, match="expects fold_ids"):
        model(**batch)


def test_pointwise_labels_give_binary_cross_entropy():
    model, batch = tiny(), histories()
    candidates, labels = torch.tensor([[1, 2]] * 3), torch.tensor([[1.0, 0.0]] * 3)
    output = model(**batch, candidate_ids=candidates, labels=labels)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(output.logits, labels)
    torch.testing.assert_close(output.loss, expected)


def test_recommend_leaves_out_seen_items_by_choice():
    model, batch = tiny(copy_prior=True), histories()
    fresh = model.recommend(**batch, top_k=5, exclude_seen=True).item_tokens
    assert not (fresh[:, :, None] == batch["input_ids"][:, None, :]).any()
    kept = model.recommend(**batch, top_k=30).item_tokens
    assert (kept.sort(1).values == torch.arange(1, 31)).all()


@pytest.mark.parametrize("given", [{}, {"candidate_ids": torch.arange(1, 31).expand(3, -1)}])
def test_a_model_of_people_who_take_nothing_twice_recommends_nothing_twice(given):
    model, batch = tiny(exclude_seen=True), histories()
    seen = batch["input_ids"]
    for asked in ({}, {"exclude_seen": False}, {"exclude_seen": True}):
        top = model.recommend(**batch, top_k=30, **given, **asked).item_tokens
        new = [30 - len(set(row.tolist()) - {0}) for row in seen]
        assert (top > 0).sum(1).tolist() == new
        assert not ((top[:, :, None] == seen[:, None, :]) & (top > 0)[:, :, None]).any()


def test_nothing_known_ranks_by_the_item_bias():
    model = tiny()
    counts = torch.arange(31).float()
    model.fit_item_counts(counts)
    for inputs in (
        {"input_ids": torch.zeros(1, 1, dtype=torch.long)},
        {"input_ids": torch.tensor([[3, 4]]), "input_weights": torch.zeros(1, 2)},
    ):
        top = model.recommend(**inputs, top_k=3, exclude_seen=False)
        assert top.item_tokens.tolist() == [[30, 29, 28]]
        assert torch.isfinite(top.scores).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_impossible_weights_are_refused(value):
    with pytest.raises(ValueError, match="finite and not negative"):
        tiny()(torch.tensor([[3]]), input_weights=torch.tensor([[value]]))


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"input_ids": [[3, 31]]}, r"input_ids .* 0..30, with a vocab_size of 31; got 3 to 31"),
        ({"input_ids": [[3, -1]]}, "input_ids .* got -1 to 3"),
        ({"input_ids": [[]]}, r"of at least 1, got shape \[1, 0\]"),
        (
            {"input_ids": [[3]], "event_type_ids": [[2]]},
            "event_type_ids .*num_event_types of 2; got 2",
        ),
        (
            {"input_ids": [[3]], "platform_ids": [[4]]},
            "platform_ids .*num_platforms of 3; got 4 to 4",
        ),
        (
            {"input_ids": [[3, 4]], "timestamps": [[9]]},
            r"timestamps must have .* \[1, 2\], got \[1, 1\]",
        ),
    ],
)
def test_ids_and_shapes_that_fit_no_table_are_named(inputs, told):
    model = tiny(num_event_types=2, num_platforms=3)
    inputs = {name: torch.tensor(values, dtype=torch.long) for name, values in inputs.items()}
    for ask in (model, model.recommend, model.last_scores, model.update):
        with pytest.raises(ValueError, match=told):
            ask(**inputs)


def test_candidates_that_are_no_items_are_named():
    with pytest.raises(ValueError, match="candidate_ids .* got 5 to 31"):
        tiny().recommend(torch.tensor([[3]]), candidate_ids=torch.tensor([[5, 31]]))
    for given in ([5, 7], [[5], [7]]):
        with pytest.raises(ValueError, match=r"candidate_ids must be \[1, any number\], got \[2"):
            tiny().recommend(torch.tensor([[3]]), candidate_ids=torch.tensor(given))


def test_bad_shapes_and_configurations_are_refused():
    with pytest.raises(ValueError, match="longer than max_position_embeddings"):
        tiny(max_position_embeddings=4)(torch.ones(1, 5, dtype=torch.long))
    with pytest.raises(ValueError, match=r"unknown configuration keys \['hiden_size'\]"):
        ImplicitRecConfig(hiden_size=3)
    with pytest.raises(ValueError, match="multiple"):
        ImplicitRecConfig(hidden_size=10, num_attention_heads=3)
    with pytest.raises(ValueError, match="sequence_mixer"):
        ImplicitRecConfig(sequence_mixer="mamba")


@pytest.mark.parametrize("loss", ["softmax", "sampled_softmax", "bce", "gbce"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_the_checkerboard_is_learnt(mixer, loss):
    """Users take either odd or even items: the withheld item of the own colour comes first."""
    torch.manual_seed(0)
    config = ImplicitRecConfig(
        vocab_size=11,
        hidden_size=16,
        loss_type=loss,
        num_negatives=10,
        sequence_mixer=mixer,
        hidden_dropout_prob=0.0,
    )
    model = ImplicitRecForScoring(config).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        ids = torch.stack([torch.randperm(5) * 2 + 1 + i % 2 for i in range(16)])
        labels = ids.roll(-1, 1)
        labels[:, -1] = -100
        loss_value = model(ids, labels=labels).loss
        optimizer.zero_grad()
        loss_value.backward()
        optimizer.step()
    histories = torch.tensor([[1, 3, 5, 7], [2, 4, 6, 8]])
    top = model.recommend(histories, top_k=1, exclude_seen=True).item_tokens
    assert top[:, 0].tolist() == [9, 10]


def test_saving_and_loading_is_bit_equal(tmp_path):
    model, batch = tiny(copy_prior=True, num_cooccurrences=3), histories()
    model.save_pretrained(tmp_path)
    loaded = ImplicitRecForScoring.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_a_truncated_checkpoint_is_refused(tmp_path):
    tiny().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(Exception, match="(?i)safetensors|header|incomplete"):
        ImplicitRecForScoring.from_pretrained(tmp_path)


REMOTE = """
import json, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"modeling_implicitrec", "ibis", "duckdb"}:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocked())
from transformers import AutoConfig, AutoModel, AutoProcessor
folder = sys.argv[1]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
assert AutoConfig.from_pretrained(folder, trust_remote_code=True).model_type == "implicitrec"
inputs = processor([["a", "b"], ["c"]])
print(json.dumps(model(**inputs).logits.tolist()))
"""


def test_a_checkpoint_loads_where_the_package_cannot_be_imported(tmp_path):
    folder = tmp_path / "checkpoint"
    processor = ImplicitRecProcessor.fit({"item_id": [*"abcabdab"]})
    model = tiny(vocab_size=processor.vocab_size)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    script = tmp_path / "remote.py"
    script.write_text(REMOTE)
    done = subprocess.run(
        [sys.executable, "-I", str(script), str(folder)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=200,
        env={"PATH": "", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    scores = torch.tensor(json.loads(done.stdout.strip().splitlines()[-1]))
    assert torch.equal(scores, model(**processor([["a", "b"], ["c"]])).logits)


def test_auto_classes_give_ours_where_the_package_is_imported(tmp_path):
    from transformers import AutoConfig, AutoModel, AutoProcessor

    processor = ImplicitRecProcessor.fit({"item_id": [1, 2, 2, 3]})
    tiny(vocab_size=4).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is ImplicitRecConfig
    assert type(AutoModel.from_pretrained(tmp_path)) is ImplicitRecForScoring
    assert type(AutoProcessor.from_pretrained(tmp_path)) is ImplicitRecProcessor


def test_a_model_that_trainer_trained_loads_again(tmp_path):
    from transformers import Trainer, TrainingArguments

    from modeling_implicitrec import DataCollatorForNextItem

    model = tiny()
    rows = [{"input_ids": [1, 2, 3, 4], "input_weights": [1.0] * 4}] * 4
    settings = TrainingArguments(
        str(tmp_path), max_steps=2, report_to="none", remove_unused_columns=False, use_cpu=True
    )
    trainer = Trainer(model, settings, DataCollatorForNextItem(50), train_dataset=rows)
    trainer.train()
    trainer.save_model()
    loaded = ImplicitRecForScoring.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(**histories()).logits, model.eval()(**histories()).logits)
