"""RLOO and GRPO: TRL's trainers against the published equations, by hand and without padding."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import TrainerCallback
from trl import GRPOConfig, RLOOConfig

from pipelines.rlhf import group, group_stage
from pipelines.rlhf.checks import RatioError
from pipelines.rlhf.group import ExactIdsGRPOTrainer, ExactIdsRLOOTrainer, GroupStream
from pipelines.rlhf.group_stage import group_arguments
from pipelines.rlhf.ppo import NOISE_STREAM
from pipelines.rlhf.specs import GroupSpec, GRPOSpec, RLOOSpec
from pipelines.shared.ledger import Ledger, ModelCost
from pipelines.shared.logprobs import Sequences
from pipelines.shared.models import load_policy, new_reward_model
from pipelines.shared.sampling import keyed_uniforms, sample
from pipelines.shared.specs import Runtime, SamplingSpec
from pipelines.shared.steps import Step

PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
KINDS = {
    "rloo": (ExactIdsRLOOTrainer, RLOOConfig, RLOOSpec),
    "grpo": (ExactIdsGRPOTrainer, GRPOConfig, GRPOSpec),
}
BOTH = pytest.mark.parametrize("method", list(KINDS))
LENGTH = 5
SCORES = [1.0, 2.0, 4.0, 9.0, 0.5, 0.0, 1.0, -1.5]  # of two groups of four


def even_tokens(sequences: Sequences) -> torch.Tensor:
    even = (sequences.completion_ids % 2 == 0) & sequences.completion_mask
    return even.sum(-1).float()


def fixed_scores(sequences: Sequences) -> torch.Tensor:
    return torch.tensor(SCORES)


@pytest.fixture
def sft(policy, tokenizer, tmp_path):
    """The folder of the policy of every run: dropout in its config, to be switched off, and an EOS
    that it likes, so that completions have many lengths."""
    with torch.no_grad():
        liked = int(policy(input_ids=torch.tensor(PROMPTS[:1])).logits[0, -1].argmax())
        embeddings = policy.transformer.wte.weight
        embeddings[tokenizer.eos_token_id] = 1.5 * embeddings[liked]
    policy.config.resid_pdrop = policy.config.embd_pdrop = policy.config.attn_pdrop = 0.3
    policy.save_pretrained(tmp_path / "sft")
    return tmp_path / "sft"


def new_trainer(method, sft, tokenizer, judge=even_tokens, temperature=1.0, seed=0, **changes):
    kind, config, spec = KINDS[method]
    settings = {
        "kl_coef": 0.05,
        "updates": 3,
        "rollouts": 8,
        "group": 4,
        "epochs": 2,
        "minibatches": 2,
        "learning_rate": 1e-3,
    }
    args = config(
        str(sft.parent / "trainer"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        seed=seed,
        max_completion_length=LENGTH,
        temperature=temperature,
        **group_arguments(spec(**(settings | changes))),
    )
    return kind(load_policy(sft), judge, args, PROMPTS, tokenizer)


def roll_out(trainer) -> dict:
    """One rollout as TRL makes it, before it is shuffled."""
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    with torch.no_grad():
        for weight in [] if trainer.ref_model is None else trainer.ref_model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))  # else the KL would be 0
        rows = next(iter(trainer.get_train_dataloader()))
        rollout = trainer._generate_and_score_completions(rows)
    assert len(rollout["completion_mask"].sum(-1).unique()) > 1  # padding on both sides
    return rollout


def alone(model, rollout, row: int, temperature: float = 1.0) -> torch.Tensor:
    """(C,) log-probs of one completion, without padding, without the project's functions."""
    prompt = rollout["prompt_ids"][row][rollout["prompt_mask"][row].bool()]
    completion = rollout["completion_ids"][row][rollout["completion_mask"][row].bool()]
    ids = torch.cat([prompt, completion])
    logits = model(input_ids=ids[None]).logits[0] / temperature
    return logits[len(prompt) - 1 : -1].log_softmax(-1)[torch.arange(len(completion)), completion]


def all_alone(model, rollout, temperature: float = 1.0) -> list[np.ndarray]:
    with torch.no_grad():
        rows = range(len(rollout["prompt_ids"]))
        return [alone(model, rollout, row, temperature).double().numpy() for row in rows]


