"""This project's PPO against TRL 1.12.0's, number by number.

    .venv/bin/python bench/parity_trl_ppo.py

On the same weights, prompts and completions, in the same minibatch order: log-probs, rewards,
values, advantages, returns, and through eight optimiser steps both losses and every gradient. TRL
1.12.0 is the last release with PPO; it runs unmodified in an environment of its own, built on the
first run (`--env`). Exit status 1 if anything differs by more than 1e-5.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from datasets import Dataset
from environments import LAST_PPO, build_environment
from transformers import PrinterCallback
from transformers.utils import logging as transformers_logging

from pipelines.rlhf import PPOConfig, ppo
from pipelines.rlhf.ppo import PPOTrainer
from pipelines.shared.corpus import train_tokenizer
from pipelines.shared.logprobs import Sequences
from pipelines.shared.models import (
    load_policy,
    load_reward_model,
    load_tokenizer,
    new_policy,
    new_reward_model,
)
from pipelines.shared.specs import ModelSpec

TOLERANCE = 1e-5
SEED = 0  # of weights and prompts
ROLLOUT_SEED = 3
JUMP = 1e-6  # this near a clip boundary, rounding decides which gradient a token gets
TEXTS = [
    "a fine, funny and moving film",
    "a dull film that goes nowhere",
    "it is neither here nor there",
] * 4

# What both sides share in every case.
SETTINGS: dict[str, Any] = {
    "rollouts": 32,
    "num_mini_batches": 4,
    "num_ppo_epochs": 2,
    "chunk": 8,  # rows that TRL generates for at once: chunks of unequal length are padded
    "learning_rate": 1e-4,  # enough for both clips to act within eight steps
    "adam_epsilon": 1e-5,
    "cliprange": 0.2,
    "cliprange_value": 0.2,
    "vf_coef": 0.1,
}


@dataclass(frozen=True)
class Case:
    """A configuration of PPO on which both sides are compared."""

    name: str
    temperature: float = 1.0
    whiten_rewards: bool = False
    missing_eos_penalty: float | None = None
    gamma: float = 1.0
    lam: float = 0.95
    kl_coef: float = 0.05
    max_completion_length: int = 8


CASES = [
    Case("default"),
    Case("whiten-rewards", whiten_rewards=True),
    Case("temperature-0.7", temperature=0.7),
    Case("gamma-0.97-lam-0.8", gamma=0.97, lam=0.8),
    Case("eos-penalty", missing_eos_penalty=1.0),
    Case("all-of-it", 0.7, True, 1.0, 0.97, 0.8, kl_coef=0.3, max_completion_length=11),
]
# Every completion of the batch ends before the limit: the one place where the rules differ.
ALL_EARLY = Case("all-end-early", max_completion_length=40)

DIFFERENCES = [
    (
        "the score is the reward of the EOS action, and the completion ends there (default)",
        "TRL puts it one step later, in an extra state after the EOS that has a value and no "
        "action; value_after_end=True does the same, and is what is compared here",
    ),
    (
        "with value_after_end, the extra state belongs to every completion shorter than "
        "max_completion_length",
        "in TRL to every one shorter than the longest of its batch: whether a completion has the "
        "state depends on the rows beside it (measured above)",
    ),
    (
        "completions are told from padding by the sampler's mask",
        "TRL takes every PAD id for padding: a sampled PAD ends a completion there, and with "
        "PAD = EOS the EOS is not attended to; here PAD must differ from EOS",
    ),
    (
        "gradients are clipped to max_grad_norm (off here)",
        "TRL's loop never clips: its max_grad_norm has no effect",
    ),
    (
        "the learning rate moves with every optimiser step",
        "TRL's with every update, so its warm-up counts updates",
    ),
    (
        "a completion ends at its EOS",
        "in TRL only with stop_token='eos' (set here); by default it is sampled past it and judged "
        "as a whole",
    ),
    (
        "logits are divided by the temperature",
        "TRL divides by temperature + 1e-7, which costs about 1e-6 nats here",
    ),
    (
        "noise is keyed by (seed, update, index of the rollout)",
        "TRL draws from the global generator, seeded per process: its samples depend on the batch "
        "size and on the number of processes",
    ),
    (
        "prompts are reshuffled each time they are exhausted, none is dropped, and the order "
        "depends on the seed alone",
        "TRL's loader drops the last incomplete batch of each pass; its minibatch order comes from "
        "numpy's global generator, which the trainer does not seed",
    ),
    (
        "the parts of a minibatch add up, whatever gradient_accumulation_steps and processes",
        "TRL averages the averages of micro-batches and processes, which weights tokens by how few "
        "share their part, and whitens per process",
    ),
    (
        "logits at completion positions only, (B, C, V)",
        "TRL keeps (B, T, V), and all sampling logits of the rollout: memory, no other effect",
    ),
    (
        "the ratio of each update's first minibatch is asserted to be 1",
        "TRL logs the mean ratio: a mismatch of sampler and trainer goes unnoticed",
    ),
    (
        "dropout is set to 0 in modules and in attention that keeps it as a number",
        "TRL sets it in nn.Dropout modules only: an architecture that keeps it as a number trains "
        "with attention dropout on",
    ),
    (
        "scores and values are less the model's reward_mean, and a score must be finite",
        "TRL takes the head's output as it is (no reward_mean is set here)",
    ),
    (
        "rewards may be functions, weighted, beside or instead of a reward model",
        "TRL wants one sequence classifier",
    ),
    (
        "the KL in the reward is k1, log pi - log ref (kl_in='loss': of whole sequences)",
        "TRL offers k3 too, which as a reward does not give the gradient of the KL",
    ),
    (
        "fp32 by default; in bf16 the old log-probs are computed again by the training pass",
        "TRL's default arguments ask for bf16 and gradient checkpointing (both off here), and its "
        "old log-probs are the sampler's",
    ),
    (
        "logged: approximate KL by k3 over real tokens, explained variance, clip fractions",
        "TRL logs half the mean squared log-ratio, padding included in the mean",
    ),
    (
        "saved: policy, critic and the controller's state; runs resume between two updates",
        "TRL's save_model keeps the policy only, and its train() cannot resume",
    ),
]


@dataclass
class Trace:
    """What one side computed in one update. Rows in this script's order, C completion columns.

    Attributes:
        rollout: mask (B, C) and value_mask (B, C + 1), bool; logprobs and ref_logprobs (B, C),
            nats, 0 at padding; scores (B,); rewards, values and returns (B, C + 1), 0 where
            value_mask is not set; advantages (B, C), whitened, 0 at padding.
        steps: for each minibatch policy_loss and value_loss (), logprobs (b, C), values (b, C + 1),
            and gradient (parameters,), before its optimiser step.
    """

    rollout: dict[str, np.ndarray]
    steps: list[dict[str, np.ndarray]] = field(default_factory=list)


@dataclass
class Ours:
    """Our side of a case, with what TRL needs to do the same.

    Attributes:
        prompts, completions: token ids, EOS included.
        orders: (epochs, rollouts) order of the rollouts in each PPO epoch.
        clipped: share of the real tokens of the minibatches after the first whose ratio is outside
            its clip range, and of the states whose value is.
        nearest: how near a ratio or value comes to the boundary of its clip range, where the
            gradient jumps.
    """

    trace: Trace
    prompts: list[list[int]]
    completions: list[list[int]]
    orders: list[list[int]]
    clipped: tuple[float, float]
    nearest: float


# Our side


class Watched(PPOTrainer):
    """The trainer, keeping what it computes.

    Attributes:
        taken: numbers of the prompts, in the order of the rollout.
        rollout: as `_roll_out` returned it.
        batches: each minibatch, in order.
        steps: what a `Trace` has of each minibatch.
    """

    def _roll_out(self, prompts: Any) -> Any:
        self.taken, self.rollout = list(prompts), super()._roll_out(prompts)
        self.batches: list[Any] = []
        self.steps: list[dict[str, np.ndarray]] = []
        return self.rollout

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        with (
            kept_calls(ppo, "clipped_policy_loss") as policy,
            kept_calls(ppo, "clipped_value_loss") as value,
        ):
            loss = super().compute_loss(model, inputs, *args, **kwargs)
        ((logprobs, *_), (policy_loss, _)), ((values, *_), value_loss) = *policy, *value
        self.batches.append(inputs)
        self.steps.append(
            as_numpy(
                policy_loss=policy_loss,
                value_loss=value_loss,
                logprobs=logprobs * inputs.mask,
                values=values * inputs.value_mask,
            )
        )
        return loss

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(model, *args, **kwargs)
        parameters = dict(self.accelerator.unwrap_model(model).named_parameters())
        self.steps[-1] |= as_numpy(gradient=flat_gradient(parameters))
        return loss


@contextmanager
def kept_calls(module: Any, name: str) -> Iterator[list[tuple[tuple, Any]]]:
    """Arguments and result of each call of a module's function inside the block."""
    real, calls = getattr(module, name), []

    def keeping(*args: Any) -> Any:
        calls.append((args, real(*args)))
        return calls[-1][1]

    setattr(module, name, keeping)
    try:
        yield calls
    finally:
        setattr(module, name, real)


