"""LoRA: low-rank adapters on the linear layers, in place of training all weights (Hu et al. 2022).

What is saved is a plain model with the adapters' products added to its weights: whatever reads a
checkpoint need not know how it was trained.
"""

import copy
from typing import Any

from pipelines.shared.specs import WeightsSpec
from pipelines.shared.steps import Context

HEADS = ("score", "classifier")  # of sequence classifiers: new, and so trained as they are


def weights_of(context: Context) -> WeightsSpec:
    """How a step trains; the default where its recipe does not say."""
    spec: Any = context.step.recipe.get("weights", WeightsSpec())
    return spec


def adapted(context: Context, model: Any) -> Any:
    """`model` as a step trains it: itself, or with adapters on all linear layers but its head."""
    spec: WeightsSpec = weights_of(context)
    if not spec.lora_rank:
        return model
    from peft import LoraConfig, get_peft_model

    causal = model.get_output_embeddings() is not None
    heads = [name for name, _ in model.named_children() if name in HEADS]
    config = LoraConfig(
        r=spec.lora_rank,
        lora_alpha=spec.lora_alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        modules_to_save=heads or None,
        task_type="CAUSAL_LM" if causal else "SEQ_CLS",
    )
    return get_peft_model(model, config)


def merged(model: Any) -> Any:
    """A plain model that computes what `model` does: itself where it has no adapters."""
    if not hasattr(model, "peft_config"):
        return model
    return copy.deepcopy(model).merge_and_unload()
