"""The KL meter against exact enumeration."""

import itertools
import math

import pytest
import torch

from pipelines.evaluate.kl import divergence
from pipelines.shared import logprobs
from pipelines.shared.logprobs import pack, target_logits

EOS, PAD = 0, 1


def test_by_hand():
    policy, reference = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    mask = torch.tensor([[True]])
    found = divergence(policy, reference, torch.tensor([0]), mask)
    ratio = math.log(0.5 / 0.25)
    exact = 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)
    assert float(found.kl_k1) == pytest.approx(ratio)
    assert float(found.kl_k3) == pytest.approx(math.exp(-ratio) - 1 + ratio)
    assert float(found.kl_rb) == pytest.approx(exact)
    assert float(found.entropy) == pytest.approx(math.log(2))
    assert float(found.logp) == pytest.approx(math.log(0.5))
    assert float(found.ref_logp) == pytest.approx(math.log(0.25))


def test_padding_counts_for_nothing():
    torch.manual_seed(0)
    logits, reference = torch.randn(6, 7), torch.randn(6, 7)
    ids = torch.randint(0, 7, (6,))
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    whole = divergence(logits, reference, ids, mask)
    cut = divergence(logits[4:], reference[4:], ids[4:], mask[1:, :2])
    for name, value in vars(whole).items():
        torch.testing.assert_close(value[1:], getattr(cut, name))


def test_it_does_not_matter_how_many_tokens_are_worked_on_at_once(monkeypatch):
    torch.manual_seed(0)
    logits, reference, ids = torch.randn(15, 11), torch.randn(15, 11), torch.randint(0, 11, (15,))
    mask = torch.ones(3, 5).bool()
    whole = divergence(logits, reference, ids, mask)
    monkeypatch.setattr(logprobs, "BLOCK", 4 * 11)  # blocks of 4, the last of 3
    for name, value in vars(divergence(logits, reference, ids, mask)).items():
        torch.testing.assert_close(value, getattr(whole, name))


def test_a_model_against_itself_is_exactly_0():
    torch.manual_seed(0)
    logits, ids = torch.randn(15, 11), torch.randint(0, 11, (15,))
    found = divergence(logits, logits.clone(), ids, torch.ones(3, 5).bool())
    assert (found.kl_k1 == 0).all() and (found.kl_k3 == 0).all() and (found.kl_rb == 0).all()


def test_every_estimator_is_unbiased_for_sequences_with_eos(policy):
    """All completions of a 4-symbol alphabet up to 3 tokens, EOS among them, weighted by
    probability.
    """
    import copy

    reference = copy.deepcopy(policy)
    for parameter in reference.parameters():
        parameter.data.mul_(0.7)
    alphabet = [EOS, 2, 3, 4]
    completions = [
        list(ids)
        for length in (1, 2, 3)
        for ids in itertools.product(alphabet, repeat=length)
        if EOS not in ids[:-1] and (length == 3 or ids[-1] == EOS)
    ]
    sequences = pack([[5, 6]] * len(completions), completions, PAD)

    def restricted(model):
        """Logits over the alphabet alone, so that the enumeration is complete."""
        with torch.no_grad():
            inputs = sequences.model_inputs()
            logits = target_logits(model, inputs, sequences.targets).double()
        outside = torch.ones(logits.shape[-1], dtype=torch.bool)
        outside[alphabet] = False
        return logits.masked_fill(outside, -torch.inf)

    found = divergence(
        restricted(policy),
        restricted(reference),
        sequences.completion_ids[sequences.completion_mask],
        sequences.completion_mask,
    )
    probability = found.logp.exp()
    assert float(probability.sum()) == pytest.approx(1, abs=1e-9)
    exact = float((probability * (found.logp - found.ref_logp)).sum())
    assert exact > 0.05
    for name in ("kl_k1", "kl_k3", "kl_rb"):
        assert float((probability * getattr(found, name)).sum()) == pytest.approx(
            exact, rel=1e-6
        ), name
    assert float(found.kl_k3.min()) >= 0 and float(found.kl_rb.min()) >= 0
    assert found.kl_k1.std() > 0.1, "single samples do vary"
