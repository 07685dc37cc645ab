"""Analytic FLOPs against torch's own counter."""

import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipelines.shared.ledger import Ledger, ModelCost, accelerators
from pipelines.shared.logprobs import completion_logprobs, pack
from pipelines.shared.models import new_reward_model, rewards
from pipelines.shared.sampling import keyed_uniforms, sample


@pytest.fixture(autouse=True)
def counted_attention(policy):
    """torch's counter does not see the fused CPU attention; the eager one does the same."""
    policy.set_attn_implementation("eager")


@pytest.fixture
def sequences():
    return pack([[5, 6, 7, 8]] * 6, [[9, 10, 11, 12, 13]] * 6, pad_id=1)


def test_a_forward_pass_with_the_head_on_completions_only(policy, sequences):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        completion_logprobs(policy, sequences)
    assert ModelCost.of(policy).forward(6, 9, 6 * 5) == pytest.approx(
        counter.get_total_flops(), rel=0.02
    )


def test_a_training_step_is_three_forward_passes(policy, sequences):
    with FlopCounterMode(display=False) as counter:
        completion_logprobs(policy, sequences).sum().backward()
    assert 3 * ModelCost.of(policy).forward(6, 9, 30) == pytest.approx(
        counter.get_total_flops(), rel=0.05
    )


def test_sampling(policy):
    noise = keyed_uniforms(0, 0, range(6), 10)
    free = sample(policy, [[5, 6, 7, 8]] * 6, noise, eos_id=None, pad_id=1)
    ending = int(free.sequences.completion_ids[0, 3])  # so that rows leave the batch
    with FlopCounterMode(display=False) as counter:
        drawn = sample(policy, [[5, 6, 7, 8]] * 6, noise, eos_id=ending, pad_id=1)
    assert drawn.rows[0] == 6 and 0 < drawn.rows[-1] < 6
    assert ModelCost.of(policy).decode(4, drawn.rows) == pytest.approx(
        counter.get_total_flops(), rel=0.05
    )


def test_a_reward_model_has_no_lm_head(policy, sequences, tmp_path):
    policy.save_pretrained(tmp_path)
    model = new_reward_model(tmp_path).eval()
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        rewards(model, sequences)
    assert ModelCost.of(model).head == 0
    booked = ModelCost.of(model).forward(6, 9, 0, read=6)  # a score is read at the end alone
    assert booked == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_counts_go_to_the_phase_they_happen_in():
    ledger = Ledger()
    with ledger.phase("update"):
        ledger.add(flops=10, tokens_trained=4)
        with ledger.phase("rollout"):
            ledger.add(flops=3, tokens_generated=2)
        ledger.add(flops=10)
    assert ledger.phases()["update"]["flops"] == 20
    assert ledger.phases()["rollout"]["flops"] == 3
    totals = ledger.totals(seconds=1.5)
    assert (totals["flops"], totals["tokens_trained"], totals["tokens_generated"]) == (23, 4, 2)
    assert totals["seconds"] == 1.5 and totals["peak_memory_bytes"] > 10 * 2**20


def test_a_look_aside_is_in_no_total():
    ledger = Ledger()
    with ledger.phase("train"):
        ledger.add(flops=5, tokens_trained=2)
    with ledger.aside("look"):
        ledger.add(flops=100, tokens_trained=100)
        time.sleep(0.02)
    totals = ledger.totals(seconds=1.0)
    assert totals["flops"] == 5 and totals["tokens_trained"] == 2
    assert totals["seconds"] == pytest.approx(1 - ledger.phases()["look"]["seconds"])
    assert ledger.phases()["look"]["seconds"] >= 0.02 and ledger.phases()["look"]["flops"] == 100


def test_the_bytes_of_a_trained_network_are_what_adamw_makes_of_it(policy, sequences):
    ledger = Ledger()
    policy.transformer.wte.weight.requires_grad_(False)  # tied to the LM head: there once
    ledger.network("policy", policy, trained=True)
    ledger.network("reference", policy)
    held = [*policy.parameters()]
    optimiser = torch.optim.AdamW([w for w in held if w.requires_grad])
    completion_logprobs(policy, sequences).sum().backward()
    optimiser.step()
    moments = [
        value
        for state in optimiser.state.values()
        for value in state.values()
        if value.ndim  # beside the count of steps
    ]
    gradients = [w.grad for w in held if w.grad is not None]
    real = sum(part.nbytes for part in [*held, *gradients, *moments])
    count = sum(w.numel() for w in held)
    trained = count - policy.transformer.wte.weight.numel()
    assert ledger.networks() == {
        "policy": {"parameters": count, "trained": trained, "bytes": real},
        "reference": {"parameters": count, "trained": 0, "bytes": 4 * count},
    }
    assert real == 4 * count + 12 * trained


def test_a_network_takes_the_place_of_its_namesake(policy):
    ledger = Ledger()
    ledger.network("policy", policy, trained=True)
    ledger.network("policy", policy)
    assert [row["trained"] for row in ledger.networks().values()] == [0]


def test_accelerators_that_are_not_known_are_not_none():
    assert accelerators("cpu") == []
    assert accelerators("mps") is None
    if not torch.cuda.is_initialized():
        assert accelerators("cuda:0") is None
