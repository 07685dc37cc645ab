"""What must hold before PPO starts and at every update; each is one line that says what to do."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


class TokenizerError(ValueError):
    """The tokenizer cannot tell where a completion ends."""


class RatioError(RuntimeError):
    """Rollout and update are not of the same policy."""


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises TokenizerError unless EOS and PAD are there and differ."""
    if tokenizer.eos_token_id is None:
        raise TokenizerError("the tokenizer has no EOS token: set tokenizer.eos_token")
    if tokenizer.pad_token_id is None:
        raise TokenizerError("the tokenizer has no PAD token: set tokenizer.pad_token, not to EOS")
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise TokenizerError(
            "the tokenizer's PAD is its EOS: finished completions could not be told from cut-off "
            "ones; set tokenizer.pad_token to another token"
        )


def check_vocabulary(
    tokenizer: PreTrainedTokenizerBase, networks: Sequence[PreTrainedModel]
) -> None:
    """Raises ValueError where a special token has no embedding in a network that will read it."""
    for network in networks:
        size = network.get_input_embeddings().num_embeddings
        for name in ("eos_token_id", "pad_token_id"):
            if getattr(tokenizer, name) >= size:
                raise TokenizerError(
                    f"{name} {getattr(tokenizer, name)} is beyond the {size} embeddings of "
                    f"{type(network).__name__}: resize them, or choose a token that it has"
                )


@torch.no_grad()
def check_adapter(policy: Any, prompt: list[int], own_reference: bool) -> None:
    """With PEFT the reference is the policy without its adapter: that must be where it starts.

    Raises:
        ValueError: the adapter already changes the model, or trains what disabling it does not
            restore, or has a name under which it is not found again.
    """
    if "default" not in policy.peft_config:
        raise ValueError(f"the adapter is called {list(policy.peft_config)}: call it default")
    if own_reference:
        return
    if getattr(policy.peft_config["default"], "bias", "none") != "none":
        raise ValueError("the adapter trains biases, which the reference shares: use bias='none'")
    ids = torch.tensor([prompt], device=policy.device)
    was_training = policy.training
    policy.eval()
    adapted = policy(input_ids=ids).logits
    with policy.disable_adapter():
        plain = policy(input_ids=ids).logits
    policy.train(was_training)
    if not torch.allclose(adapted.float(), plain.float(), atol=1e-3):
        raise ValueError(
            "the adapter already changes the model, and without it the reference would be another: "
            "merge_and_unload() it and pass peft_config, or pass ref_model"
        )


def check_reward_model(
    reward_model: PreTrainedModel,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reward_tokenizer: PreTrainedTokenizerBase | None,
) -> None:
    """The reward model must read the policy's token ids as the policy means them.

    Raises:
        ValueError: another vocabulary, or another number of outputs than one.
    """
    if getattr(reward_model.config, "num_labels", 1) != 1:
        raise ValueError(
            f"the reward model has {reward_model.config.num_labels} outputs: it must have one"
        )
    if reward_tokenizer is not None:
        if reward_tokenizer.get_vocab() != tokenizer.get_vocab():
            raise ValueError(
                "the reward model's tokenizer has another vocabulary than the policy's: "
                "wrap it in a reward function that tokenizes the text itself"
            )
        return
    sizes = [model.config.get_text_config().vocab_size for model in (policy, reward_model)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the reward model has a vocabulary of {sizes[1]}, the policy of {sizes[0]}: it would "
            "read other words; wrap it in a reward function that tokenizes the text itself, or "
            "pass reward_processing_class if the two tokenizers are the same"
        )


def check_runtime(trainer: Any) -> None:
    """Raises ValueError for precisions and ways of running that would train something else."""
    if trainer.args.n_gpu > 1:
        raise ValueError("one process sees several GPUs: use `accelerate launch`, a process each")
    if any(weight.dtype == torch.float16 for weight in trainer.model.parameters()):
        raise ValueError("the model's weights are fp16, which overflows in PPO: load it in fp32")
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ValueError(
            "PPOTrainer runs data-parallel (DDP): FSDP and DeepSpeed are not supported"
        )


def check_reference(saved: list[float], now: list[float]) -> None:
    """A run that goes on must be held to the reference that it started with.

    Args:
        saved, now: sums over the reference's weights and their squares.

    Raises:
        ValueError: they differ, as where a resumed run made its reference of the trained policy.
    """
    if any(abs(a - b) > 1e-6 * max(abs(a), abs(b), 1.0) for a, b in zip(saved, now, strict=True)):
        raise ValueError(
            "the reference is not the one that this run started with: build the trainer from the "
            "first model (or pass ref_model), the checkpoint's weights are loaded by train()"
        )


def check_ratio(ratio: torch.Tensor, tolerance: float) -> None:
    """Before the first optimiser step of an update, policy and sampler are the same model.

    Raises:
        RatioError: they disagree on the log-probs.
    """
    worst = float((ratio.detach() - 1).abs().max())
    if not worst <= tolerance:
        raise RatioError(
            f"the first minibatch's ratio is off 1 by {worst:.2e} (tolerance {tolerance:g}): "
            "the policy's log-probs differ between rollout and update; likely dropout, another "
            "temperature, position ids that count padding, or lower precision in one of them"
        )