def our_side(models: Path, prompts: list[list[int]], case: Case, limit: int | None = None) -> Ours:
    """One update of our trainer: rollout, advantages, and every minibatch with its optimiser step.

    Args:
        models: folder of `make_models`.
        limit: the most tokens sampled; by default the case's. The noise of a token does not depend
            on it, so a limit that no completion exceeds changes no completion.
    """
    shared = dict(SETTINGS)
    shared.pop("chunk")
    own = asdict(case)
    own.pop("name")
    if limit is not None:
        own["max_completion_length"] = limit
    tokenizer = load_tokenizer(models / "tokenizer")
    trainer = Watched(
        model=load_policy(models / "policy"),
        ref_model=load_policy(models / "reference"),
        reward_model=load_reward_model(models / "reward"),
        value_model=load_reward_model(models / "value"),
        args=PPOConfig(
            output_dir=str(models / "ours-out"),
            updates=1,
            value_after_end=True,
            max_grad_norm=0.0,
            lr_scheduler_type="constant",
            seed=ROLLOUT_SEED,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **shared,
            **own,
        ),
        train_dataset=Dataset.from_dict({"prompt_ids": prompts}),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    rollout, sequences = trainer.rollout, trainer.rollout.sequences
    value_mask = rollout.value_mask
    trace = Trace(
        as_numpy(
            mask=rollout.mask,
            value_mask=value_mask,
            logprobs=rollout.logprobs,
            ref_logprobs=rollout.ref_logprobs,
            scores=rollout.scores,
            rewards=rollout.rewards,
            values=rollout.values * value_mask,
            advantages=rollout.advantages,
            returns=rollout.returns,
        ),
        trainer.steps,
    )
    # Rows are known again by their prompts, which are all different.
    place = {row_key(sequences, row): row for row in range(len(rollout.scores))}
    rows = [
        [place[row_key(batch.sequences, row)] for row in range(len(batch.scores))]
        for batch in trainer.batches
    ]
    parts = shared["num_mini_batches"]
    orders = [list(chain(*rows[i : i + parts])) for i in range(0, len(rows), parts)]
    ratio_moved, value_moved = [], []
    for batch, step in list(zip(trainer.batches, trainer.steps, strict=True))[1:]:
        ratio = (torch.from_numpy(step["logprobs"]) - batch.logprobs).exp()
        ratio_moved.append((ratio - 1).abs()[batch.mask])
        values = torch.from_numpy(step["values"])
        value_moved.append((values - batch.values).abs()[batch.value_mask])
    clipped, nearest = clipping(ratio_moved, value_moved)
    completions = [
        ids[mask].tolist() for ids, mask in zip(sequences.completion_ids, rollout.mask, strict=True)
    ]
    taken = [prompts[number] for number in trainer.taken]
    return Ours(trace, taken, completions, orders, clipped, nearest)


def row_key(sequences: Sequences, row: int) -> tuple[int, ...]:
    """The prompt of a row."""
    columns = slice(sequences.prompt_width)
    return tuple(
        sequences.input_ids[row, columns][sequences.attention_mask[row, columns].bool()].tolist()
    )


def clipping(
    ratios: list[torch.Tensor], values: list[torch.Tensor]
) -> tuple[tuple[float, float], float]:
    """`clipped` and `nearest` of `Ours`.

    Args:
        ratios: for each minibatch after the first |ratio - 1| of its real tokens.
        values: and the distance of its states' values from the old ones.
    """
    beyond = [
        torch.cat(moved) - SETTINGS[name]
        for moved, name in ((ratios, "cliprange"), (values, "cliprange_value"))
    ]
    shares = [float((distance > 0).float().mean()) for distance in beyond]
    return (shares[0], shares[1]), float(torch.cat(beyond).abs().min())


def flat_gradient(parameters: dict[str, torch.nn.Parameter]) -> torch.Tensor:
    """Every gradient, in the order of the parameters' names: (parameters,)."""
    grads = [parameters[name].grad for name in sorted(parameters)]
    return torch.cat([grad.flatten() for grad in grads if grad is not None])


def as_numpy(**tensors: torch.Tensor) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}


