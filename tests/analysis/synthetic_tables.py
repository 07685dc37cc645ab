"""Made-up tables of Gaussian rewards, whose optimum is known in closed form.

r ~ N(mu, s^2) under the SFT model gives E*[r] = mu + s^2/beta, KL* = s^2 / (2 beta^2) and
log Z = mu/beta + s^2 / (2 beta^2).
"""

import numpy as np
import pandas as pd

from pipelines.evaluate.schema import conform

MU, SPREAD = 0.6, 1.2


def scores(
    reward: float, kl: float, seed: int, prompts: int, samples: int, snapshots: int
) -> pd.DataFrame:
    """SCORES that end at (reward, kl) and come from the SFT model's (MU, 0)."""
    random = np.random.default_rng([seed, int(abs(reward) * 1000), int(kl * 1000)])
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
