"""A study folder made up from Gaussian rewards, whose optimum is known in closed form.

r ~ N(mu, s^2) under the SFT model gives E*[r] = mu + s^2/beta, KL* = s^2 / (2 beta^2) and
log Z = mu/beta + s^2 / (2 beta^2).
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.evaluate.schema import conform
from pipelines.shared.steps import digest

MU, SPREAD = 0.6, 1.2
DPO = {0.05: (1.6, 3.0), 0.1: (1.2, 1.7), 0.3: (0.9, 0.8), 1.0: (0.77, 0.4)}
PPO = {0.05: (8.0, 35.0), 0.1: (6.6, 26.6), 0.3: (3.0, 6.0), 1.0: (1.2, 1.5)}
EVALUATION = {"split": "evaluation", "samples": 4, "temperature": 1.0}


def record(
    stage: str,
    label: str,
    upstream: Mapping[str, str],
    seconds: float,
    flops: int,
    seed: int = 0,
    **recipe: Any,
) -> dict[str, Any]:
    """A record.json as pipelines.shared.steps writes it."""
    identity = {"stage": stage, "version": 1, "recipe": recipe, "seed": seed, "threads": 1}
    identity |= {"upstream": dict(upstream), "assets": {}}
    cost = {"seconds": seconds, "flops": flops, "tokens_generated": 10, "tokens_trained": 20}
    return {
        "stage": stage,
        "label": label,
        "fingerprint": digest(identity),
        "identity": identity,
        "started": 1.0,
        "cost": {**cost, "peak_memory_bytes": int(seconds) * 1_000_000},
        "phases": {},
        "files": {},
        "tables": {},
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "uncommitted": None,
        "command": ["rlhf-vs-dpo", "run", "toy"],
        "versions": {"python": "3.11.7", "torch": "2.9.0"},
        "hardware": {"processor": "Toy CPU", "cores": 2, "system": "Linux x86_64"},
    }


def scores(
    reward: float, kl: float, seed: int, prompts: int, samples: int, snapshots: int
) -> pd.DataFrame:
    """SCORES that end at (reward, kl) and come from the SFT model's (MU, 0)."""
    random = np.random.default_rng([seed, int(reward * 1000), int(kl * 1000)])
    parts = []
    for snapshot in range(1, snapshots + 1):
        share = snapshot / snapshots
        rows = prompts * samples
        hard = np.repeat(np.random.default_rng(5).normal(0, 0.5, prompts), samples)
        rb = kl * share * np.exp(random.normal(-0.02, 0.2, rows))
        gold = MU + (reward - MU) * share**0.7 + hard + random.normal(0, SPREAD, rows)
        parts.append(
            pd.DataFrame(
                {
                    "prompt_id": np.repeat([f"p{i:03d}" for i in range(prompts)], samples),
                    "sample": np.tile(np.arange(samples), prompts),
                    "step": 0 if snapshots == 1 and kl == 0 else 20 * snapshot,
                    "temperature": 1.0,
                    "kl_k1": rb + random.normal(0, 1.4 * np.sqrt(kl * share + 1e-30), rows),
                    "kl_k3": rb + random.normal(0, 0.5 * np.sqrt(kl * share + 1e-30), rows),
                    "kl_rb": rb,
                    "entropy": 4.0 - 0.05 * kl * share,
                    "length": random.integers(8, 21, rows),
                    "finished": True,
                    "reward_gold": gold,
                    "reward_proxy": 0.5 * gold + random.normal(0, 0.5, rows),
                }
            )
        )
    return conform(pd.concat(parts, ignore_index=True), "scores")


def reference_scores(prompts: int, samples: int) -> pd.DataFrame:
    """REFERENCE_SCORES: every prompt's rewards are N(mu + prompt's own shift, s^2)."""
    random = np.random.default_rng(7)
    hard = np.random.default_rng(5).normal(0, 0.5, prompts)
    return conform(
        pd.DataFrame(
            {
                "prompt_id": np.repeat([f"p{i:03d}" for i in range(prompts)], samples),
                "sample": np.tile(np.arange(samples), prompts),
                "temperature": 1.0,
                "length": random.integers(8, 21, prompts * samples),
                "reward_gold": MU
                + np.repeat(hard, samples)
                + random.normal(0, SPREAD, prompts * samples),
            }
        ),
        "reference_scores",
    )


