"""RLOO, GRPO and online DPO on the enumerable task, on its true reward, by the trainers of every
other study.

Where the task has no EOS its probability is exactly 0, so that every completion goes on to its full
length.
"""

from pipelines.dpo.online import train_from
from pipelines.exact.task import Task
from pipelines.rlhf.group_stage import fit
from pipelines.shared.steps import Context


def train_rloo(context: Context) -> None:
    """Step: one RLOO run. Writes checkpoint/, snapshots/, policies.json."""
    _train_group(context, "rloo")


def train_grpo(context: Context) -> None:
    """Step: one GRPO run. Writes checkpoint/, snapshots/, policies.json."""
    _train_group(context, "grpo")


def _train_group(context: Context, method: str) -> None:
    folder = context.inputs["task"]
    task = Task(folder)
    fit(
        context,
        method,
        folder / "checkpoint",
        task.prompts,
        task.judge,
        max_completion_length=max(map(len, task.completions)),
        temperature=1.0,
    )


def train_online_dpo(context: Context) -> None:
    """Step: one online-DPO run. Writes checkpoint/, snapshots/, policies.json."""
    folder = context.inputs["task"]
    task = Task(folder)
    train_from(
        context,
        folder / "checkpoint",
        task.judge,
        task.prompts,
        max_new_tokens=max(map(len, task.completions)),
    )
