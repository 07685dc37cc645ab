"""The sentiment study by its peers: the same arms by TRL's trainers and Transformers' sampling.

    .venv/bin/python bench/study_peer.py --scale mini

What a careful researcher would write who runs four PPO and four DPO runs one after another, each
with all cores, and keeps the SFT and reward-model checkpoints: TRL's SFTTrainer, RewardTrainer and
DPOTrainer, PPOTrainer of TRL 1.12.0 (the last release with PPO, in an environment of its own),
`generate` for all sampling, full forward passes for the KL. Data, gold reward, labels and all
settings are the project's. Building the environment is not timed; writing a report is no part of
it. Writes a table of seconds (stage, label, seconds; with the total), and prints what the runs
came to. With --workdir, a stage that is done there is not repeated and its seconds are used again.
"""

import argparse
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()

from pipelines.shared.allocator import SETTINGS  # noqa: E402
from pipelines.shared.executors import QUIET  # noqa: E402

CSV = Path(__file__).with_suffix(".csv")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--scale", default="mini", help="default: %(default)s")
    parser.add_argument("--workdir", type=Path, help="kept; default: a temporary one")
    parser.add_argument("--csv", type=Path, help=f"default: {CSV.name} here; not for other scales")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="threads")
    return parser.parse_args()


def with_environment() -> None:
    """Start again with what glibc and the libraries read only when a process starts."""
    keep_freed_memory = {name: str(value) for name, (_, value) in SETTINGS.items()}
    wanted = {**QUIET, "HF_HUB_OFFLINE": "1", **keep_freed_memory}
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **wanted})


def run(workdir: Path, scale: str, cores: int) -> tuple[Any, Any]:
    """All stages; returns them and, one row a policy, what it came to."""
    import torch
    from peer import ppo
    from peer import stages as peer
    from peer.runs import study as resolved
    from peer.timed import Stages
    from transformers.utils import logging as transformers_logging

    from pipelines.shared.steps import run_step

    torch.set_num_threads(cores)
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of Transformers, about TRL
    study = resolved(scale)
    check_same(workdir, study)
    protocol, stages, data = study.protocol, Stages(workdir), data_runtime(workdir)
    stages.book("start", "imports", time.perf_counter() - STARTED)
    corpus_step = study.gold.upstream["corpus"]
    stages.run("data", "corpus", lambda folder: run_step(corpus_step, data))
    stages.run("data", "gold", lambda folder: run_step(study.gold, data))
    corpus, gold = (step.folder(data.results) for step in (corpus_step, study.gold))
    sft = stages.run("sft", "shared", lambda folder: peer.sft(folder, protocol, corpus))
    start = sft / "checkpoint"
    completions = stages.run(
        "completions",
        "shared",
        lambda folder: peer.sample_pairs(folder, protocol, corpus, gold, start),
    )
    pairs = stages.run("pairs", "shared", lambda folder: peer.label(folder, protocol, completions))
    judge = stages.run(
        "reward-model",
        "shared",
        lambda folder: peer.reward_model(folder, protocol, start, completions, pairs),
    )
    given = {"corpus": corpus, "gold": gold, "start": start, "reward_model": judge}
    specs = {
        arm: {run.policy.label: run.policy.recipe[arm] for run in study.runs if run.arm == arm}
        for arm in ("ppo", "dpo")
    }
    ppo.run_all(stages, specs["ppo"], protocol, given, cores, peer.SEED)
    for label, spec in specs["dpo"].items():
        stages.run("dpo", label, lambda folder, spec=spec: peer.dpo(folder, spec, start, pairs))
    judged = {
        "sft": stages.run(
            "evaluation", "sft", lambda folder: peer.evaluate(folder, protocol, [(0, start)], given)
        )
    }
    for arm in specs:
        for label in specs[arm]:
            trained = stages.folder(arm, label)
            judged[f"{arm} {label}"] = stages.run(
                "evaluation",
                f"{arm}-{label}",
                lambda folder, run=trained: peer.evaluate_run(folder, protocol, run, given),
            )
    stages.run(
        "reference-samples",
        "shared",
        lambda folder: peer.sample_reference(folder, protocol, corpus, gold, start),
    )
    return stages, summary(sft, judged)


def check_same(workdir: Path, study: Any) -> None:
    """Refuse a folder that holds the stages of other settings."""
    from pipelines.shared.steps import digest

    steps = [step.fingerprint for step in study.steps()]
    file, wanted = workdir / "settings.sha256", digest(steps)
    if file.is_file() and file.read_text() != wanted:
        raise SystemExit(f"{workdir} holds stages of other settings: name another --workdir")
    file.write_text(wanted)


def data_runtime(workdir: Path) -> Any:
    """Where the project's own steps, corpus and gold reward, write."""
    from pipelines.shared.assets import default_cache
    from pipelines.shared.specs import Runtime

    return Runtime(results=workdir / "results", cache=default_cache())


def summary(sft: Path, judged: dict[str, Path]) -> Any:
    """run, step, kl_rb, kl_k1, reward_gold, reward_proxy: means over the last policy's samples, so
    that a reader sees that the work was done; of the SFT model also validation_loss."""
    import json

    import pandas as pd

    rows = []
    for name, folder in judged.items():
        scores = pd.read_parquet(folder / "scores.parquet")
        last = scores[scores["step"] == scores["step"].max()]
        means = last[["kl_rb", "kl_k1", "reward_gold", "reward_proxy"]].mean()
        rows.append({"run": name, "step": int(last["step"].iloc[0]), **means})
    rows[0]["validation_loss"] = json.loads((sft / "validation.json").read_text())["loss"]
    return pd.DataFrame(rows)


def main() -> None:
    """Run what is not done and write the table."""
    arguments = parse()
    with_environment()
    with tempfile.TemporaryDirectory() as scratch:
        workdir = (arguments.workdir or Path(scratch)).absolute()
        workdir.mkdir(parents=True, exist_ok=True)
        stages, table = run(workdir, arguments.scale, arguments.cores)
        stages.write(workdir / CSV.name)
        file = arguments.csv or (CSV if arguments.scale == "mini" else workdir / CSV.name)
        stages.write(file)
        table.to_csv(workdir / "summary.csv", index=False)
    print(f"\nat the end of training, means over evaluation's samples (scale {arguments.scale}):")
    print(table.to_string(index=False, float_format="{:.3f}".format, na_rep=""))
    print(f"\n{stages.total:.1f} s in all; by stage in {file}")


if __name__ == "__main__":
    main()
