"""Fine-tuning a part of a model: the body frozen, or low-rank adapters in it."""

from torch import nn

from .pretrained_implicitrec import ImplicitRecPreTrainedModel

PROJECTIONS = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]


def freeze_body(model: ImplicitRecPreTrainedModel) -> None:
    """Keep the blocks as they are; the tables of items and types, the priors and the head learn."""
    model.model.blocks.requires_grad_(False)
    model.model.norm.requires_grad_(False)


def add_lora(model: ImplicitRecPreTrainedModel, *, rank: int = 8) -> None:
    """Freeze the body, and give its linear layers low-rank adapters (LoRA, Hu et al., 2022) that learn.

    They start at zero, so that scores stay. [`merge_lora`] makes an ordinary model of it again, which is
    to be done before it is saved.

    Args:
        rank: of the adapters, whose scale is 1.

    Raises:
        ImportError: where `peft` is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("LoRA needs: pip install 'implicitrec[lora]'", name=error.name) from error
    freeze_body(model)
    present = {name.rpartition(".")[2] for name, _ in model.model.blocks.named_modules()}
    chosen = [name for name in PROJECTIONS if name in present]
    inject_adapter_in_model(
        LoraConfig(r=rank, lora_alpha=rank, target_modules=chosen), model.model.blocks
    )


def choose_tuning(model: ImplicitRecPreTrainedModel, part: str, *, lora_rank: int = 8) -> None:
    """Leave to learn what is to be learnt: `"full"`, the body `"frozen"`, or with `"lora"` in it.

    Raises:
        ValueError: for another word.
    """
    if part not in ("full", "frozen", "lora"):
        raise ValueError(f"expected to tune full, frozen or lora, got {part!r}")
    if part == "frozen":
        freeze_body(model)
    elif part == "lora":
        add_lora(model, rank=lora_rank)


def merge_lora(model: ImplicitRecPreTrainedModel) -> None:
    """Add the adapters to the layers that they are on, which take their place."""
    from peft.tuners.lora import LoraLayer

    for parent in list(model.model.blocks.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLayer):
                child.merge()
                base: nn.Module = child.get_base_layer()
                setattr(parent, name, base)
    model.model.blocks.requires_grad_(True)
    model.model.norm.requires_grad_(True)