def toy_scores(**columns) -> pd.DataFrame:
    """Two prompts x two samples of one run, in SCORES' columns and those of `Study.scores`."""
    table = pd.DataFrame(
        {
            "prompt_id": ["a", "a", "b", "b"],
            "sample": [0, 1, 0, 1],
            "step": 5,
            "temperature": 1.0,
            "kl_k1": [1.0, 3.0, 5.0, 7.0],
            "kl_k3": 4.0,
            "kl_rb": [2.0, 2.0, 4.0, 4.0],
            "entropy": 3.0,
            "length": 10,
            "finished": True,
            "reward_gold": [0.0, 2.0, 4.0, 6.0],
            "reward_proxy": [0.0, 1.0, 2.0, 3.0],
            "arm": "dpo",
            "setting": 0.5,
            "seed": 0,
            "variant": "",
            "run": "aaaaaaaa",
            "stage": "dpo",
        }
    )
    return table.assign(**columns)


def reference_of(rewards: list[list[float]]) -> pd.DataFrame:
    """REFERENCE_SCORES with these rewards, a list for each prompt."""
    return pd.DataFrame(
        [
            {"prompt_id": f"p{p}", "sample": s, "temperature": 1.0, "length": 10, "reward_gold": r}
            for p, row in enumerate(rewards)
            for s, r in enumerate(row)
        ]
    )


