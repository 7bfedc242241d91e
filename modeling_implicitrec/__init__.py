"""implicitrec: recommenders from behaviour logs, the Hugging Face way."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .activity_regression import ActivityRegression
from .adapters import add_lora, choose_tuning, freeze_body, merge_lora
from .arguments import check_numbers, parse_arguments, run_recipe
from .baselines import (
    ALS,
    EASE,
    Cooccurrence,
    ItemKNN,
    fit_baselines,
)
from .batch_scoring import BatchOptions, recommend_users
from .body_implicitrec import ImplicitRecModel
from .bpr import BPR
from .calibration import Calibration, CalibrationCallback, calibrate, check_calibration
from .catalogue_implicitrec import nearest_items
from .checkpoints import (
    ProcessorCallback,
    last_checkpoint,
    load_checkpoint,
    resume_point,
    set_aside_checkpoints,
)
from .classification_implicitrec import (
    ImplicitRecForSequenceClassification,
    ImplicitRecSequenceClassifierOutput,
)
from .cleaning import CleaningOptions
from .cleaning_report import CleaningReport
from .cold_items import (
    ColdItems,
    ContentSimilarity,
    RandomScores,
    evaluate_cold_items,
    hold_out_items,
)
from .collation import DataCollatorForNextItem, EpochCallback
from .configuration_implicitrec import ImplicitRecConfig
from .data_sharing import pseudonymise, push_sequences
from .default_recipe import LogStatistics, choose_settings, log_statistics, write_default_recipe
from .ease_trial import EaseSettings, choose_ease, ease_candidates
from .encoding import encode_sequences, encode_splits, training_columns
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
from .export import OnnxScorer, export_onnx, quantize_onnx
from .federation import average_weights, load_shared_weights, shared_weights
from .history_lengths import evaluate_by_history_length
from .hub import save_checkpoint, write_model_card
from .item_features import ItemFeatures, encode_texts
from .joined_logs import JoinedLogs, join_logs
from .live_body import LiveBody, LiveUser
from .live_head import Past, read_pasts
from .matrices import positive_events, user_counts
from .metrics import (
    auc,
    average_precision,
    calibration_error,
    coverage_at_k,
    gini_at_k,
    hit_rate_at_k,
    log_loss,
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
from .popularity import OwnFrequency, Popularity, PopularityNow, RecentPopularity, SameForAll
from .pretrained_implicitrec import ImplicitRecPreTrainedModel
from .prior_learning import PriorCallback
from .priors import cooccurrence_table, ease_table, fit_priors, fit_trend, fold_tables
from .privacy import (
    PrivacyPlan,
    PrivateTrainer,
    check_private,
    noisy_item_counts,
)
from .processing_implicitrec import ImplicitRecProcessor
from .provenance import RunRecord, read_period
from .questions import (
    AskedRows,
    DataCollatorForQuestions,
    Question,
    activity_features,
    answer_metrics,
    ask,
    ask_table,
    question_moments,
)
from .ranking import rank_histories
from .report_page import write_report_page
from .reranking import RankingRules, at_most, diverse, pinned
from .retrieval import ExactIndex, Retriever, item_vectors, table_fingerprint
from .rows import GroupedRows, SequenceRows
from .scoring import ModelScorer, batch_histories
from .season import check_season, fit_season, season_evidence, season_gain
from .sequences import build_sequences, collapse_repeats, leave_last_out, temporal_split
from .serving import Catalogue, ServingModel, Wish
from .shards import load_sequences, save_sequences
from .sharing import push_checkpoint
from .showcase import Showcase
from .source_files import hide_secrets
from .state_implicitrec import UserState
from .training_plots import plot_training
from .transfer import TransferReport, match_items, transfer_weights
from .vocabulary_privacy import catalogue_processor, drop_rare_items
from .weight_learning import LearnedEffect, LearnedWeights, learn_event_weights

AutoConfig.register("implicitrec", ImplicitRecConfig)
AutoModel.register(ImplicitRecConfig, ImplicitRecForScoring)
AutoModelForSequenceClassification.register(ImplicitRecConfig, ImplicitRecForSequenceClassification)
AutoProcessor.register(ImplicitRecConfig, ImplicitRecProcessor)
ImplicitRecConfig.register_for_auto_class("AutoConfig")
ImplicitRecForScoring.register_for_auto_class("AutoModel")
ImplicitRecForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
ImplicitRecProcessor.register_for_auto_class("AutoProcessor")
PIPELINE_REGISTRY.register_pipeline(TASK, pipeline_class=RecommendationPipeline, pt_model=AutoModel)

__version__ = "0.1.0"
__all__ = [
    "Calibration",
    "LogStatistics",
    "batch_histories",
    "choose_ease",
    "choose_settings",
    "log_statistics",
    "write_default_recipe",
    "ActivityRegression",
    "AskedRows",
    "DataCollatorForQuestions",
    "ImplicitRecForSequenceClassification",
    "ImplicitRecSequenceClassifierOutput",
    "Question",
    "activity_features",
    "answer_metrics",
    "ask",
    "ask_table",
    "average_precision",
    "calibrate",
    "calibration_error",
    "log_loss",
    "question_moments",
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
    "BatchOptions",
    "CalibrationCallback",
    "Catalogue",
    "BPR",
    "CleaningOptions",
    "CleaningReport",
    "ColdItems",
    "ContentSimilarity",
    "Cooccurrence",
    "DataCollatorForNextItem",
    "EASE",
    "EaseSettings",
    "EpochCallback",
    "EventProfile",
    "EventSchema",
    "Events",
    "Explanation",
    "ExactIndex",
    "GroupedRows",
    "Histogram",
    "ImplicitRecConfig",
    "ImplicitRecForScoring",
    "ImplicitRecModel",
    "ImplicitRecPreTrainedModel",
    "ImplicitRecProcessor",
    "ImplicitRecScoringOutput",
    "ItemFeatures",
    "ItemKNN",
    "JoinedLogs",
    "LearnedEffect",
    "LearnedWeights",
    "LiveBody",
    "LiveUser",
    "Past",
    "ModelScorer",
    "OnnxScorer",
    "OwnFrequency",
    "Popularity",
    "PopularityNow",
    "PriorCallback",
    "PrivacyPlan",
    "ProcessorCallback",
    "PrivateTrainer",
    "RandomScores",
    "RecentPopularity",
    "RecommendationPipeline",
    "RowWiseAdamW",
    "RunRecord",
    "SameForAll",
    "SequenceRows",
    "SettleCallback",
    "TransferReport",
    "UserState",
    "RankingRules",
    "Retriever",
    "ServingModel",
    "Showcase",
    "Wish",
    "add_lora",
    "append_events",
    "at_most",
    "average_weights",
    "build_sequences",
    "catalogue_processor",
    "check_private",
    "check_calibration",
    "check_numbers",
    "check_season",
    "choose_tuning",
    "collapse_repeats",
    "compute_hit_metrics",
    "cooccurrence_table",
    "did_it_happen",
    "diverse",
    "drop_rare_items",
    "ease_candidates",
    "ease_table",
    "encode_sequences",
    "encode_splits",
    "encode_texts",
    "evaluate",
    "evaluate_by_history_length",
    "evaluate_cold_items",
    "explain",
    "export_onnx",
    "fit_baselines",
    "fit_priors",
    "fit_season",
    "fit_trend",
    "fold_tables",
    "item_vectors",
    "freeze_body",
    "hide_secrets",
    "hold_out_items",
    "join_logs",
    "last_checkpoint",
    "load_checkpoint",
    "learn_event_weights",
    "leave_last_out",
    "load_events",
    "load_sequences",
    "load_shared_weights",
    "match_items",
    "merge_lora",
    "nearest_items",
    "noisy_item_counts",
    "open_events",
    "parse_arguments",
    "run_recipe",
    "pinned",
    "plot_training",
    "positive_events",
    "profile_events",
    "quantize_onnx",
    "pseudonymise",
    "push_checkpoint",
    "read_pasts",
    "push_sequences",
    "rank_histories",
    "read_period",
    "recommend_users",
    "reduce_logits_to_hits",
    "results_table",
    "resume_point",
    "save_checkpoint",
    "save_events",
    "save_sequences",
    "season_evidence",
    "season_gain",
    "set_aside_checkpoints",
    "shared_weights",
    "table_fingerprint",
    "temporal_split",
    "training_columns",
    "transfer_weights",
    "user_counts",
    "weight_histograms",
    "write_model_card",
    "write_report_page",
]
