"""The arms of a full comparison, with made-up places: (reward, KL) at each setting."""

from typing import Any

COEFFICIENTS = (0.05, 0.1, 0.3, 1.0)
PLAIN = ("sft", "ppo", "dpo", "best-of-n", "optimum")

# family, swept setting, is it the coefficient of J, what training improves, places by setting
ARMS: dict[str, tuple[str, str, bool, str, dict[float | None, tuple[float, float]]]] = {
    "sft": ("start", "", False, "", {}),
    "preferred-ft": ("supervised", "", False, "loss", {None: (0.95, 0.35)}),
    "unlikelihood": (
        "supervised",
        "unlikelihood.alpha",
        False,
        "loss",
        {0.03: (1.0, 0.5), 0.1: (1.15, 1.1), 0.3: (0.7, 4.0), 1.0: (-0.4, 11.0)},
    ),
    "ppo": (
        "rl",
        "ppo.kl_coef",
        True,
        "proxy",
        dict(zip(COEFFICIENTS, [(4.1, 8.4), (3.7, 6.1), (2.6, 2.4), (1.4, 0.5)], strict=True)),
    ),
    "ppo-adaptive": (
        "rl",
        "ppo.kl_target",
        False,
        "proxy",
        {3.0: (2.8, 3.0), 6.0: (3.6, 6.2), 9.0: (4.0, 9.1), 12.0: (4.2, 11.8)},
    ),
    "ppo-gt": (
        "rl",
        "ppo.kl_coef",
        True,
        "gold",
        dict(zip(COEFFICIENTS, [(5.2, 8.8), (4.6, 6.4), (3.0, 2.3), (1.5, 0.5)], strict=True)),
    ),
    "reinforce": (
        "rl",
        "reinforce.kl_coef",
        True,
        "proxy",
        dict(zip(COEFFICIENTS, [(2.4, 2.9), (2.3, 2.6), (1.9, 1.5), (1.2, 0.4)], strict=True)),
    ),
    "rloo": (
        "rl",
        "rloo.kl_coef",
        True,
        "proxy",
        dict(zip(COEFFICIENTS, [(4.3, 9.0), (3.8, 6.0), (2.7, 2.3), (1.4, 0.5)], strict=True)),
    ),
    "grpo": (
        "rl",
        "grpo.kl_coef",
        False,  # per standardised reward: not J's
        "scaled-proxy",
        dict(zip(COEFFICIENTS, [(4.5, 10.2), (4.0, 7.2), (2.9, 2.9), (1.6, 0.8)], strict=True)),
    ),
    "dpo": (
        "dpo",
        "dpo.beta",
        True,
        "loss",
        dict(zip(COEFFICIENTS, [(3.2, 8.1), (2.7, 3.6), (1.7, 1.0), (1.05, 0.2)], strict=True)),
    ),
    "dpo-conservative": (
        "dpo",
        "dpo_conservative.beta",
        True,
        "loss",
        dict(zip(COEFFICIENTS, [(2.9, 5.2), (2.4, 2.4), (1.5, 0.7), (0.95, 0.15)], strict=True)),
    ),
    "dpo-robust": (
        "dpo",
        "dpo_robust.beta",
        True,
        "loss",
        dict(zip(COEFFICIENTS, [(3.1, 9.9), (2.8, 4.8), (1.8, 1.4), (1.1, 0.25)], strict=True)),
    ),
    "dpo-hinge": (
        "dpo",
        "dpo_hinge.beta",
        False,
        "loss",
        dict(zip(COEFFICIENTS, [(3.0, 7.0), (2.6, 3.9), (1.6, 1.2), (1.0, 0.22)], strict=True)),
    ),
    "ipo": (
        "dpo",
        "ipo.beta",
        False,
        "loss",
        dict(zip(COEFFICIENTS, [(2.5, 3.2), (2.1, 1.8), (1.3, 0.5), (0.85, 0.1)], strict=True)),
    ),
    "ipo-mean": (
        "dpo",
        "ipo_mean.beta",
        False,
        "loss",
        dict(zip(COEFFICIENTS, [(2.2, 11.4), (2.3, 7.8), (1.9, 3.4), (1.2, 0.9)], strict=True)),
    ),
    "kto": (
        "dpo",
        "kto.beta",
        False,
        "loss",
        dict(zip(COEFFICIENTS, [(2.6, 4.4), (2.2, 2.2), (1.4, 0.65), (0.9, 0.13)], strict=True)),
    ),
    "simpo": (
        "dpo",
        "simpo.beta",
        False,
        "loss",
        {1.0: (1.3, 2.0), 2.0: (1.6, 4.1), 5.0: (1.4, 7.5), 10.0: (0.8, 12.6)},
    ),
    "orpo": (
        "dpo",
        "orpo.weight",
        False,
        "loss",
        {0.03: (0.9, 0.3), 0.1: (1.0, 0.4), 0.3: (1.2, 0.7), 1.0: (1.5, 1.6)},
    ),
    "online-dpo": (
        "dpo",
        "online_dpo.beta",
        True,
        "proxy",
        dict(zip(COEFFICIENTS, [(4.2, 8.0), (3.6, 5.0), (2.2, 1.6), (1.2, 0.35)], strict=True)),
    ),
    "best-of-n": ("sampling", "", False, "", {}),
    "best-of-n-proxy": ("sampling", "", False, "", {}),
    "optimum": ("sampling", "", False, "", {}),
}


def catalogue(arms: tuple[str, ...] | None = None) -> list[dict[str, Any]]:
    """The manifest's catalogue of some arms, or all."""
    return [
        {
            "arm": arm,
            "family": family,
            "summary": f"what {arm} does, in a line",
            "setting": setting,
            "coefficient": coefficient,
            "trains_on": trains_on,
        }
        for arm, (family, setting, coefficient, trains_on, _) in ARMS.items()
        if arms is None or arm in arms
    ]