class Builder:
    """Writes the folder; `records` and `tables` may be changed before `write`.

    `write` gives every record the fingerprint and the digests that it then has.
    """

    def __init__(
        self, prompts: int = 24, samples: int = 4, reference: int = 64, seeds: int = 1
    ) -> None:
        self.records: dict[str, dict[str, Any]] = {}
        self.tables: dict[str, pd.DataFrame] = {}
        self.metrics: dict[str, list[dict[str, Any]]] = {}
        self.arms: list[dict[str, Any]] = []
        self.shape = (prompts, samples)
        corpus = self.add("corpus", "reviews", {}, 3, 0)
        self.sft = self.add("sft", "sft", {"corpus": corpus}, 135, 10**12)
        self.gold = self.add("gold", "gold", {"corpus": corpus}, 2, 10**9)
        self.shared = {"sft": self.sft, "gold": self.gold, "corpus": corpus}
        self.metrics[self.gold] = [
            {"held_out_accuracy": 0.78, "held_out_reviews": 1280, "held_out_majority": 0.52}
        ]
        self.reference = self.add(
            "reference-samples", "reference", self.shared, 60, 4 * 10**12, evaluation=EVALUATION
        )
        self.tables[self.reference] = reference_scores(prompts, reference)
        for seed in range(seeds):
            self.seed(seed)

    def add(
        self,
        stage: str,
        label: str,
        upstream: Mapping[str, str],
        seconds: float,
        flops: int,
        seed: int = 0,
        **recipe,
    ):
        made = record(stage, label, upstream, seconds, flops, seed, **recipe)
        self.records[made["fingerprint"]] = made
        return made["fingerprint"]

    def seed(self, seed: int) -> None:
        """All arms of one seed."""
        sampled = self.add("completions", "c", {"sft": self.sft}, 12, 5 * 10**11)
        labels = {"temperature": 1.0, "noise": 0.0}
        upstream = {"completions": sampled, "gold": self.gold}
        pairs = self.add("pairs", f"pairs{seed}", upstream, 1, 0, seed, labels=labels)
        common = {"sft": self.sft, "pairs": pairs}
        judge = self.add("reward-model", f"rm{seed}", common, 20, 3 * 10**11, seed)
        reference = {"sft": self.sft, "completions": sampled}
        reference = self.add("reference-logprobs", "completions", reference, 4, 10**10)
        common["reference_logprobs"] = reference
        self.metrics[judge] = [
            {"step": 1, "loss": 0.69},
            {"step": 94, "loss": 0.6, "accuracy": 0.66, "reward_mean": 0.1},
        ]
        self.arm("sft", None, seed, self.sft, judge, MU, 0.0, snapshots=1)
        for beta, (reward, kl) in DPO.items():
            recipe = {"dpo": {"beta": beta}}
            policy = self.add("dpo", f"dpo{beta}-{seed}", common, 25, 4 * 10**11, seed, **recipe)
            self.arm("dpo", beta, seed, policy, judge, reward, kl)
        for coefficient, (reward, kl) in PPO.items():
            upstream = {"sft": self.sft, "reward_model": judge}
            recipe = {"ppo": {"kl_coef": coefficient}}
            policy = self.add("ppo", f"p{coefficient}", upstream, 100, 2 * 10**12, seed, **recipe)
            self.arm("ppo", coefficient, seed, policy, judge, reward, kl)

    def arm(
        self, arm, setting, seed, policy, judge, reward, kl, snapshots: int = 3, variant: str = ""
    ) -> None:
        """An evaluated policy."""
        upstream = {**self.shared, "policy": policy, "reward_model": judge}
        label, recipe = f"{arm}-{setting}-{seed}", {"evaluation": dict(EVALUATION)}
        evaluation = self.add("evaluation", label, upstream, 8, 10**10, seed, **recipe)
        self.tables[evaluation] = scores(reward, kl, seed, *self.shape, snapshots=snapshots)
        row = {"arm": arm, "setting": setting, "seed": seed, "variant": variant}
        self.arms.append({**row, "policy": policy, "evaluation": evaluation})

    def keep(self, *arms: str) -> None:
        """Leave out the other arms."""
        self.arms = [arm for arm in self.arms if arm["arm"] in arms]

    def evaluation(self, arm: str, setting: float | None, seed: int = 0) -> str:
        """Fingerprint of one arm's evaluation."""
        wanted = (arm, setting, seed)
        return next(
            a["evaluation"] for a in self.arms if (a["arm"], a["setting"], a["seed"]) == wanted
        )

    def samples(self) -> pd.DataFrame:
        """SAMPLES of every final policy; the texts try to break out of HTML, CSV and LaTeX."""
        rows = []
        for arm in self.arms:
            table = self.tables[arm["evaluation"]]
            for row in table[table["step"] == table["step"].max()].itertuples():
                text = f' film & "fun" <script>alert(1)</script>, 100% {arm["arm"]}_x \\ ünï'
                rows.append(
                    {
                        "run": arm["evaluation"][:8],
                        "prompt_id": row.prompt_id,
                        "sample": row.sample,
                        "prompt": f"the <b>{row.prompt_id}</b> is",
                        "completion": text,
                        "n_tokens": row.length,
                        "finished": True,
                        "logp": -40.0 + row.kl_k1,
                        "ref_logp": -40.0,
                        "reward_proxy": row.reward_proxy,
                        "reward_gold": row.reward_gold,
                    }
                )
        return conform(pd.DataFrame(rows), "samples")

    def manifest(self) -> dict[str, Any]:
        return {
            "experiment": "toy",
            "scale": "mini",
            "title": "A toy study",
            "question": "For Gaussian rewards, RLHF or DPO?",
            "deviations": [{"item": "model", "paper": "GPT-2 large", "here": "none: <made up>"}],
            "arms": self.arms,
            "reference_samples": self.reference,
            "gold": self.gold,
            "reward_label": "gold reward (log-odds of made up)",
            "tuning": "toy-tuning",
            "assets": [
                {
                    "source": "toy reviews",
                    "package": "toys",
                    "version": "1.0",
                    "sha256": "ab" * 32,
                    "licence": "CC0",
                }
            ],
            "steps": list(self.records),
        }

    def refresh(self) -> None:
        """Give every record the fingerprint of what its identity and its upstream have become."""
        new: dict[str, str] = {}

        def rename(key: str) -> str:
            if key in self.records and key not in new:
                identity = self.records[key]["identity"]
                upstream = identity["upstream"]
                identity["upstream"] = {name: rename(step) for name, step in upstream.items()}
                new[key] = self.records[key]["fingerprint"] = digest(identity)
            return new.get(key, key)

        self.records = {rename(key): made for key, made in list(self.records.items())}
        self.tables = {rename(key): table for key, table in self.tables.items()}
        self.metrics = {rename(key): rows for key, rows in self.metrics.items()}
        for arm in self.arms:
            arm |= {name: rename(arm[name]) for name in ("policy", "evaluation")}
        self.reference, self.gold = rename(self.reference), rename(self.gold)

    def write(self, folder: Path, samples: bool = True) -> Path:
        """Write everything below `folder` and return it."""
        (folder / "runs").mkdir(parents=True)
        (folder / "tables").mkdir()
        self.refresh()
        for key, table in self.tables.items():
            path = folder / "runs" / f"{key[:8]}.parquet"
            table.to_parquet(path)
            made = {"scores.parquet": hashlib.sha256(path.read_bytes()).hexdigest()}
            self.records[key]["tables"] = made
        for key, made in self.records.items():
            (folder / "runs" / f"{key[:8]}.json").write_text(json.dumps(made))
        for key, rows in self.metrics.items():
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / "runs" / f"{key[:8]}.metrics.jsonl").write_text(lines)
        if samples:
            self.samples().to_parquet(folder / "tables" / "samples.parquet")
        (folder / "manifest.json").write_text(json.dumps(self.manifest()))
        return folder