def disturbed(trainer):
    """Move the policy, so that ratios differ from 1 and some are clipped."""
    trainer._step = 1  # not an update's first minibatch any more
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight.add_(0.03 * torch.randn_like(weight))


@torch.no_grad()
def loss_of(trainer, rollout) -> float:
    return float(trainer.compute_loss(trainer.model, rollout))


# The equations


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_rloos_advantage_leaves_its_own_reward_out(sft, tokenizer, temperature):
    trainer = new_trainer("rloo", sft, tokenizer, fixed_scores, temperature, kl_coef=0.5)
    rollout = roll_out(trainer)
    own, ref = (all_alone(m, rollout, temperature) for m in (trainer.model, trainer.ref_model))
    kl = np.array([(a - b).sum() for a, b in zip(own, ref, strict=True)])
    assert np.abs(kl).max() > 0.1
    reward = (np.array(SCORES) - 0.5 * kl).reshape(2, 4)
    expected = [
        reward[i, j] - sum(reward[i, other] for other in range(4) if other != j) / 3
        for i in range(2)
        for j in range(4)
    ]
    np.testing.assert_allclose(rollout["advantages"], expected, atol=1e-4)


def test_rloos_advantage_of_a_literal_example(sft, tokenizer):
    rollout = roll_out(new_trainer("rloo", sft, tokenizer, fixed_scores, kl_coef=0.0))
    expected = [-4.0, -8 / 3, 0.0, 20 / 3, 2 / 3, 0.0, 4 / 3, -2.0]
    np.testing.assert_allclose(rollout["advantages"], expected, atol=1e-5)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_grpos_advantage_is_standardised_within_its_group(sft, tokenizer, scale):
    trainer = new_trainer("grpo", sft, tokenizer, fixed_scores, scale_rewards=scale)
    scores = np.array(SCORES).reshape(2, 4)
    spread = {
        "group": scores.std(1, ddof=1, keepdims=True) + 1e-4,
        "batch": scores.std(ddof=1) + 1e-4,
        "none": 1.0,
    }[scale]
    expected = (scores - scores.mean(1, keepdims=True)) / spread
    np.testing.assert_allclose(roll_out(trainer)["advantages"], expected.ravel(), atol=1e-4)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo"])
def test_grpos_loss_is_the_papers(sft, tokenizer, loss_type):
    torch.manual_seed(0)
    trainer = new_trainer(
        "grpo", sft, tokenizer, fixed_scores, kl_coef=0.3, loss_type=loss_type, epochs=1
    )
    rollout = roll_out(trainer)
    old, ref = all_alone(trainer.model, rollout), all_alone(trainer.ref_model, rollout)
    disturbed(trainer)
    new, terms, clipped = all_alone(trainer.model, rollout), [], 0
    for a, o, n, f in zip(rollout["advantages"].numpy(), old, new, ref, strict=True):
        ratio = np.exp(n - o)
        surrogate = np.minimum(ratio * a, np.clip(ratio, 0.8, 1.2) * a)
        k3 = np.exp(f - n) - (f - n) - 1
        tokens = -surrogate + 0.3 * k3
        terms.append(tokens.mean() if loss_type == "grpo" else tokens.sum() / LENGTH)
        clipped += int((surrogate != ratio * a).sum())
    assert clipped > 0
    assert loss_of(trainer, rollout) == pytest.approx(np.mean(terms), abs=1e-4)


def test_rloos_loss_clips_the_ratio_of_the_whole_completion(sft, tokenizer):
    torch.manual_seed(0)
    trainer = new_trainer("rloo", sft, tokenizer, fixed_scores)
    rollout = roll_out(trainer)
    old = all_alone(trainer.model, rollout)
    disturbed(trainer)
    new, advantages = all_alone(trainer.model, rollout), rollout["advantages"].double().numpy()
    ratio = np.exp([(n - o).sum() for n, o in zip(new, old, strict=True)])
    surrogate = np.minimum(ratio * advantages, np.clip(ratio, 0.8, 1.2) * advantages)
    assert (surrogate != ratio * advantages).any()
    assert loss_of(trainer, rollout) == pytest.approx(-surrogate.mean(), abs=1e-3)


