"""Whether a model and a processor belong together, and what Trainer asks of a processor."""

from typing import Any


class SpecialTokens:
    """Of the tokenizer that Trainer looks for: padding alone, which models have at the same place."""

    eos_token_id = bos_token_id = None
    pad_token_id = 0


class TrainerProcessor:
    """Makes a processor what Trainer takes as its `processing_class`, and saves with the weights."""

    tokenizer = SpecialTokens()
    model_input_names = ["input_ids"]


def check_together(config: Any, processor: Any) -> None:
    """Raise `ValueError` where a model's configuration does not fit a processor."""
    pairs: dict[str, tuple] = {
        "vocab_size": (config.vocab_size, processor.vocab_size),
        "num_event_types": (config.num_event_types, processor.num_event_types),
        "negative_event_type_ids": (
            list(config.negative_event_type_ids or []),
            processor.negative_event_type_ids,
        ),
        "collapse_repeats": (config.collapse_repeats, processor.collapse_repeats),
    }
    if config.vocabulary_fingerprint is not None:
        pairs["vocabulary_fingerprint"] = (config.vocabulary_fingerprint, processor.fingerprint)
    if config.num_platforms > 1:  # a model without the embedding reads no platform
        pairs["num_platforms"] = (config.num_platforms, processor.num_platforms)
    for name, (of_model, own) in pairs.items():
        if of_model != own:
            raise ValueError(
                f"model and processor do not belong together: {name} is {of_model} in the model "
                f"and {own} in the processor"
            )