# Weights and prompts


def make_models(folder: Path) -> None:
    """Save tokenizer, policy, a different reference, reward model and value model, from SEED.

    The policy's predictions are sharp and depend on position, so that a wrong mask shows; EOS is
    likely enough for completions to end at every length, and PAD is never sampled.
    """
    torch.manual_seed(SEED)
    tokenizer = train_tokenizer(TEXTS, vocab_size=280)
    tokenizer.save_pretrained(folder / "tokenizer")
    policy: Any = new_policy(ModelSpec(layers=2, width=32, heads=2, context=64), tokenizer)
    for parameter in policy.parameters():
        parameter.data.mul_(2)
    table = policy.transformer.wte.weight.data
    for token, logit in ((tokenizer.eos_token_id, 4.0), (tokenizer.pad_token_id, -10.0)):
        direction = table[token] / table[token].square().sum()
        policy.transformer.ln_f.bias.data += logit * direction
    policy.save_pretrained(folder / "policy")
    for parameter in policy.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    policy.save_pretrained(folder / "reference")
    for name in ("reward", "value"):
        model: Any = new_reward_model(folder / "policy")
        model.score.weight.data.mul_(0.3)
        model.save_pretrained(folder / name)


def make_prompts(vocabulary: int, rows: int) -> list[list[int]]:
    """Different prompts of 2 to 9 tokens, neither EOS nor PAD among them."""
    generator = np.random.default_rng(SEED)
    prompts: set[tuple[int, ...]] = set()
    while len(prompts) < rows:
        length = int(generator.integers(2, 10))
        prompts.add(tuple(generator.integers(2, vocabulary, length).tolist()))
    return [list(prompt) for prompt in sorted(prompts)]


