"""The configuration of an implicitrec model: sizes, evidence terms, priors and loss."""

from dataclasses import fields
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.utils import CONFIG_NAME

from .integrity_implicitrec import objects_only
from .pipeline_implicitrec import TASK, RecommendationPipeline

SEQUENCE_MIXERS = ("attention", "gru", "convolution")
LOSS_TYPES = ("softmax", "sampled_softmax", "bce", "gbce")
HUB_KEYS = {"model_type", "auto_map", "torch_dtype", "attn_implementation", "num_labels"}
HUB_KEYS |= {"name_or_path", "use_cache"}  # written by loading and by Trainer
# Beside `AutoModel`, whose file imports this one, so that it travels along.
CLASSIFIER = {
    "AutoModelForSequenceClassification": (
        "classification_implicitrec.ImplicitRecForSequenceClassification"
    )
}
# A configuration is read before its weights, and may come from anybody: what it builds has a bound.
MAX_SIZES = {"num_hidden_layers": 1000, "hidden_size": 2**16, "intermediate_size": 2**18}
MAX_SIZES |= {"item_feature_size": 2**16, "user_feature_size": 2**16}
MAX_SIZES |= {"vocab_size": 2**31, "num_event_types": 2**20, "num_platforms": 2**20}
MAX_SIZES |= {"num_trend_events": 2**31}
MAX_SIZES |= {"num_time_buckets": 2**16, "num_weight_bins": 2**16, "num_cooccurrences": 2**16}


def _pipelines() -> dict[str, dict]:
    """Made anew each time, since `pipeline()` changes what it reads."""
    name = RecommendationPipeline.__name__
    return {TASK: {"impl": f"pipeline_implicitrec.{name}", "pt": ["AutoModel"]}}