def test_the_gradient_of_rloos_loss_is_the_score_function_gradient(sft, tokenizer):
    trainer = new_trainer("rloo", sft, tokenizer, fixed_scores)
    rollout, model = roll_out(trainer), trainer.model
    weights = list(model.parameters())
    theirs = torch.autograd.grad(trainer.compute_loss(model, rollout), weights)
    by_hand = sum(
        advantage * alone(model, rollout, row).sum()
        for row, advantage in enumerate(rollout["advantages"])
    )
    for got, expected in zip(theirs, torch.autograd.grad(-by_hand / 8, weights), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)


def test_entropies_are_those_of_the_next_token(sft, tokenizer):
    trainer = new_trainer("rloo", sft, tokenizer)
    rollout = roll_out(trainer)
    ids = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], 1)
    mask = torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], 1)
    width = rollout["completion_ids"].shape[1]
    _, none, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, width)
    _, values, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model, ids, mask, width, batch_size=3, compute_entropy=True
    )
    with torch.no_grad():
        prompt = rollout["prompt_ids"][0][rollout["prompt_mask"][0].bool()]
        logits = trainer.model(input_ids=prompt[None]).logits[0, -1]
    expected = torch.distributions.Categorical(logits=logits).entropy()
    assert none is None and values[0, 0] == pytest.approx(float(expected), abs=1e-4)


# What is sampled, and what is trained on


@BOTH
def test_positions_that_count_padding_are_caught(sft, tokenizer, method, monkeypatch):
    new_trainer(method, sft, tokenizer, updates=1).train()  # prompts of 2, 3 and 4 tokens
    monkeypatch.setattr(group, "Sequences", lambda *parts: Sequences(*parts, skip_padding=False))
    with pytest.raises(RatioError, match="position ids that count padding"):
        new_trainer(method, sft, tokenizer, updates=1).train()


@BOTH
def test_another_temperature_in_the_update_is_caught(sft, tokenizer, method, monkeypatch):
    def warmer(model, *rest, temperature, **others):
        return sample(model, *rest, temperature=1.01 * temperature, **others)

    monkeypatch.setattr(group, "sample", warmer)
    with pytest.raises(RatioError, match="ratio is off 1"):
        new_trainer(method, sft, tokenizer, updates=1).train()


@BOTH
def test_what_is_trained_on_is_what_was_sampled(sft, tokenizer, method):
    """The same ids, each once in every epoch, and as the project's sampler draws them."""
    judged, trained = [], []

    def judge(sequences):
        judged.append(list(zip(*sequences.unpacked(), strict=True)))
        return even_tokens(sequences)

    trainer = new_trainer(method, sft, tokenizer, judge, seed=1, updates=4)
    compute = trainer.compute_loss

    def watched(model, inputs, **others):
        for row in range(len(inputs["prompt_ids"])):
            parts = [
                inputs[f"{part}_ids"][row][inputs[f"{part}_mask"][row].bool()].tolist()
                for part in ("prompt", "completion")
            ]
            trained.append(tuple(parts))
        return compute(model, inputs, **others)

    trainer.compute_loss = watched
    trainer.train()
    assert len(judged) == 4 and len(trained) == 4 * 2 * 8
    order = list(GroupStream(prompts=3, updates=4, groups=2, group=4, repeats=1, seed=1))
    for update, rows in enumerate(judged):
        seen = trained[16 * update : 16 * (update + 1)]
        assert sorted(seen[:8]) == sorted(seen[8:]) == sorted(rows)
        prompts = [prompt for prompt, _ in rows]
        assert prompts == [PROMPTS[index] for index in order[update]]
    drawn = sample(
        load_policy(sft),
        [prompt for prompt, _ in judged[0]],
        keyed_uniforms(1, NOISE_STREAM, range(8), LENGTH),
        eos_id=tokenizer.eos_token_id,
        pad_id=tokenizer.pad_token_id,
    )
    assert drawn.completions() == [completion for _, completion in judged[0]]
    assert judged[0] != judged[1]


class Counter(TrainerCallback):
    steps = 0

    def on_optimizer_step(self, *args, **kwargs):
        self.steps += 1