def special_ids(models: Path, which: str = "pad") -> int:
    """Id of PAD or EOS."""
    return int(json.loads((models / "policy" / "config.json").read_text())[f"{which}_token_id"])


# TRL's side


def trl_side(
    python: Path, models: Path, ours: dict[Case, Ours], out: Path
) -> tuple[dict[Case, Trace], dict[str, str]]:
    """One update of TRL's trainer for each case, on our completions and orders; its versions."""
    cases = [
        {
            "name": case.name,
            "settings": asdict(case),
            "rows": [
                {"prompt": prompt, "completion": completion}
                for prompt, completion in zip(side.prompts, side.completions, strict=True)
            ],
            "orders": side.orders,
        }
        for case, side in ours.items()
    ]
    job = {"models": str(models), "out": str(out), "settings": SETTINGS, "cases": cases}
    (out / "job.json").write_text(json.dumps(job))
    script = Path(__file__).with_name("_trl_ppo_side.py")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-I", script, out / "job.json"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"TRL's side failed:\n{done.stdout[-4000:]}")
    versions = json.loads((out / "versions.json").read_text())
    if versions["trl"] != LAST_PPO.trl:
        raise SystemExit(f"the environment has trl {versions['trl']}, not {LAST_PPO.trl}")
    traces = {case: read_trl(out / f"{case.name}.npz", side) for case, side in ours.items()}
    return traces, versions


