"""Policy and critic as one module, so that one optimiser and one wrapper hold both."""

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from pipelines.shared.logprobs import Sequences, completion_logprobs
from pipelines.shared.models import token_values
from pipelines.shared.reading import mlp_at, unwrapped

HEAD = "value_head.pt"


class ActorCritic(torch.nn.Module):
    """A policy with a critic: a network of its own, or a head on the policy's trunk.

    Args:
        policy: a causal LM, plain or with a PEFT adapter.
        value: a sequence classifier with one output; None: a zero-initialised linear head on the
            policy's last hidden state (Ziegler et al. 2019).
    """

    def __init__(self, policy: PreTrainedModel, value: PreTrainedModel | None) -> None:
        super().__init__()
        self.policy, self.value = policy, value
        if value is None:
            width = policy.config.get_text_config().hidden_size
            self.head = torch.nn.Linear(width, 1)
            torch.nn.init.zeros_(self.head.weight)
            torch.nn.init.zeros_(self.head.bias)

    def forward(
        self, sequences: Sequences, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs (nats) of the completion tokens (B, C), 0 at padding, and the values before
        each of them and after the last column (B, C + 1), fp32."""
        if self.value is not None:
            logprobs = completion_logprobs(self.policy, sequences, temperature)
            return logprobs, self.values(sequences)
        with last_states(unwrapped(self.policy)) as states:
            logprobs = completion_logprobs(
                self.policy, sequences, temperature, also=sequences.from_prompts_end
            )
        return logprobs, self._read(states[0], sequences)

    def values(self, sequences: Sequences) -> torch.Tensor:
        """Values before each completion token, and after the last column: (B, C + 1) fp32."""
        if self.value is None:
            trunk = unwrapped(self.policy).base_model
            with mlp_at(self.policy, sequences.from_prompts_end):
                states = trunk(**sequences.model_inputs(), use_cache=False).last_hidden_state
            return self._read(states, sequences)
        values = token_values(self.value, sequences, sequences.from_prompts_end)
        return values[:, sequences.prompt_width - 1 :].float()

    def _read(self, states: torch.Tensor, sequences: Sequences) -> torch.Tensor:
        return self.head(states[:, sequences.prompt_width - 1 :]).squeeze(-1).float()

    @contextlib.contextmanager
    def without_adapter(self) -> Iterator[PreTrainedModel]:
        """The policy as it was before its PEFT adapter."""
        adapted: Any = self.policy
        with adapted.disable_adapter():
            yield self.policy

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """Called by the Trainer where its arguments ask for it."""
        for network in filter(None, (self.policy, self.value)):
            network.activation_checkpointing_enable(**kwargs)

    def save(self, folder: Path) -> None:
        """Write the policy (or its adapter) as a Transformers folder, with the critic inside."""
        self.policy.save_pretrained(folder)
        if self.value is not None:
            self.value.save_pretrained(folder / "value")
        else:
            torch.save(self.head.state_dict(), folder / HEAD)

    def load(self, folder: Path) -> None:
        """Read back the weights that `save` wrote."""
        if hasattr(self.policy, "peft_config"):
            from peft import load_peft_weights, set_peft_model_state_dict

            set_peft_model_state_dict(self.policy, load_peft_weights(str(folder), device="cpu"))
        else:
            load_weights(self.policy, folder)
        if self.value is not None:
            load_weights(self.value, folder / "value")
        else:
            self.head.load_state_dict(torch.load(folder / HEAD, weights_only=True))


@contextlib.contextmanager
def last_states(model: PreTrainedModel) -> Iterator[list[torch.Tensor]]:
    """The last hidden states (B, T, width) of a forward pass inside, which the LM head reads."""
    found: list[torch.Tensor] = []
    hook = model.base_model.register_forward_hook(
        lambda module, arguments, output: found.append(output.last_hidden_state)
    )
    try:
        yield found
    finally:
        hook.remove()


def load_weights(model: PreTrainedModel, folder: Path) -> None:
    """Give a model the weights of another of its class, saved in a folder."""
    saved = type(model).from_pretrained(folder, dtype=model.dtype)
    model.load_state_dict(saved.state_dict())


def new_critic(policy: PreTrainedModel) -> PreTrainedModel:
    """A critic where there is no reward model: the policy's trunk, and a head of zeros."""
    config = copy.deepcopy(policy.config)
    config.num_labels = 1
    critic: Any = AutoModelForSequenceClassification.from_config(config, dtype=policy.dtype)
    critic.base_model.load_state_dict(policy.base_model.state_dict())
    torch.nn.init.zeros_(critic.score.weight)
    return critic
