"""The networks of a PPO run, loaded, copied and checked."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from pipelines.rlhf.actor_critic import new_critic
from pipelines.rlhf.checks import check_reward_model, check_tokenizer, check_vocabulary
from pipelines.rlhf.ppo_config import PPOConfig
from pipelines.shared.kernels import with_fast_kernels
from pipelines.shared.sampling import context_length


@dataclass(frozen=True)
class Cast:
    """Who plays in a run.

    Attributes:
        policy: plain, or with a PEFT adapter.
        reference: None where it is the policy without its adapter.
        judge: the reward model, or None.
        critic: None where it is a head on the policy's trunk.
    """

    policy: Any
    reference: Any
    judge: Any
    critic: Any
    tokenizer: PreTrainedTokenizerBase

    def frozen(self) -> list[Any]:
        """The networks that are not trained."""
        return [network for network in (self.reference, self.judge) if network is not None]

    @property
    def context(self) -> int | None:
        """Positions that every network has; None where none says."""
        everyone = [self.policy, *self.frozen()] + ([self.critic] if self.critic else [])
        return min((n for n in map(context_length, everyone) if n is not None), default=None)


def assemble(
    model: PreTrainedModel | str,
    ref_model: PreTrainedModel | None,
    reward_model: PreTrainedModel | str | None,
    value_model: PreTrainedModel | None,
    args: PPOConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    reward_tokenizer: PreTrainedTokenizerBase | None,
    peft_config: Any,
) -> Cast:
    """Load what is named, copy what is missing, and check that all of it fits together.

    Args: see `PPOTrainer`.

    Raises:
        ValueError: what does not fit, in one line.
    """
    policy, judge = load_by_name(model, reward_model, args)
    own: Any = tokenizer or AutoTokenizer.from_pretrained(policy.config._name_or_path)
    check_tokenizer(own)
    if judge is not None:
        check_reward_model(judge, policy, own, reward_tokenizer)
    if ref_model is model:
        raise ValueError("ref_model is the policy itself: pass a copy, or None")
    critic = choose_critic(policy, judge, value_model, args)
    readers = [network for network in (policy, ref_model, judge, critic) if network is not None]
    check_vocabulary(own, readers)
    adapted = peft_config is not None or hasattr(policy, "peft_config")
    if adapted and args.ema_reference is not None:
        raise ValueError("ema_reference cannot follow an adapter: train without PEFT")
    reference = ref_model if ref_model is not None or adapted else copy.deepcopy(policy)
    if peft_config is not None:
        from peft import get_peft_model

        policy = get_peft_model(policy, peft_config)
    if not any(weight.requires_grad for weight in policy.parameters()):
        raise ValueError("no weight of the policy is trainable: it could learn nothing")
    for network in (policy, reference, judge, critic):
        if network is not None:
            with_fast_kernels(network)
    return Cast(policy, reference, judge, critic, own)


def load_by_name(
    model: PreTrainedModel | str, reward_model: PreTrainedModel | str | None, args: PPOConfig
) -> tuple[Any, Any]:
    """Policy and reward model. In fp32, as in TRL: in bf16 weights, most steps at the usual
    learning rates are rounded away."""
    policy: Any = model
    if isinstance(model, str):
        options = {"dtype": torch.float32, **(args.model_init_kwargs or {})}
        policy = AutoModelForCausalLM.from_pretrained(model, **options)
    judge: Any = reward_model
    if isinstance(reward_model, str):
        judge = AutoModelForSequenceClassification.from_pretrained(
            reward_model, num_labels=1, dtype=torch.float32
        )
    return policy, judge


def choose_critic(
    policy: PreTrainedModel,
    reward_model: PreTrainedModel | None,
    value_model: PreTrainedModel | None,
    args: PPOConfig,
) -> PreTrainedModel | None:
    """The critic's network; None where it is a head on the policy's trunk."""
    if args.share_trunk:
        if value_model is not None:
            raise ValueError("share_trunk makes the critic a head of the policy: no value_model")
        return None
    if value_model is not None:
        if value_model is reward_model:
            raise ValueError("value_model is the reward model itself: pass a copy, or None")
        return value_model
    if hasattr(reward_model, "peft_config"):
        raise ValueError(
            "the reward model has an adapter: merge_and_unload() it, or pass value_model"
        )
    if reward_model is not None:
        # A judge that has served before is frozen; its copy must learn.
        return copy.deepcopy(reward_model).requires_grad_(True)
    if hasattr(policy, "peft_config"):
        raise ValueError("pass value_model, or share_trunk=True, with a PEFT model")
    return new_critic(policy)
