"""implicitrec: recommenders from behaviour logs, the Hugging Face way."""

from transformers import AutoConfig, AutoModel, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .arguments import parse_arguments
from .baselines import (
    ALS,
    EASE,
    Cooccurrence,
    ItemKNN,
    OwnFrequency,
    Popularity,
    RecentPopularity,
    fit_baselines,
)
from .body_implicitrec import ImplicitRecModel
from .bpr import BPR
from .cleaning import CleaningOptions
from .cleaning_report import CleaningReport
from .collation import DataCollatorForNextItem, EpochCallback
from .configuration_implicitrec import ImplicitRecConfig
from .data_sharing import pseudonymise, push_sequences
from .encoding import (
    cooccurrence_table,
    ease_table,
    encode_sequences,
    encode_splits,
    training_columns,
)
from .evaluation import (
    compute_hit_metrics,
    did_it_happen,
    evaluate,
    reduce_logits_to_hits,
    results_table,
)
from .event_profile import EventProfile, Histogram, profile_events, weight_histograms
from .event_store import append_events, open_events, save_events
from .events import Events, EventSchema, load_events
from .explanation import Explanation, explain
from .export import OnnxScorer, export_onnx
from .hub import save_checkpoint, write_model_card
from .matrices import positive_events, user_counts
from .metrics import (
    auc,
    coverage_at_k,
    gini_at_k,
    hit_rate_at_k,
    map_at_k,
    mrr_at_k,
    ndcg_at_k,
    novelty_at_k,
    paired_accuracy,
    paired_bootstrap,
    precision_at_k,
    recall_at_k,
)
from .modeling_implicitrec import ImplicitRecForScoring, ImplicitRecScoringOutput
from .optimization import RowWiseAdamW, SettleCallback
from .pipeline_implicitrec import TASK, RecommendationPipeline
from .pretrained_implicitrec import ImplicitRecPreTrainedModel
from .processing_implicitrec import ImplicitRecProcessor
from .provenance import RunRecord, read_period
from .ranking import rank_histories
from .report_page import write_report_page
from .rows import SequenceRows
from .scoring import ModelScorer
from .sequences import build_sequences, collapse_repeats, leave_last_out, temporal_split
from .shards import load_sequences, save_sequences
from .sharing import push_checkpoint
from .source_files import hide_secrets
from .state_implicitrec import UserState
from .weight_learning import LearnedEffect, LearnedWeights, learn_event_weights

AutoConfig.register("implicitrec", ImplicitRecConfig)
AutoModel.register(ImplicitRecConfig, ImplicitRecForScoring)
AutoProcessor.register(ImplicitRecConfig, ImplicitRecProcessor)
ImplicitRecConfig.register_for_auto_class("AutoConfig")
ImplicitRecForScoring.register_for_auto_class("AutoModel")
ImplicitRecProcessor.register_for_auto_class("AutoProcessor")
PIPELINE_REGISTRY.register_pipeline(TASK, pipeline_class=RecommendationPipeline, pt_model=AutoModel)

__version__ = "0.1.0"
__all__ = [
    "auc",
    "coverage_at_k",
    "gini_at_k",
    "hit_rate_at_k",
    "map_at_k",
    "mrr_at_k",
    "ndcg_at_k",
    "novelty_at_k",
    "paired_accuracy",
    "paired_bootstrap",
    "precision_at_k",
    "recall_at_k",
    "ALS",
    "BPR",
    "CleaningOptions",
    "CleaningReport",
    "Cooccurrence",
    "DataCollatorForNextItem",
    "EASE",
    "EpochCallback",
    "EventProfile",
    "EventSchema",
    "Events",
    "Explanation",
    "Histogram",
    "ImplicitRecConfig",
    "ImplicitRecForScoring",
    "ImplicitRecModel",
    "ImplicitRecPreTrainedModel",
    "ImplicitRecProcessor",
    "ImplicitRecScoringOutput",
    "ItemKNN",
    "LearnedEffect",
    "LearnedWeights",
    "ModelScorer",
    "OnnxScorer",
    "OwnFrequency",
    "Popularity",
    "RecentPopularity",
    "RecommendationPipeline",
    "RowWiseAdamW",
    "RunRecord",
    "SequenceRows",
    "SettleCallback",
    "UserState",
    "append_events",
    "build_sequences",
    "collapse_repeats",
    "compute_hit_metrics",
    "cooccurrence_table",
    "did_it_happen",
    "ease_table",
    "encode_sequences",
    "encode_splits",
    "evaluate",
    "explain",
    "export_onnx",
    "fit_baselines",
    "learn_event_weights",
    "hide_secrets",
    "leave_last_out",
    "load_events",
    "load_sequences",
    "open_events",
    "parse_arguments",
    "positive_events",
    "profile_events",
    "pseudonymise",
    "push_checkpoint",
    "push_sequences",
    "rank_histories",
    "read_period",
    "reduce_logits_to_hits",
    "results_table",
    "save_checkpoint",
    "save_events",
    "save_sequences",
    "temporal_split",
    "training_columns",
    "user_counts",
    "weight_histograms",
    "write_model_card",
    "write_report_page",
]
