"""The PPO runs of study_peer.py: TRL 1.12.0, the last release with PPO, in its own environment."""

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from environments import LAST_PPO, build_environment

from peer.timed import Stages, begin
from pipelines.rlhf.ppo_stage import ppo_arguments
from pipelines.rlhf.specs import PPOSpec
from pipelines.shared.corpus import prompts_of
from pipelines.shared.specs import SimulatedProtocol
from pipelines.shared.training import snapshot_steps

STAGE = "ppo"
SAME_NAMES = (  # in the arguments of the project's PPOConfig and of TRL's
    "kl_coef",
    "num_ppo_epochs",
    "num_mini_batches",
    "learning_rate",
    "lr_scheduler_type",
    "adam_epsilon",
    "cliprange",
    "cliprange_value",
    "vf_coef",
    "gamma",
    "lam",
    "whiten_rewards",
    "missing_eos_penalty",
)


def trl_arguments(spec: PPOSpec, protocol: SimulatedProtocol, seed: int) -> dict[str, Any]:
    """`spec` as arguments of TRL's PPOConfig; what TRL has no setting for is left out.

    One rollout phase is one batch, and a minibatch is one micro-batch: nothing is done in smaller
    pieces than here.
    """
    known = {k: v for k, v in ppo_arguments(spec).items() if k in SAME_NAMES and v is not None}
    return {
        **known,
        "total_episodes": spec.updates * spec.rollouts,
        "per_device_train_batch_size": spec.rollouts,
        "gradient_accumulation_steps": 1,
        "local_rollout_forward_batch_size": spec.rollouts,
        "response_length": protocol.sampling.max_new_tokens,
        "temperature": protocol.sampling.temperature,
        "seed": seed,
    }


def trl_environment() -> tuple[Path, str]:
    """The Python that has it, built on first use, and the version."""
    return build_environment(LAST_PPO.folder, LAST_PPO.requirements), LAST_PPO.trl


def run_all(
    stages: Stages,
    runs: Mapping[str, PPOSpec],
    protocol: SimulatedProtocol,
    given: Mapping[str, Path],
    threads: int,
    seed: int,
) -> None:
    """Train the runs that are not done, one after another in one process, and note all of them.

    Args:
        runs: by label.
        given: folders `corpus`, `start` (the SFT model's checkpoint) and `reward_model`.
    """
    todo = [label for label in runs if not stages.done(STAGE, label)]
    overhead = 0.0
    if todo:
        overhead = _run(
            stages, {label: runs[label] for label in todo}, protocol, given, threads, seed
        )
    stages.book("start", "ppo process", overhead)
    for label in runs:
        stages.note(STAGE, label, reused=label not in todo)


def _run(
    stages: Stages,
    runs: Mapping[str, PPOSpec],
    protocol: SimulatedProtocol,
    given: Mapping[str, Path],
    threads: int,
    seed: int,
) -> float:
    """Seconds of the process beside those of its runs: start and imports."""
    python, version = trl_environment()
    reviews = pd.read_parquet(given["corpus"] / "texts.parquet")
    chosen = prompts_of(reviews, "preference", protocol.sampling.prompts)["prompt_ids"]
    largest = max(spec.rollouts for spec in runs.values())
    job = {
        "trl": version,
        "threads": threads,
        "start": str(given["start"]),
        "reward_model": str(given["reward_model"] / "checkpoint"),
        "reward_mean": json.loads((given["reward_model"] / "mean.json").read_text())["mean"],
        "prompts": at_least(largest, chosen.map(list).tolist()),
        "runs": [
            {
                "label": label,
                "partial": str(begin(stages.folder(STAGE, label))),
                "folder": str(stages.folder(STAGE, label)),
                "save_after": sorted(snapshot_steps(spec.updates, spec.snapshots)),
                "arguments": trl_arguments(spec, protocol, seed),
            }
            for label, spec in runs.items()
        ],
    }
    file = stages.workdir / "ppo.json"
    file.write_text(json.dumps(job, default=int))  # ids are numpy's integers
    script = Path(__file__).with_name("ppo_side.py")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    print(f"{len(runs)} runs of TRL {version}'s PPOTrainer ...", flush=True)
    log, started = stages.workdir / "ppo.log", time.perf_counter()
    with log.open("w") as output:
        command = [python, "-I", script, file]
        done = subprocess.run(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False
        )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"TRL's PPO failed, see {log}:\n{log.read_text()[-4000:]}")
    files = [stages.folder(STAGE, label) / "seconds.json" for label in runs]
    return seconds - sum(json.loads(file.read_text())["seconds"] for file in files)


def at_least(count: int, prompts: Sequence[list[int]]) -> list[list[int]]:
    """The prompts, repeated where there are fewer than `count`: TRL drops an incomplete batch, and
    with no complete one it waits for ever."""
    return list(prompts) * -(-count // len(prompts)) if len(prompts) < count else list(prompts)