@BOTH
def test_an_update_is_one_rollout_and_so_many_steps(sft, tokenizer, method):
    sizes, counter = [], Counter()

    def judge(sequences):
        sizes.append((len(sequences.input_ids), counter.steps))
        return even_tokens(sequences)

    settings = {"updates": 4, "rollouts": 12, "group": 3, "epochs": 3, "minibatches": 2}
    trainer = new_trainer(method, sft, tokenizer, judge, **settings)
    trainer.add_callback(counter)
    trainer.train()
    assert sizes == [(12, 0), (12, 6), (12, 12), (12, 18)]
    assert counter.steps == trainer.state.global_step == 24
    rows = [row for row in trainer.state.log_history if "objective/score" in row]
    assert [row["step"] for row in rows] == [6, 12, 18, 24]
    assert rows[0]["objective/kl"] == pytest.approx(0, abs=1e-4) and rows[-1]["objective/kl"] > 0
    assert {"objective/entropy", "policy/clip_fraction", "completions/length"} <= set(rows[0])
    assert rows[-1]["learning_rate"] == pytest.approx(1e-3 / 24)


def test_every_prompt_comes_before_any_comes_again():
    batches = list(GroupStream(prompts=5, updates=10, groups=2, group=3, repeats=2, seed=0))
    assert batches[::2] == batches[1::2] and len(batches) == 20
    assert all(batch[:3] == batch[:1] * 3 and batch[3:] == batch[3:4] * 3 for batch in batches)
    order = [index for batch in batches[::2] for index in batch[::3]]
    passes = [order[start : start + 5] for start in range(0, 20, 5)]
    assert all(sorted(part) == [0, 1, 2, 3, 4] for part in passes)
    assert len(set(map(tuple, passes))) > 1
    more = next(iter(GroupStream(prompts=2, updates=1, groups=6, group=2, repeats=1, seed=0)))
    assert [more.count(index) for index in (0, 1)] == [6, 6]


# Runs


@BOTH
def test_the_score_rises_and_the_reference_stays(sft, tokenizer, method):
    trainer = new_trainer(method, sft, tokenizer, updates=12, rollouts=64, learning_rate=3e-3)
    before = [weight.clone() for weight in trainer.ref_model.parameters()]
    trainer.train()
    scores = [row["objective/score"] for row in trainer.state.log_history if "loss" in row]
    assert scores[-1] > scores[0] + 0.7
    after = list(trainer.ref_model.parameters())
    assert all(map(torch.equal, before, after)) and not any(w.requires_grad for w in after)
    moved = load_policy(sft).lm_head.weight - trainer.model.lm_head.weight
    assert moved.abs().max() > 1e-3


@BOTH
def test_a_seed_gives_the_same_weights(sft, tokenizer, method):
    def weights(seed):
        trainer = new_trainer(method, sft, tokenizer, seed=seed)
        trainer.train()
        return torch.cat([weight.flatten() for weight in trainer.model.parameters()])

    first = weights(0)
    assert torch.equal(first, weights(0)) and not torch.equal(first, weights(1))


@BOTH
def test_the_ledger_holds_what_was_done(sft, tokenizer, method):
    batches, rows = [], []

    def judge(sequences):
        batches.append(sequences)
        rows.append(trainer._drawn.rows)
        return even_tokens(sequences)

    trainer = new_trainer(method, sft, tokenizer, judge)
    trainer.train()
    phases, cost = trainer.ledger.phases(), ModelCost.of(trainer.model)
    sampled = flops = forward = read = 0
    for batch, left in zip(batches, rows, strict=True):
        flops += cost.decode(batch.prompt_width, left)
        sampled += int(batch.completion_mask.sum())
        read += int(batch.attention_mask.sum())
        forward += cost.forward(*batch.input_ids.shape, batch.tokens)
    assert phases["sampling"]["tokens_generated"] == sampled
    lengths = {int(count) for batch in batches for count in batch.completion_mask.sum(-1)}
    assert len(lengths) > 2  # else padding would not show
    assert phases["sampling"]["flops"] == flops
    assert phases["main"]["tokens_trained"] == 2 * read  # epochs
    assert phases["main"]["flops"] == (2 + 2 * 3) * forward  # old, reference; two epochs


# What is refused


@BOTH
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_named(sft, tokenizer, method, bad):
    def judge(sequences):
        return torch.tensor([*[0.0] * 5, bad, 1.0, 2.0])

    trainer = new_trainer(method, sft, tokenizer, judge)
    row = next(iter(trainer.get_train_dataloader()))[5]["row"]
    with pytest.raises(ValueError, match=f"the judge gave {bad} for prompt {row} and the compl"):
        trainer.train()


