"""PPO with one detail broken that is no option, because nobody should want it: what would it cost?

Numbers are those of pipelines/rlhf/README.md.
"""

from typing import Any

import torch

from pipelines.rlhf.checks import RatioError, TokenizerError
from pipelines.rlhf.ppo import PPOTrainer
from pipelines.shared.logprobs import Sequences
from pipelines.shared.models import token_values


class PadIsEos(PPOTrainer):
    """2: PAD is the EOS token."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        tokenizer = kwargs["processing_class"]
        tokenizer.pad_token = tokenizer.eos_token
        super().__init__(*args, **kwargs)


class UpdateAtTemperature1(PPOTrainer):
    """9: the update does not divide the logits by the temperature that the rollout used."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        sampled_at, self.args.temperature = self.args.temperature, 1.0
        try:
            return super().compute_loss(*args, **kwargs)
        finally:
            self.args.temperature = sampled_at


class RewardReadAtLastColumn(PPOTrainer):
    """12: the reward model is read at the batch's last column, padding or not."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        judge: Any = self.scorer.reward_model
        self.scorer.reward_model = None
        self.scorer.functions = [lambda **columns: columns["scores"]]
        self.scorer.weights = [1.0]

        def arguments(sequences: Sequences, rows: Any) -> dict[str, Any]:
            return {"scores": token_values(judge, sequences)[:, -1]}

        self.scorer._arguments = arguments  # type: ignore[method-assign,assignment]


class ScoreAtFirstToken(PPOTrainer):
    """17: the score is added at the first token, so that later tokens have no part in it."""

    def _score_columns(self, lengths: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(lengths)


class DropoutOn(PPOTrainer):
    """30: dropout of 0.1 stays on in the update."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for module in self._networks.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.1


class ValuesOneLate(PPOTrainer):
    """33: values are masked like tokens: that of the state after a token is taken for the one
    before it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        networks = self._networks
        right = networks.values

        def late(sequences: Sequences) -> torch.Tensor:
            values = right(sequences)
            return torch.cat([values[:, 1:], values[:, -1:]], dim=1)

        networks.values = late  # type: ignore[method-assign]


BROKEN: dict[str, type[PPOTrainer]] = {
    "": PPOTrainer,
    "pad-is-eos": PadIsEos,
    "update-at-temperature-1": UpdateAtTemperature1,
    "reward-read-at-last-column": RewardReadAtLastColumn,
    "score-at-first-token": ScoreAtFirstToken,
    "dropout-on": DropoutOn,
    "values-one-late": ValuesOneLate,
}

# The check of the trainer that should stop it.
STOPPED_BY: dict[str, tuple[type[Exception], ...]] = {
    "pad-is-eos": (TokenizerError,),
    "update-at-temperature-1": (RatioError,),
    "dropout-on": (RatioError,),
}
