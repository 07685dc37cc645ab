"""A study folder made up from Gaussian rewards."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from synthetic_arms import ARMS, PLAIN, catalogue
from synthetic_tables import MU, reference_scores, scores

from pipelines.evaluate.schema import conform
from pipelines.shared.steps import digest

DPO = {0.05: (1.6, 3.0), 0.1: (1.2, 1.7), 0.3: (0.9, 0.8), 1.0: (0.77, 0.4)}
PPO = {0.05: (8.0, 35.0), 0.1: (6.6, 26.6), 0.3: (3.0, 6.0), 1.0: (1.2, 1.5)}
SAMPLING = {"prompts": 8, "completions": 4, "max_new_tokens": 20, "temperature": 1.0}
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
        "phases": {"sampling": {"seconds": 0.75 * seconds}, "scoring": {"seconds": 0.5 * seconds}},
        "files": {},
        "tables": {},
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "uncommitted": None,
        "command": ["rlhf-vs-dpo", "run", "toy"],
        "versions": {"python": "3.11.7", "torch": "2.9.0"},
        "hardware": {"processor": "Toy CPU", "cores": 2, "system": "Linux x86_64"},
    }


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
        self.estimates: list[dict[str, Any]] = []
        self.catalogue = catalogue(PLAIN)
        self.shape = (prompts, samples)
        corpus = self.add("corpus", "reviews", {}, 3, 0)
        self.sft = self.add("sft", "sft", {"corpus": corpus}, 135, 10**12)
        self.gold = self.add("gold", "gold", {"corpus": corpus}, 2, 10**9)
        self.shared = {"sft": self.sft, "gold": self.gold, "corpus": corpus}
        self.metrics[self.gold] = [
            {"held_out_accuracy": 0.78, "held_out_reviews": 1280, "held_out_majority": 0.52}
        ]
        self.reference = self.add(
            "reference-samples",
            "reference",
            self.shared,
            60,
            4 * 10**12,
            evaluation=EVALUATION,
            sampling=dict(SAMPLING),
        )
        self.tables[self.reference] = reference_scores(prompts, reference)
        for arm in ("best-of-n", "optimum"):
            self.estimate(arm, 0, self.reference)
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
        upstream = {"sft": self.sft}
        sampled = self.add("completions", "c", upstream, 12, 5 * 10**11, sampling=dict(SAMPLING))
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
            self.losses(policy, 0.69, 0.6)
            self.arm("dpo", beta, seed, policy, judge, reward, kl)
        for coefficient, (reward, kl) in PPO.items():
            upstream = {"sft": self.sft, "reward_model": judge}
            recipe = {"ppo": {"kl_coef": coefficient}, "sampling": dict(SAMPLING)}
            policy = self.add("ppo", f"p{coefficient}", upstream, 100, 2 * 10**12, seed, **recipe)
            self.arm("ppo", coefficient, seed, policy, judge, reward, kl)

    def others(self, seed: int) -> None:
        """The arms of a full comparison beside those of `seed`, which comes first."""
        self.catalogue = catalogue()
        judge = next(
            self.records[arm["evaluation"]]["identity"]["upstream"]["reward_model"]
            for arm in self.arms
            if arm["seed"] == seed
        )
        pairs = self.records[judge]["identity"]["upstream"]["pairs"]
        for arm, (_, swept, _, trains_on, places) in ARMS.items():
            for setting, (reward, kl) in places.items():
                if arm in ("ppo", "dpo"):
                    continue
                upstream = {"sft": self.sft}
                scored = {"reward_model": judge}
                upstream |= {
                    "loss": {"pairs": pairs},
                    "proxy": scored,
                    "scaled-proxy": scored,
                    "gold": {"gold": self.gold},
                }[trains_on]
                section, _, field = swept.partition(".")
                recipe: dict[str, Any] = {section: {field: setting}} if swept else {}
                if arm == "grpo":
                    recipe[section]["scale_rewards"] = "group"
                if trains_on != "loss":
                    recipe["sampling"] = dict(SAMPLING)
                label, seconds = f"{arm}{setting}-{seed}", 30 + 2 * len(arm)
                policy = self.add(arm, label, upstream, seconds, 10**11, seed, **recipe)
                self.metrics[policy] = [{"objective/kl_coef": 0.2}, {"objective/kl_coef": 0.1}]
                if trains_on == "loss":
                    self.losses(policy, 0.69, 0.5)
                self.arm(arm, setting, seed, policy, judge, reward, kl)
        self.proxy(judge, seed)

    def proxy(self, judge: str, seed: int = 0, variant: str = "") -> str:
        """best-of-n-proxy: a reward model's scores of the reference samples."""
        upstream = {"sft": self.sft, "reward_model": judge, "reference_samples": self.reference}
        step = self.add("proxy-scores", f"s{seed}{variant}", upstream, 16, 3 * 10**11, seed)
        table = self.tables[self.reference]
        noise = np.random.default_rng([9, seed]).normal(0, 0.4, len(table))
        scores = table[["prompt_id", "sample"]].assign(
            reward_proxy=(0.5 * table["reward_gold"] + noise).round(2)  # some are equal
        )
        self.tables[step] = conform(scores, "proxy_scores")
        self.estimate("best-of-n-proxy", seed, step, variant)
        if "best-of-n-proxy" not in {row["arm"] for row in self.catalogue}:
            self.catalogue += catalogue(("best-of-n-proxy",))
        return step

    def estimate(self, arm: str, seed: int, step: str, variant: str = "") -> None:
        """A curve that is made from the reference samples."""
        self.estimates.append({"arm": arm, "seed": seed, "variant": variant, "step": step})

    def losses(self, policy: str, start: float, end: float) -> None:
        """The two looks at the training loss in a policy's log."""
        rows = [{"training_loss": start, "at": "start"}, {"training_loss": end, "at": "end"}]
        self.metrics[policy] = [rows[0], {"step": 9, "loss": 0.65}, rows[1]]

    def arm(
        self, arm, setting, seed, policy, judge, reward, kl, snapshots: int = 3, variant: str = ""
    ) -> None:
        """An evaluated policy."""
        upstream = {**self.shared, "policy": policy, "reward_model": judge}
        label, recipe = f"{arm}-{setting}-{seed}", {"evaluation": dict(EVALUATION)}
        recipe["sampling"] = dict(SAMPLING)
        evaluation = self.add("evaluation", label, upstream, 8, 10**10, seed, **recipe)
        self.tables[evaluation] = scores(reward, kl, seed, *self.shape, snapshots=snapshots)
        row = {"arm": arm, "setting": setting, "seed": seed, "variant": variant}
        self.arms.append({**row, "policy": policy, "evaluation": evaluation})

    @classmethod
    def full(cls, seeds: int = 1, **shape: int) -> "Builder":
        """A study of all arms; PPO and DPO are where they are in `DPO` and `PPO`."""
        made = cls(seeds=seeds, **shape)
        for seed in range(seeds):
            made.others(seed)
        return made

    def keep(self, *arms: str) -> None:
        """Leave out the other arms."""
        self.arms = [arm for arm in self.arms if arm["arm"] in arms]

    def row(self, arm: str, setting: float | None, seed: int = 0) -> dict[str, Any]:
        """The manifest's row of an arm."""
        wanted = (arm, setting, seed)
        return next(a for a in self.arms if (a["arm"], a["setting"], a["seed"]) == wanted)

    def policy(self, arm: str, setting: float | None, seed: int = 0) -> dict[str, Any]:
        """The identity of an arm's policy, to be changed."""
        return self.records[self.row(arm, setting, seed)["policy"]]["identity"]

    def reset(self, row: dict[str, Any], setting: float) -> None:
        """Give an arm of PPO or DPO another setting, in the manifest and in its policy's recipe."""
        field = {"ppo": "kl_coef", "dpo": "beta"}[row["arm"]]
        self.records[row["policy"]]["identity"]["recipe"][row["arm"]][field] = setting
        row["setting"] = setting

    def evaluation(self, arm: str, setting: float | None, seed: int = 0) -> str:
        """Fingerprint of one arm's evaluation."""
        return self.row(arm, setting, seed)["evaluation"]

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
            "catalogue": self.catalogue,
            "arms": self.arms,
            "estimates": self.estimates,
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
        for estimate in self.estimates:
            estimate["step"] = rename(estimate["step"])
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
