"""What the models share: how weights start, and how they are read and saved by Hugging Face."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from .configuration_implicitrec import ImplicitRecConfig
from .head_implicitrec import ZERO_AT_FIRST
from .integrity_implicitrec import check_shapes, check_weights, record_weights
from .layers_implicitrec import (
    EvidenceBias,
    GapEmbedding,
    ImplicitRecRMSNorm,
    PlatformEmbedding,
    WeightEmbedding,
)


class ImplicitRecPreTrainedModel(PreTrainedModel):
    """Weight initialisation and the Hugging Face contract shared by the models."""

    config: ImplicitRecConfig
    config_class = ImplicitRecConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # the loss is normalised by Trainer's num_items_in_batch
    new_head: str | None = None  # where the parameters begin that another model's checkpoint lacks
    _supports_sdpa = True
    _supports_flex_attn = True
    _no_split_modules = ["ImplicitRecBlock"]

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Load from a folder or a Hub repository; only safetensors are read, never a pickle.

        Raises:
            OSError: where there are no safetensors.
            ValueError: where weights are missing, so that nobody takes chance for a trained model, have
                other shapes (unless `ignore_mismatched_sizes`), or are not those that were saved, by the
                SHA-256 in the configuration. A whole head may start anew (`new_head`), which transformers
                warns of.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        may_differ = kwargs.get("ignore_mismatched_sizes", False)
        kwargs |= {"use_safetensors": True, "output_loading_info": True}
        kwargs["ignore_mismatched_sizes"] = True  # transformers would not say which in its error
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model, info = loaded
        if not may_differ:
            check_shapes(pretrained_model_name_or_path, info["mismatched_keys"])
        head = {name for name in model.state_dict() if name.startswith(cls.new_head or ".")}
        if info["missing_keys"] and set(info["missing_keys"]) != head:
            missing = sorted(info["missing_keys"])
            raise ValueError(f"{pretrained_model_name_or_path} lacks the weights {missing}")
        if model.config.weights_sha256:
            expected, model.config.weights_sha256 = model.config.weights_sha256, None
            check_weights(pretrained_model_name_or_path, expected, kwargs)
        return loaded if wants_info else model

    def save_pretrained(  # type: ignore[override]
        self, save_directory: Any, is_main_process: bool = True, **kwargs: Any
    ) -> None:
        """Save as every model is saved, with the SHA-256 of the weights' files in the configuration.

        The configuration's `auto_map` names the classes whose code is saved, and no other. Under FSDP2,
        give the whole weights as `state_dict`, as Trainer does.
        """
        self.config.weights_sha256 = None
        self.config.auto_map = {}
        divided = type(self)
        # FSDP2 makes a class of its own, whose sources are torch's: those of ours go with the weights.
        self.__class__ = next(c for c in divided.__mro__ if not c.__module__.startswith("torch."))
        try:
            super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        finally:
            self.__class__ = divided
        if is_main_process:
            record_weights(save_directory)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Conv1d):
            init.normal_(module.weight, mean=0.0, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            if module.embedding_dim == self.config.hidden_size:
                init.normal_(module.weight, mean=0.0, std=std)
            else:
                init.zeros_(module.weight)
        elif isinstance(module, ImplicitRecRMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, EvidenceBias):
            init.zeros_(module.beta)
        elif isinstance(module, (*ZERO_AT_FIRST, GapEmbedding, PlatformEmbedding)):
            for parameter in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                init.zeros_(parameter)
        if isinstance(module, WeightEmbedding):
            init.zeros_(module.bins.weight)
