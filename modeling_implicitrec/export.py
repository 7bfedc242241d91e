"""A model as an ONNX file: scores without torch, in floats or with weights of 8 bits."""

import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .configuration_implicitrec import ImplicitRecConfig
from .layers_implicitrec import last_events
from .modeling_implicitrec import ImplicitRecForScoring
from .scoring import batch_histories

OUTPUTS = ["logits", "states"]
ADVICE = "exporting needs onnx, onnxscript and onnxruntime: pip install 'implicitrec[onnx]'"


class _Scores(nn.Module):
    """The model with inputs by place; beside the scores, the states that they are made of."""

    def __init__(self, model: ImplicitRecForScoring, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(self, *values: Tensor) -> tuple[Tensor, Tensor]:
        inputs = dict(zip(self.names, values))
        output = self.model(**inputs)
        last = last_events(inputs["input_weights"] * (inputs["input_ids"] > 0))
        states = output.last_hidden_state[torch.arange(last.shape[0]), last]
        return output.logits, self.model.state_centre(states)


@torch.no_grad()
def export_onnx(
    model: ImplicitRecForScoring, path: str | os.PathLike, *, times: bool = True
) -> Path:
    """Write a model as an ONNX file, for any number of histories of any length.

    Inputs, `[batch, length]` int64: `input_ids`, `input_weights` (float32), `timestamps`, and
    `event_type_ids` and `platform_ids` where the model tells any apart; `query_time`, `[batch]`, where it
    reads one. Outputs: `logits`, `[batch, vocab_size]` as of [`ImplicitRecForScoring`], and `states`,
    `[batch, hidden_size]`, whose products with the item table are what the body adds to them. The open
    axes are called `batch` and `length`.

    Args:
        model: on the CPU; set to evaluation mode.
        path: of the file, replaced when it is whole.
        times: whether histories have timestamps.

    Raises:
        ImportError: without the extra `onnx`.
        ValueError: for a GRU, whose loop over events has no length that ONNX could leave open.
    """
    if model.config.sequence_mixer == "gru":
        raise ValueError("a model with the GRU mixer cannot be exported with an open length")
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(ADVICE) from error
    example = _example(model.config, times)
    batch = torch.export.Dim("batch")
    length = torch.export.Dim("length", max=model.config.max_position_embeddings)
    shapes = tuple({0: batch, 1: length} if v.dim() == 2 else {0: batch} for v in example.values())
    with _quiet():
        program = torch.export.export(
            _Scores(model.eval(), list(example)), tuple(example.values()), dynamic_shapes=(shapes,)
        )
        made: Any = torch.onnx.export(
            program, input_names=list(example), output_names=OUTPUTS, verbose=False
        )
    _name_axes(made.model.graph)
    return _write_whole(path, lambda fresh: made.save(str(fresh)))


def _name_axes(graph: Any) -> None:
    """Call the open axes of a graph what they are; the exporter numbers them."""
    batch, length = (axis.value for axis in graph.inputs[0].shape)
    names = {batch: "batch", length: "length"}
    for value in [*graph.inputs, *graph.outputs, *(out for node in graph for out in node.outputs)]:
        for place, axis in enumerate(value.shape or ()):
            if not isinstance(axis, int) and axis.value is not None:
                value.shape[place] = re.sub(
                    r"\w+", lambda word: names.get(word[0], word[0]), axis.value
                )


def quantize_onnx(path: str | os.PathLike, target: str | os.PathLike) -> Path:
    """Write an exported model again with the weights of products and tables in 8 bits.

    Activations are quantised as they come (dynamic quantisation). What it costs is measured with
    [`OnnxScorer`] and [`evaluate`].

    Args:
        path: of what [`export_onnx`] wrote.
        target: of the new file, replaced when it is whole.

    Raises:
        ImportError: without the extra `onnx`.
    """
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise ImportError(ADVICE) from error
    with _quiet():
        return _write_whole(
            target, lambda fresh: quantize_dynamic(Path(path), fresh, weight_type=QuantType.QInt8)
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters remark on themselves, such as packages that no model here needs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.disable(before)


def _write_whole(path: str | os.PathLike, write: Callable[[Path], Any]) -> Path:
    """The path, once what is written beside it has been moved there."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        write(Path(folder) / target.name)
        os.replace(Path(folder) / target.name, target)
    return target


def _example(config: ImplicitRecConfig, times: bool) -> dict[str, Tensor]:
    """Inputs to trace a model with: sizes of 1 would be taken for constants."""
    names = ["input_ids", "input_weights", *(["timestamps"] if times else [])]
    names += ["event_type_ids"] if config.num_event_types > 1 else []
    names += ["platform_ids"] if config.num_platforms > 1 else []
    example = {name: torch.zeros(3, 4, dtype=torch.long) for name in names}
    example |= {"input_ids": torch.ones(3, 4, dtype=torch.long), "input_weights": torch.ones(3, 4)}
    if times and config.use_query_time:
        example["query_time"] = torch.zeros(3, dtype=torch.long)
    return example


class OnnxScorer:
    """Scores of an exported model over the whole catalogue, for [`evaluate`] as a `ModelScorer`.

    Args:
        path: of what [`export_onnx`] or [`quantize_onnx`] wrote.
        config: of the model that it was made of.
        name: what tables call it.
        threads: of one run; 0 for as many as there are cores.

    Raises:
        ImportError: without the extra `onnx`.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        config: ImplicitRecConfig,
        *,
        name: str = "onnx",
        threads: int = 0,
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(ADVICE) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(path), options)
        self.inputs = [given.name for given in self.session.get_inputs()]
        self.config, self.name = config, name

    def run(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """`logits` and `states` of a batch; event types and platforms that are not given are 0.

        Raises:
            ValueError: where an input is missing.
        """
        given = {name: np.asarray(inputs[name]) for name in self.inputs if name in inputs}
        for name in ("event_type_ids", "platform_ids"):
            if name in self.inputs:
                given.setdefault(name, np.zeros_like(given["input_ids"]))
        if missing := sorted(set(self.inputs) - set(given)):
            raise ValueError(f"the exported model expects {self.inputs}, {missing} are missing")
        return dict(zip(OUTPUTS, self.session.run(OUTPUTS, given)))

    def score(self, rows: Sequence[Mapping[str, list]]) -> Tensor:
        """`[rows, vocab_size]` float scores, of rows with or without a `query_time`."""
        batch = batch_histories(self.config, rows)
        if "query_time" in self.inputs and "query_time" not in batch:
            batch["query_time"] = torch.zeros(len(rows), dtype=torch.long)
        return torch.from_numpy(self.run(batch)["logits"])