@BOTH
def test_a_reference_that_is_not_the_policy_is_refused(sft, tokenizer, method, monkeypatch):
    load = load_policy

    def changed(folder):
        model = load(folder)
        model.lm_head.weight.data[3, 3] += 1e-3
        return model

    monkeypatch.setitem(new_trainer.__globals__, "load_policy", changed)
    with pytest.raises(ValueError, match="the reference differs from the policy in"):
        new_trainer(method, sft, tokenizer)


def test_prompts_there_must_be(sft, tokenizer, monkeypatch):
    for prompts in ([], [[5], []]):
        monkeypatch.setitem(new_trainer.__globals__, "PROMPTS", prompts)
        with pytest.raises(ValueError, match="no prompts, or an empty one"):
            new_trainer("rloo", sft, tokenizer)


# Settings and steps


def test_every_setting_reaches_the_configuration():
    shared = {
        "kl_coef": ("beta", 0.7),
        "group": ("num_generations", 6),
        "epochs": ("num_iterations", 5),
        "minibatches": ("steps_per_generation", 3),
        "learning_rate": ("learning_rate", 2e-4),
        "clip_range": ("epsilon", 0.11),
        "max_grad_norm": ("max_grad_norm", 0.9),
    }
    own = {
        "rloo": {"normalise_advantages": ("normalize_advantages", True)},
        "grpo": {
            "scale_rewards": ("scale_rewards", "batch"),
            "loss_type": ("loss_type", "dr_grpo"),
        },
    }
    for method, (_, config, spec) in KINDS.items():
        named = shared | own[method]
        values = {name: value for name, (_, value) in named.items()}
        arguments = group_arguments(spec(updates=7, rollouts=36, **values))
        args = config("unused", use_cpu=True, bf16=False, **arguments)
        for theirs, value in named.values():
            assert getattr(args, theirs) == value, theirs
        assert args.max_steps == 7 * 5 * 3 and args.per_device_train_batch_size == 12
        assert args.generation_batch_size == 36
    with pytest.raises(TypeError, match="neither RLOO nor GRPO"):
        group_arguments(GroupSpec())


@BOTH
def test_a_step_leaves_a_policy_and_nothing_else(policy, tokenizer, tmp_path, method, monkeypatch):
    sft, judge, corpus, path = (tmp_path / name for name in ("sft", "rm", "corpus", "run"))
    for folder in (corpus, path):
        folder.mkdir()
    policy.save_pretrained(sft / "checkpoint")
    tokenizer.save_pretrained(sft / "checkpoint")
    new_reward_model(sft / "checkpoint").save_pretrained(judge / "checkpoint")
    reviews = {"prompt_id": list("abc"), "prompt": list("xyz"), "prompt_ids": PROMPTS}
    pd.DataFrame({**reviews, "split": "preference"}).to_parquet(corpus / "texts.parquet")
    spec = KINDS[method][2](updates=2, rollouts=8, snapshots=2)
    sampling = SamplingSpec(prompts=3, max_new_tokens=LENGTH)
    rows = []
    context = SimpleNamespace(
        step=Step("arm", "s0", "a:b", 1, {}),
        path=path,
        seed=0,
        inputs={"sft": sft, "reward_model": judge, "corpus": corpus},
        spec={method: spec, "sampling": sampling}.__getitem__,
        runtime=Runtime(results=Path(), cache=Path()),
        ledger=Ledger(),
        progress=lambda *state: None,
        log=rows.append,
    )
    ledgers, judge_of = [], group_stage.judge_of

    def watched(context):
        ledgers.append(context.ledger)  # the judge books its own cost there
        return judge_of(context)

    monkeypatch.setattr(group_stage, "judge_of", watched)
    getattr(group_stage, f"train_{method}")(context)
    assert sorted(file.name for file in path.iterdir()) == [
        "checkpoint",
        "policies.json",
        "snapshots",
    ]
    saved = json.loads((path / "policies.json").read_text())
    assert [row["step"] for row in saved] == [16, 32]
    first, last = (load_policy(path / row["folder"]).lm_head.weight for row in saved)
    assert not torch.equal(first, last)
    assert [row["step"] for row in rows if "objective/score" in row] == [16, 32]
    assert ledgers == [context.ledger] and context.ledger.phases()["update"]["flops"] > 0
