"""The sample table of a PPO run: printed, written beside the checkpoints, and sent to wandb."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.rlhf.rollout import Sampled


class CompletionsLog:
    """Keeps the samples of a rollout until the Trainer logs."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.table: pd.DataFrame | None = None

    def take(self, sampled: Sampled, prompts: Sequence[int]) -> None:
        """Remember a rollout: prompt, completion, score, kl (nats), tokens, finished."""
        decode, sequences = self.trainer.processing_class.batch_decode, sampled.sequences
        mask = sequences.completion_mask
        completions = [ids[own] for ids, own in zip(sequences.completion_ids, mask, strict=True)]
        self.table = pd.DataFrame(
            {
                "prompt": decode([self.trainer._prompts[index] for index in prompts]),
                "completion": decode(completions, skip_special_tokens=True),
                "score": sampled.scores.cpu(),
                "kl": sampled.kl.cpu(),
                "tokens": mask.sum(-1).cpu(),
                "finished": sampled.finished.cpu(),
            }
        )

    def write(self) -> None:
        """On the main process: completions/completions_<step>.parquet, and the head to stdout."""
        table, trainer = self.table, self.trainer
        self.table = None
        if table is None or not trainer.is_world_process_zero():
            return
        table.insert(0, "step", trainer.state.global_step)
        folder = Path(trainer.args.output_dir) / "completions"
        folder.mkdir(parents=True, exist_ok=True)
        table.to_parquet(folder / f"completions_{trainer.state.global_step:05d}.parquet")
        head = table.head(trainer.args.num_completions_to_print)
        Console().print(as_rich(head, f"step {trainer.state.global_step}"))
        if "wandb" in (trainer.args.report_to or []):
            import wandb

            if wandb.run is not None:
                wandb.log({"completions": wandb.Table(dataframe=table)})


def as_rich(table: pd.DataFrame, title: str) -> Table:
    shown = Table(title=title, show_lines=True)
    for name in ("prompt", "completion", "score", "kl"):
        shown.add_column(name)
    for row in table.itertuples():
        shown.add_row(
            escape(row.prompt), escape(row.completion), f"{row.score:.3f}", f"{row.kl:.3f}"
        )
    return shown