def read_trl(path: Path, ours: Ours) -> Trace:
    """TRL's intermediates as a `Trace`: rows in our order, 0 where TRL has its filler."""
    with np.load(path) as file:
        found = dict(file)
    place = np.argsort(found["order"])  # place[our row] is TRL's row
    rollout = {
        name.removeprefix("rollout/"): value[place] if value.ndim else value
        for name, value in found.items()
        if name.startswith("rollout/")
    }
    mask = ~rollout["padding_mask"]
    value_mask = one_more(~rollout["padding_mask_p1"])
    width = int(rollout["context_length"])
    for row, (prompt, completion) in enumerate(zip(ours.prompts, ours.completions, strict=True)):
        ids = rollout["query_responses"][row]
        assert ids[width - len(prompt) : width].tolist() == prompt
        assert ids[width : width + len(completion)].tolist() == completion
    trace = Trace(
        {
            "mask": mask,
            "value_mask": value_mask,
            "logprobs": rollout["logprobs"] * mask,
            "ref_logprobs": rollout["ref_logprobs"] * mask,
            "scores": rollout["scores"],
            "rewards": one_more(rollout["rewards"]),
            "values": one_more(rollout["values"]),
            "advantages": rollout["advantages"],
            "returns": one_more(rollout["returns"]),
        }
    )
    for number in range(int(found["steps"])):
        step = f"step{number}/"
        rows = found["order"][found[step + "micro_batch_inds"]]
        grads = {
            name.removeprefix(step + "grad/").replace("value_model.", "value.", 1): value
            for name, value in found.items()
            if name.startswith(step + "grad/")
        }
        trace.steps.append(
            {
                "policy_loss": found[step + "pg_loss"],
                "value_loss": found[step + "vf_loss"],
                "logprobs": found[step + "new_logprobs"] * mask[rows],
                "values": one_more(found[step + "vpred"]),
                "gradient": np.concatenate([grads[name].ravel() for name in sorted(grads)]),
            }
        )
    return trace


def one_more(array: np.ndarray) -> np.ndarray:
    """One more column of zeros: a completion of full length has no state after its end."""
    return np.pad(array, ((0, 0), (0, 1)))


# Comparison


def distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest absolute difference; infinite if the shapes differ or anything is not finite."""
    if ours.shape != theirs.shape:
        return float("inf")
    worst = np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max()
    return float(worst) if np.isfinite(worst) else float("inf")


def compare(ours: Trace, theirs: Trace) -> dict[str, float]:
    """Largest absolute difference of every quantity; of masks, 1 if they differ anywhere."""
    table = {
        name: distance(ours.rollout[key], theirs.rollout[key])
        for name, key in {
            "mask of tokens": "mask",
            "mask of states": "value_mask",
            "log-probs": "logprobs",
            "reference log-probs": "ref_logprobs",
            "scores": "scores",
            "per-token rewards": "rewards",
            "values": "values",
            "advantages (whitened)": "advantages",
            "returns": "returns",
        }.items()
    }
    last = len(ours.steps)
    if len(theirs.steps) != last:
        return table | {"number of optimiser steps": float("inf")}
    pairs = [
        {key: distance(one[key], other[key]) for key in one}
        for one, other in zip(ours.steps, theirs.steps, strict=True)
    ]
    for name, key in {
        "policy loss": "policy_loss",
        "value loss": "value_loss",
        "new log-probs": "logprobs",
        "new values": "values",
        "gradient": "gradient",
    }.items():
        table[f"{name}, minibatch 1"] = pairs[0][key]
        table[f"{name}, minibatches 2-{last}"] = max(pair[key] for pair in pairs[1:])
    return table


def uncovered(case: Case, ours: Ours, pad: int, eos: int) -> list[str]:
    """What the rollouts of a case should contain and do not: then agreement would mean less."""
    lengths = {len(ids) for ids in ours.completions}
    ended = [ids[-1] == eos for ids in ours.completions]
    full = [len(ids) == case.max_completion_length for ids in ours.completions]
    checks = {
        "prompts of different lengths": len({len(ids) for ids in ours.prompts}) > 1,
        "completions of several lengths": len(lengths) > 3,
        "completions that end early": any(ended),
        "completions of full length": any(f and not e for f, e in zip(full, ended, strict=True)),
        "no sampled PAD": not any(pad in ids for ids in ours.completions),
        "clipped ratios": ours.clipped[0] > 0,
        "clipped values": ours.clipped[1] > 0,
        f"a safe distance from every clip boundary (the nearest is {ours.nearest:.0e} away and "
        "the gradient jumps there: set another ROLLOUT_SEED)": ours.nearest > JUMP,
    }
    return [name for name, there in checks.items() if not there]


def print_table(columns: dict[str, dict[str, float]]) -> bool:
    """Quantities by configurations; True if every difference is within the tolerance."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    first = max(len(name) for name in names)
    widths = {title: max(len(title), 12) for title in columns}
    print(" ".join(["quantity".ljust(first), *(t.rjust(w) for t, w in widths.items())]))
    fine = True
    for name in names:
        cells = []
        for title, width in widths.items():
            value = columns[title].get(name, float("inf"))
            passed = value <= TOLERANCE
            fine = fine and passed
            cells.append(f"{value:.1e} {'PASS' if passed else 'FAIL'}".rjust(width))
        print(" ".join([name.ljust(first), *cells]))
    return fine