@strict
class ImplicitRecConfig(PreTrainedConfig):
    """Configuration of [`ImplicitRecModel`] and [`ImplicitRecForScoring`].

    Args:
        vocab_size: item tokens including the padding token 0, so number of items + 1.
        num_event_types: event type ids including 0, which means "none or unknown".
        negative_event_type_ids: event types that are evidence against their item (the processor's
            `negative_event_type_ids`): the body sees them, the priors do not count them.
        num_platforms: platform ids including 0, which means "none or unknown"; 1 for a model that does
            not tell platforms apart.
        item_feature_size: features of an item's content (see
            [`~ImplicitRecForScoring.fit_item_features`]); 0 for a model that knows items by ids alone.
        user_feature_size: numbers known of a user beside the history, read by
            [`ImplicitRecForSequenceClassification`].
        use_item_ids: gives each item a row of its own beside its content; without, items are their
            content alone.
        hidden_size: width of the embeddings and of every block.
        num_hidden_layers: number of blocks.
        num_attention_heads: heads of the attention mixer; divides `hidden_size`.
        intermediate_size: inner width of the gated MLP.
        hidden_dropout_prob: dropout on embeddings and on each block's output.
        attention_probs_dropout_prob: dropout on attention probabilities.
        item_dropout_prob: share of events whose item the body does not see while training (as word
            dropout, Gal and Ghahramani, 2016); the priors do.
        max_position_embeddings: longest history, in events.
        sequence_mixer: `"attention"`, `"gru"` or `"convolution"`.
        convolution_kernel_size: events that one causal convolution sees.
        num_time_buckets: log-spaced buckets of the gap between two events.
        num_weight_bins: soft bins of the log weight in the input embedding.
        use_gaps: adds to the input how long ago the user's previous event was, and the user's previous
            event of the same item (the purchase interval).
        use_weight_gate: scales an event's embedding by a learned factor of its log weight.
        use_item_bias: adds a learned bias per item to the scores.
        use_query_time: lets the priors know the time of asking: how long ago events were, and what all
            others take just then. Off, it is the last event's time.
        collapse_repeats: the model was trained on histories with one event per item, at the place of
            the last one and with the sum of the weights; its batches are to be made so.
        exclude_seen: people do not take an item twice: what follows the last event is scored without
            the items of the history.
        copy_prior: adds a learned log-scaled count of the user's own weighted history.
        learn_copy_power: lets the copy prior learn the power of an event's weight that it counts, 1 at
            the start: worth it where one event is of many pieces.
        num_cooccurrences: neighbours stored per item for the co-occurrence prior (0: no prior).
        cooccurrence_context: how many of the last events the co-occurrence prior reads.
        cooccurrence_gap_power: p of the weight `1 / (gap + 1)^p` that the last events start with there;
            0 for events that count alike, however long ago.
        num_trend_events: everybody's last events that the checkpoint holds, items and times, for the trend
            prior: what is taken at the time of asking (0: no prior); needs `use_query_time`.
        trend_context: how many of everybody's last events before the question it reads.
        loss_type: `"softmax"`, `"sampled_softmax"`, `"bce"` or `"gbce"` for next-item labels.
        num_negatives: shared negatives of the sampled losses.
        in_batch_share: share of the negatives drawn from the batch's labels, the rest is uniform.
        gbce_calibration: t of gBCE (Petrov and Macdonald, 2023); 0 is plain BCE.
        negative_event_loss: weight of the pairwise loss that puts the label above the item of a negative
            event (`negative_labels` of a batch); 0 for none.
        masked_loss: weight of telling hidden items from the events on both sides, while training on
            next-item labels (see [`Objectives`]); needs the attention mixer. 0 for none.
        event_type_loss: weight of telling the next event's type; 0 for none.
        gap_loss: weight of telling how long it is until the next event; 0 for none.
        label_smoothing: share of the target spread evenly over the catalogue (full softmax).
        loss_chunk_size: labelled positions whose logits exist at one time.
        vocabulary_fingerprint: of the processor's vocabulary that the item table belongs to.
        weights_sha256: of the files of weights beside `config.json`, by name; written by a save, compared
            by a load, and `None` in a model.

    Raises:
        ValueError: for an unknown key or sizes that do not fit together.

    >>> ImplicitRecConfig(vocab_size=101, hidden_size=32).hidden_size
    32
    """

    model_type = "implicitrec"

    vocab_size: int = 1001
    num_event_types: int = 1
    negative_event_type_ids: list[int] | None = None
    num_platforms: int = 1
    item_feature_size: int = 0
    user_feature_size: int = 0
    use_item_ids: bool = True
    hidden_size: int = 64
    num_hidden_layers: int = 2
    num_attention_heads: int = 2
    intermediate_size: int = 128
    hidden_dropout_prob: float | int = 0.2
    attention_probs_dropout_prob: float | int = 0.0
    item_dropout_prob: float | int = 0.0
    max_position_embeddings: int = 50
    sequence_mixer: str = "attention"
    convolution_kernel_size: int = 5
    num_time_buckets: int = 32
    num_weight_bins: int = 16
    use_gaps: bool = False
    use_weight_gate: bool = False
    use_item_bias: bool = True
    use_query_time: bool = False
    collapse_repeats: bool = False
    exclude_seen: bool = False
    copy_prior: bool = False
    learn_copy_power: bool = False
    num_cooccurrences: int = 0
    cooccurrence_context: int = 5
    cooccurrence_gap_power: float | int = 1.0
    num_trend_events: int = 0
    trend_context: int = 512
    loss_type: str = "softmax"
    num_negatives: int = 256
    in_batch_share: float | int = 0.5
    gbce_calibration: float | int = 0.75
    negative_event_loss: float | int = 0.0
    masked_loss: float | int = 0.0
    event_type_loss: float | int = 0.0
    gap_loss: float | int = 0.0
    label_smoothing: float | int = 0.0
    loss_chunk_size: int = 1024
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True
    vocabulary_fingerprint: str | None = None
    weights_sha256: dict[str, str] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("custom_pipelines", None)  # always the property
        known = {f.name for f in fields(PreTrainedConfig)} | HUB_KEYS
        unknown = sorted(k for k in kwargs if k not in known and not k.startswith("_"))
        if unknown:
            own = sorted(f.name for f in fields(type(self)) if f.name not in known)
            raise ValueError(f"unknown configuration keys {unknown}; the known ones are {own}")
        super().__post_init__(**kwargs)
        self._check_sizes()
        self._check_evidence()

    @property
    def custom_pipelines(self) -> dict[str, dict]:
        """What `pipeline()` is to take from a checkpoint; the package registers its task itself."""
        return _pipelines() if __name__.startswith("transformers_modules.") else {}

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON, with what a checkpoint's own code is found by.

        A save puts into `auto_map` what it writes the code of. Beside a recommender stand the classifier
        that can be made of it and its pipeline.
        """
        auto_map = getattr(self, "auto_map", None) or {}
        recommends = "AutoModel" in auto_map
        # Loading from the Hub puts the repository's name before each class: a copy has its own code.
        auto_map = {name: classes.rsplit("--", 1)[-1] for name, classes in auto_map.items()}
        found_by = {
            "auto_map": auto_map | (CLASSIFIER if recommends else {}),
            "custom_pipelines": _pipelines() if recommends else {},
        }
        return super().to_dict() | found_by

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The content of `config.json`; `ValueError` where it is no JSON object."""
        with objects_only(pretrained_model_name_or_path, CONFIG_NAME, kwargs):
            content, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
            if not isinstance(content, dict):
                raise TypeError(f"{CONFIG_NAME} must hold an object, got {type(content)}")
        return content, unused

    def _check_sizes(self) -> None:
        """Raise `ValueError` where sizes or choices do not fit together."""
        positive: tuple[str, ...] = (
            "hidden_size",
            "num_attention_heads",
            "intermediate_size",
            "num_event_types",
            "num_platforms",
        )
        positive += ("max_position_embeddings", "num_time_buckets", "num_negatives")
        positive += ("loss_chunk_size", "cooccurrence_context", "convolution_kernel_size")
        positive += ("trend_context",)
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        shares = ("hidden_dropout_prob", "attention_probs_dropout_prob", "item_dropout_prob")
        for name in (*shares, "in_batch_share", "label_smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        for name, limit in MAX_SIZES.items():
            if getattr(self, name) > limit:
                raise ValueError(f"{name} must be at most {limit:,}, got {getattr(self, name):,}")
        if self.vocab_size < 2:
            raise ValueError(
                f"vocab_size counts padding and items: at least 2, got {self.vocab_size}"
            )
        if self.num_weight_bins < 2:
            raise ValueError(f"num_weight_bins must be at least 2, got {self.num_weight_bins}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )
        if self.sequence_mixer not in SEQUENCE_MIXERS:
            raise ValueError(
                f"sequence_mixer must be one of {SEQUENCE_MIXERS}, got {self.sequence_mixer!r}"
            )
        if self.loss_type not in LOSS_TYPES:
            raise ValueError(f"loss_type must be one of {LOSS_TYPES}, got {self.loss_type!r}")

    def _check_evidence(self) -> None:
        """Raise `ValueError` where the terms for content, gaps and negative events do not fit."""
        none: tuple[str, ...] = ("item_feature_size", "user_feature_size", "num_hidden_layers")
        none += ("num_cooccurrences", "num_trend_events", "negative_event_loss", "masked_loss")
        for name in (*none, "event_type_loss", "gap_loss"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not self.use_item_ids and not (self.item_feature_size and self.tie_word_embeddings):
            raise ValueError("use_item_ids=False needs an item_feature_size and tied embeddings")
        if self.num_trend_events and not self.use_query_time:
            raise ValueError(
                "num_trend_events needs use_query_time: what is taken at the time of asking"
            )
        if self.use_gaps and self.num_time_buckets < 2:
            raise ValueError("use_gaps needs num_time_buckets of at least 2, got 1")
        if not all(
            0 < type_id < self.num_event_types for type_id in self.negative_event_type_ids or []
        ):
            raise ValueError(
                f"negative_event_type_ids must lie in 1..{self.num_event_types - 1}, "
                f"got {self.negative_event_type_ids}"
            )
        for name in ("negative_event_loss", "masked_loss", "event_type_loss", "gap_loss"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.masked_loss and self.sequence_mixer != "attention":
            raise ValueError(
                f"masked_loss needs the attention mixer, which can look ahead, got {self.sequence_mixer!r}"
            )
