"""TRL's DPOTrainer on given token ids: what DPO, its family and the exact study train with.

DPO's loss: -log sigmoid(beta [log pi(y_c|x)/ref(y_c|x) - log pi(y_r|x)/ref(y_r|x)])
(Rafailov et al. 2023, eq. 7). There is no reward network and no sampling.
"""

from typing import Any

import torch
from datasets import Dataset
from trl import DPOTrainer

from pipelines.dpo.losses import dpo_loss, implicit_reward
from pipelines.dpo.specs import DPOSpec, PairSpec
from pipelines.shared.ledger import ModelCost
from pipelines.shared.logprobs import target_logprobs
from pipelines.shared.shared_prompts import shared_logprobs, shared_shape
from pipelines.shared.training import Accounted, with_preference

COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids", "ref_chosen_logps", "ref_rejected_logps")


class ExactIdsDPOTrainer(Accounted, DPOTrainer):
    """TRL's DPOTrainer on token ids and reference log-probs that are given.

    TRL 1.16 takes text only: it tokenizes again and appends EOS to completions that were cut off.
    Batches, optimiser, logs and the loss are TRL's; a subclass's `compute_loss` takes the log-probs
    from `token_logprobs`, which are the same numbers for less work: a prompt is computed once for
    both of its completions where that is cheaper. The cost that is booked is that of such a loss.
    """

    columns: tuple[str, ...] = COLUMNS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cost = ModelCost.of(self.model)

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        missing = set(self.columns) - set(dataset.column_names)
        if missing:
            raise ValueError(f"pairs lack the columns {sorted(missing)}")
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset  # they came with the pairs

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        # DPOTrainer's own refuses data once training has begun: it would have to compute the
        # reference log-probs, which here come with the pairs.
        return super(DPOTrainer, self).evaluate(*args, **kwargs)

    def token_logprobs(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Log-probs (nats) of the completion tokens of TRL's batch of B pairs, 0 elsewhere:
        (2B, T), the chosen first."""
        targets = inputs["completion_mask"].bool()
        if shared_shape(model, self.cost, inputs["input_ids"], targets):
            return shared_logprobs(model, inputs["input_ids"], targets)
        sequences = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        return target_logprobs(model, sequences, targets)

    def forward_flops(self, inputs: dict[str, Any]) -> int:
        targets = inputs["completion_mask"].bool()
        tokens = int(targets.sum())
        shared = shared_shape(self.model, self.cost, inputs["input_ids"], targets)
        if shared:
            pairs, length = shared
            # A prompt predicts two first tokens from one hidden state.
            return self.cost.forward(pairs, length, tokens, read=tokens - pairs)
        sequences, length = targets.shape
        return self.cost.forward(sequences, length, tokens)


class SoftLabelDPOTrainer(ExactIdsDPOTrainer):
    """DPO where a column `preference` holds the probability that chosen is the better one.

    TRL has hard labels only (its label_smoothing is one number for all pairs).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.data_collator = with_preference(self.data_collator)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        chosen, rejected = self.token_logprobs(model, inputs).sum(-1).chunk(2)
        chosen = implicit_reward(chosen, inputs["ref_chosen_logps"], self.beta)
        rejected = implicit_reward(rejected, inputs["ref_rejected_logps"], self.beta)
        margin = (chosen - rejected).detach()
        agree = ((margin > 0) == (inputs["preference"] > 0.5)).float()
        self._metrics["train"]["rewards/margins"].append(float(margin.mean()))
        self._metrics["train"]["rewards/accuracies"].append(float(agree.mean()))
        return dpo_loss(chosen, rejected, inputs["preference"]).mean()


def dpo_arguments(spec: DPOSpec) -> dict[str, Any]:
    """`spec` as arguments of DPOConfig."""
    return {"beta": spec.beta, "loss_type": ["sigmoid"], **pair_arguments(spec)}


def pair_arguments(spec: PairSpec) -> dict[str, Any]:
    """How an arm trains on pairs, whatever its loss, as arguments of DPOConfig."""
    return {
        "precompute_ref_log_probs": True,
        "num_train_epochs": spec.epochs,
        "per_device_train_batch_size": spec.batch_size,
        # Not more than in training: looking at the loss must not raise the peak memory, and KTO's
        # loss depends on the batch.
        "per_device_eval_batch_size": spec.batch_size,
        "learning_rate": spec.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": spec.warmup,
        "max_grad_norm": spec.max_grad_norm,
        "max_length": None,
    }
