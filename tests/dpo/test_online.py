"""Online DPO: what is sampled is what is judged and trained on, by the paper's loss."""

import copy
import math

import numpy as np
import pytest
import torch
from transformers import TrainingArguments

from pipelines.dpo.online import (
    OnlineDPOTrainer,
    equal_pairs,
    labels,
    minibatches,
    online_arguments,
    prompt_order,
)
from pipelines.dpo.specs import OnlineDPOSpec
from pipelines.shared.judges import learnt_judge
from pipelines.shared.ledger import Ledger, ModelCost
from pipelines.shared.logprobs import pack
from pipelines.shared.models import new_reward_model
from pipelines.shared.sampling import keyed_uniforms, sample

PROMPTS = [[5, 6, 7], [8], [10, 11, 12, 13], [9, 14]]
SPEC = OnlineDPOSpec(
    beta=0.3, rounds=3, pairs=8, epochs=2, batch_size=4, learning_rate=1e-3, snapshots=1
)
TOKENS = 10


def share_of_even_tokens(sequences) -> torch.Tensor:
    even = (sequences.completion_ids % 2 == 0) & sequences.completion_mask
    return 3.0 * even.sum(-1) / sequences.completion_mask.sum(-1)


class Watched(OnlineDPOTrainer):
    """Keeps every round and every minibatch, and the policy that each round was sampled from."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rounds, self.batches, self.policies, self.drawn = [], [], [], []

    def _sample(self, number, prompts):
        self.drawn.append(super()._sample(number, prompts))
        return self.drawn[-1]

    def new_round(self, number):
        self.policies.append(copy.deepcopy(self.policy))
        self.rounds.append(super().new_round(number))
        return self.rounds[-1]

    def compute_loss(self, model, inputs, *args, **kwargs):
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        self.batches.append((inputs, float(loss.detach())))
        return loss


def new_trainer(policy, tokenizer, tmp_path, judge=share_of_even_tokens, seed=0, **changes):
    spec = OnlineDPOSpec(**(vars(SPEC) | changes))
    args = TrainingArguments(
        str(tmp_path / "trainer"),
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        seed=seed,
        **online_arguments(spec),
    )
    return Watched(
        policy, judge, PROMPTS, spec, args, tokenizer, max_new_tokens=TOKENS, ledger=Ledger()
    )


@pytest.fixture
def softer(policy, tokenizer):
    """Completions of many lengths, some cut off, for EOS is a token that the policy likes."""
    for parameter in policy.parameters():
        parameter.data.mul_(0.75)
    noise = keyed_uniforms(0, 0, range(64), TOKENS)
    free = sample(policy, PROMPTS * 16, noise, eos_id=None, pad_id=tokenizer.pad_token_id)
    liked = int(torch.bincount(free.sequences.completion_ids.flatten()).argmax())
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(liked)
    return policy, tokenizer


@pytest.fixture
def trained(softer, tmp_path):
    policy, tokenizer = softer
    start = copy.deepcopy(policy)
    trainer = new_trainer(policy, tokenizer, tmp_path)
    trainer.train()
    return trainer, start


def unpadded(inputs) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(prompt, completion) of each sequence of a minibatch."""
    width, rows = inputs["prompt_width"], []
    for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True):
        prompt, completion = ids[:width][mask[:width]], ids[width:][mask[width:]]
        rows.append((tuple(prompt.tolist()), tuple(completion.tolist())))
    return rows


def logprob(model, prompt, completion) -> float:
    """Nats, in float64, of one sequence alone: no padding, no position ids, no mask."""
    ids = torch.tensor([[*prompt, *completion]])
    with torch.no_grad():
        logits = copy.deepcopy(model).double()(ids).logits[0, len(prompt) - 1 : -1].numpy()
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return float(logp[np.arange(len(completion)), list(completion)].sum())


def test_labels_by_hand():
    first, second = [1.0, 0.0, 5.0, -1.0], [-1.0, math.log(3), 5.0, 400.0]
    by_hand = [1 / (1 + math.exp(-2)), 0.25, 0.5, 0.0]
    torch.testing.assert_close(labels(torch.tensor(first + second)), torch.tensor(by_hand))


def test_drawn_labels_are_as_frequent_as_the_judge_is_sure():
    scores = torch.cat([torch.full((4000,), math.log(3)), torch.zeros(4000)])
    drawn = labels(scores, np.random.default_rng(0))
    assert set(drawn.tolist()) == {0.0, 1.0}
    assert float(drawn.mean()) == pytest.approx(0.75, abs=0.02)
    assert torch.equal(drawn, labels(scores, np.random.default_rng(0)))
    uniforms = np.random.default_rng(0).random(4000)
    assert drawn.tolist() == (uniforms < 0.75).astype(float).tolist()