def print_rule(case: Case, ours: Ours, theirs: Trace) -> bool:
    """The rules of the extra state where they differ; True if they differ as described.

    TRL's longest completion of a batch has no state after its end, ours has. All other rows must
    agree.
    """
    longest = max(len(ids) for ids in ours.completions)
    rows = np.array([len(ids) == longest for ids in ours.completions])
    print(
        f"\nwhere all {len(rows)} completions end before the limit of "
        f"{case.max_completion_length} (the longest at {longest}), TRL gives the longest no state "
        "after its end, and ours does:"
    )
    fine = True
    for key in ("rewards", "values", "returns"):
        mine, other = ours.trace.rollout[key], theirs.rollout[key]
        rest, there = distance(mine[~rows], other[~rows]), distance(mine[rows], other[rows])
        fine = fine and rest <= TOLERANCE < there
        print(f"  {key}: {there:.1e} in the {rows.sum()} longest, {rest:.1e} in the other rows")
    return fine


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--env", type=Path, default=LAST_PPO.folder, help="TRL's environment")
    parser.add_argument("--keep", type=Path, help="keep weights and TRL's intermediates here")
    return parser.parse_args()


def check(folder: Path, python: Path, side: Callable[..., Ours] = our_side) -> bool:
    """Run both sides on every case and print what came out; True if all agree."""
    models = folder / "models"
    make_models(models)
    vocabulary = json.loads((models / "policy" / "config.json").read_text())["vocab_size"]
    prompts = make_prompts(vocabulary, SETTINGS["rollouts"])
    ours = {case: side(models, prompts, case) for case in [*CASES, ALL_EARLY]}
    theirs, versions = trl_side(python, models, ours, folder)
    print(f"TRL's side: {', '.join(f'{name} {v}' for name, v in versions.items())}")
    print(f"ours: torch {torch.__version__}")
    print(f"largest absolute differences; at most {TOLERANCE:.0e} passes\n")
    columns = {case.name: compare(ours[case].trace, theirs[case]) for case in CASES}
    longest = max(len(ids) for ids in ours[ALL_EARLY].completions)
    trl_rule = side(models, prompts, ALL_EARLY, limit=longest)
    columns[ALL_EARLY.name] = compare(trl_rule.trace, theirs[ALL_EARLY])
    fine = print_table(columns)
    pad, eos = special_ids(models), special_ids(models, "eos")
    print()
    for case in CASES:
        missing = uncovered(case, ours[case], pad, eos)
        lengths = [len(ids) for ids in ours[case].completions]
        finished = sum(ids[-1] == eos for ids in ours[case].completions)
        ratios, values = ours[case].clipped
        print(
            f"{case.name}: {finished} of {len(lengths)} completions ended in EOS, lengths "
            f"{min(lengths)} to {max(lengths)}, after the first step {ratios:.0%} of the ratios "
            f"and {values:.0%} of the values beyond their clip range"
            + "".join(f"; NOT COVERED: {what}" for what in missing)
        )
        fine = fine and not missing
    last = [
        ids[-1] == eos and len(ids) == case.max_completion_length
        for case in CASES
        for ids in ours[case].completions
    ]
    print(f"completions whose EOS is the last possible token: {sum(last)} in all cases")
    fine = fine and any(last)
    return print_rule(ALL_EARLY, ours[ALL_EARLY], theirs[ALL_EARLY]) and fine


def main() -> int:
    """Print the table and the deliberate differences; 1 if anything failed."""
    arguments = parse()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    python = build_environment(arguments.env.expanduser().absolute(), LAST_PPO.requirements)
    with tempfile.TemporaryDirectory() as scratch:
        folder = (arguments.keep or Path(scratch)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        fine = check(folder, python)
    print("\nDeliberate differences (ours; then TRL's):")
    for number, (ours, theirs) in enumerate(DIFFERENCES, 1):
        print(f"{number:3}. {ours};\n     {theirs}.")
    print("\nPASS" if fine else "\nFAIL")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
