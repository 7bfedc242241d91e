"""A model as an ONNX file: scores without torch, in floats or with weights of 8 bits."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .layers_implicitrec import last_events
from .modeling_implicitrec import ImplicitRecForScoring
from .scoring import batch_histories

OUTPUTS = ["logits", "states"]


class _Scores(nn.Module):
    """The model with inputs by place, beside the scores the states that they are made of."""

    def __init__(self, model: ImplicitRecForScoring, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(self, *values: Tensor) -> tuple[Tensor, Tensor]:
        inputs = dict(zip(self.names, values))
        output = self.model(**inputs)
        last = last_events(inputs["input_weights"] * (inputs["input_ids"] > 0))
        states = output.last_hidden_state[torch.arange(last.shape[0]), last]
        return output.logits, self.model.state_centre(states)


def export_onnx(
    model: ImplicitRecForScoring, path: str | os.PathLike, *, times: bool = True
) -> Path:
    names = ["input_ids", "input_weights"] + (["timestamps"] if times else [])
    names += ["event_type_ids"] if model.config.num_event_types > 1 else []
    names += ["platform_ids"] if model.config.num_platforms > 1 else []
    length = min(4, model.config.max_position_embeddings)
    example = {name: torch.ones(3, length, dtype=torch.long) for name in names}
    example["input_weights"] = torch.ones(3, length)
    if times and model.config.use_query_time:
        example["query_time"] = torch.ones(3, dtype=torch.long)
    batch = torch.export.Dim("batch")
    steps = torch.export.Dim("length", max=model.config.max_position_embeddings)
    shapes = tuple({0: batch, 1: steps} if v.dim() == 2 else {0: batch} for v in example.values())
    program = torch.export.export(
        _Scores(model.eval(), list(example)), tuple(example.values()), dynamic_shapes=(shapes,)
    )
    onnx = torch.onnx.export(program, input_names=list(example), output_names=OUTPUTS)
    onnx.save(str(path))
    return Path(path)