def test_drawn_labels_are_what_is_trained_on(softer, tmp_path):
    policy, tokenizer = softer

    def undecided(sequences):
        return torch.zeros(len(sequences.input_ids))

    changes = {"labels": "drawn", "pairs": 64, "batch_size": 16}
    trainer = new_trainer(policy, tokenizer, tmp_path, undecided, **changes)
    first, second, again = (trainer.new_round(number).preference for number in (0, 1, 0))
    assert set(first.tolist()) == {0.0, 1.0}
    assert torch.equal(first, again) and not torch.equal(first, second)


def test_the_loss_of_a_round_is_the_papers_equation(softer, tmp_path):
    """On the ids that were sampled, prompts of unequal length, soft labels; in float64 numpy."""
    policy, tokenizer = softer
    trainer = new_trainer(policy, tokenizer, tmp_path, pairs=32)
    with torch.no_grad():  # else the policy is still the reference, and every loss ln 2
        policy.transformer.ln_f.weight.mul_(0.8)
    batch = trainer.new_round(0).minibatch(range(32))
    loss = float(trainer.compute_loss(policy, batch).detach())
    rows = unpadded(batch)
    assert len({len(prompt) for prompt, _ in rows}) == 4
    assert len({len(completion) for _, completion in rows}) > 2, "and completions, too"
    losses = []
    for (prompt, one), (same, other) in zip(rows[:32], rows[32:], strict=True):
        assert prompt == same
        own, ref = (
            logprob(model, prompt, one) - logprob(model, prompt, other)
            for model in (policy, trainer.reference)
        )
        even, odd = (3 * np.mean([token % 2 == 0 for token in ids]) for ids in (one, other))
        p, m = 1 / (1 + np.exp(odd - even)), 0.3 * (own - ref)
        losses.append(p * np.log1p(np.exp(-m)) + (1 - p) * np.log1p(np.exp(m)))
    assert loss == pytest.approx(np.mean(losses), abs=1e-4)
    assert abs(loss - math.log(2)) > 1e-2, "the margins must matter for the test to mean anything"


def test_the_reference_is_the_policy_at_the_start_and_stays_so(trained):
    trainer, start = trained
    for name, weight in trainer.reference.state_dict().items():
        assert torch.equal(weight, start.state_dict()[name])
    assert not any(weight.requires_grad for weight in trainer.reference.parameters())
    assert not torch.equal(trainer.policy.lm_head.weight, start.lm_head.weight)


def test_what_was_sampled_is_trained_on_each_pair_once_an_epoch(trained):
    trainer, _ = trained
    for number, made in enumerate(trainer.rounds):
        prompts, completions = made.sequences.unpacked()
        sampled = sorted(
            (tuple(prompts[n]), tuple(completions[n]), tuple(completions[n + 8]), float(p))
            for n, p in enumerate(made.preference)
        )
        steps = [inputs for inputs, _ in trainer.batches[4 * number : 4 * number + 4]]
        for epoch in (steps[:2], steps[2:]):
            seen = []
            for inputs in epoch:
                rows = unpadded(inputs)
                for n, p in enumerate(inputs["preference"]):
                    seen.append((*rows[n], rows[n + 4][1], float(p)))
            assert sorted(seen) == sampled


def test_there_are_as_many_rounds_completions_and_steps_as_asked_for(trained):
    trainer, _ = trained
    assert len(trainer.rounds) == 3 and trainer.state.global_step == 3 * 2 * 8 / 4
    assert all(len(made.sequences.input_ids) == 16 for made in trainer.rounds)
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["step"] for row in rows] == [4, 8, 12]
    assert rows[-1]["learning_rate"] == pytest.approx(1e-3 / 12)


def test_every_round_is_sampled_from_the_policy_as_it_is_then(trained):
    """The policy that sampled is the one that the first step of the round starts from."""
    trainer, _ = trained
    heads = [policy.lm_head.weight for policy in trainer.policies]
    assert not torch.equal(heads[0], heads[1]) and not torch.equal(heads[1], heads[2])
    kl = [row["objective/kl"] for row in trainer.state.log_history if "loss" in row]
    assert kl[0] == pytest.approx(0, abs=1e-5)
    for number, (made, policy) in enumerate(zip(trainer.rounds, trainer.policies, strict=True)):
        prompts, completions = made.sequences.unpacked()
        ratios = [
            logprob(policy, *pair) - logprob(trainer.reference, *pair)
            for pair in zip(prompts, completions, strict=True)
        ]
        assert kl[number] == pytest.approx(np.mean(ratios), abs=1e-4)
    assert len({round(value, 6) for value in kl}) == 3


def test_noise_is_new_in_each_round_and_for_each_seed(softer, tmp_path):
    """One policy, one prompt: nothing else could make the completions differ."""

    def completions(seed, number):
        trainer = new_trainer(*softer, tmp_path, seed=seed)
        trainer.prompts = [[5, 6, 7]] * 4
        return trainer.new_round(number).sequences.unpacked()[1]

    drawn = completions(0, 0)
    assert drawn == completions(0, 0)
    assert drawn != completions(0, 1) and drawn != completions(1, 0)
    assert drawn[:8] != drawn[8:], "nor do both completions of a pair share theirs"


def test_the_same_seed_gives_the_same_weights_and_another_one_others(softer, tmp_path):
    policy, tokenizer = softer

    def weights(seed):
        model = copy.deepcopy(policy)
        new_trainer(model, tokenizer, tmp_path, seed=seed, rounds=2).train()
        return torch.cat([parameter.flatten() for parameter in model.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_the_ledger_books_every_pass(softer, tmp_path):
    policy, tokenizer = softer
    policy.save_pretrained(tmp_path / "sft")
    model = new_reward_model(tmp_path / "sft").eval()
    trainer = new_trainer(policy, tokenizer, tmp_path)
    trainer.judge = learnt_judge(model, trainer.ledger)
    with trainer.ledger.phase("train"):
        trainer.train()
    cost, judge = ModelCost.of(policy), ModelCost.of(model)
    phases, sampled = trainer.ledger.phases(), [made.sequences for made in trainer.rounds]
    shapes = [(*s.input_ids.shape, s.prompt_width) for s in sampled]
    tokens = sum(int(s.completion_mask.sum()) for s in sampled)
    assert phases["sampling"]["tokens_generated"] == tokens
    assert phases["sampling"]["flops"] == sum(
        cost.decode(drawn.sequences.prompt_width, drawn.rows) for drawn in trainer.drawn
    )
    reference = [cost.forward(*s.input_ids.shape, s.tokens) for s in sampled]
    assert phases["scoring"]["flops"] == sum(reference) + sum(
        judge.forward(n, t, 0, read=n) for n, t, _ in shapes
    )
    assert phases["train"]["flops"] == 3 * 2 * sum(reference)  # 3 passes' worth, 2 epochs
    assert phases["train"]["tokens_trained"] == 2 * sum(
        int(s.attention_mask.sum()) for s in sampled
    )


def test_a_score_that_is_not_finite_names_the_sample(softer, tmp_path):
    policy, tokenizer = softer

    def broken(sequences):
        scores = share_of_even_tokens(sequences)
        scores[3] = math.nan
        return scores

    trainer = new_trainer(policy, tokenizer, tmp_path, judge=broken)
    with pytest.raises(ValueError, match="must be finite") as error:
        trainer.train()
    prompt = PROMPTS[prompt_order(4, 24, seed=0)[3]]
    assert f"the judge gave nan for the prompt {tokenizer.decode(prompt)!r}" in str(error.value)
    assert "\n" not in str(error.value)


def test_equal_pairs_are_seen_and_count_for_no_accuracy(softer, tmp_path):
    sequences = pack([[5, 6], [7], [5, 6], [7]], [[1, 2], [3], [1, 2], [3, 1]], pad_id=1)
    assert equal_pairs(sequences).tolist() == [True, False], "the second ends in a sampled PAD"
    trainer = new_trainer(*softer, tmp_path)
    trainer._compare(torch.tensor([2.0, -1.0, 5.0]), torch.tensor([1.0, 0.0, 3.0, 0.0, 1.0, 3.0]))
    trainer.log({})
    [row] = trainer.state.log_history
    assert row["rewards/margins"] == 1.5 and row["rewards/accuracies"] == 1.0


def test_every_prompt_comes_before_any_comes_again():
    order = prompt_order(5, 12, seed=0)
    assert len(order) == 12
    assert sorted(order[:5]) == sorted(order[5:10]) == list(range(5))
    assert order[:5].tolist() != order[5:10].tolist()
    assert order.tolist() != prompt_order(5, 12, seed=1).tolist()


def test_minibatches_are_reshuffled_each_epoch():
    steps = minibatches(SPEC, seed=0)
    assert [step["round"] for step in steps] == [0] * 4 + [1] * 4 + [2] * 4
    epochs = [steps[n]["pairs"] + steps[n + 1]["pairs"] for n in range(0, 12, 2)]
    assert all(sorted(pairs) == list(range(8)) for pairs in epochs)
    assert len({tuple(pairs) for pairs in epochs}) == 6
