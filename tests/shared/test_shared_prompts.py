"""A prompt computed once for both completions of its pair: the same log-probs and gradients."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipelines.shared.ledger import ModelCost
from pipelines.shared.logprobs import target_logprobs
from pipelines.shared.reading import last_mlp
from pipelines.shared.shared_prompts import (
    FAMILIES,
    SharedPrompts,
    shared_logprobs,
    shared_shape,
    takes_any_mask,
)

PAD = 1
PROMPTS = [[5, 6, 7], [8], [9, 10]]
CHOSEN = [[11, 12], [13, 14, 15, 16], [17]]
REJECTED = [[18, 19, 20], [21], [11, 12, 13, 14, 15]]
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": PAD,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
OWN = {  # what a family calls otherwise, or has on by default
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32},
    "mistral": {"sliding_window": None},
    "gemma": {"head_dim": 8},
    "cohere": {"logit_scale": 1.0},
    "qwen3": {"head_dim": 8},
    "starcoder2": {"sliding_window": None},
}


def batch():
    """(2B, T) as TRL's collator makes it: chosen first, padded on the right."""
    rows = [p + c for side in (CHOSEN, REJECTED) for p, c in zip(PROMPTS, side, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    targets = real.clone()
    for number, prompt in enumerate(PROMPTS * 2):
        targets[number, : len(prompt)] = 0
    return ids, real, targets.bool()


def model_of(family, attention="sdpa"):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SMALL, **OWN.get(family, {})})
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    for weight in model.parameters():  # sharp predictions: a wrong mask or position shows
        weight.data.mul_(3)
    return model


def by_torch(model, inputs, targets):
    """From all logits, without any of this project's code."""
    logp = model(**inputs).logits[:, :-1].log_softmax(-1)
    logp = logp.gather(-1, inputs["input_ids"][:, 1:, None]).squeeze(-1)
    return torch.nn.functional.pad(logp, (1, 0)).masked_fill(~targets, 0.0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_gives_what_separate_sequences_give(family, attention):
    model, (ids, real, targets) = model_of(family, attention), batch()
    assert takes_any_mask(model)
    weights = torch.linspace(-1, 2, ids.numel()).view_as(ids)
    inputs = {"input_ids": ids, "attention_mask": real}
    ways = {
        "all logits": lambda: by_torch(model, inputs, targets),
        "separate": lambda: target_logprobs(model, inputs, targets),
        "shared": lambda: shared_logprobs(model, ids, targets),
    }
    found = {}
    for name, way in ways.items():
        model.zero_grad()
        values = way()
        (values * weights).sum().backward()
        found[name] = values.detach(), {n: p.grad for n, p in model.named_parameters()}
    assert found["all logits"][0][targets].std() > 0.1
    assert last_mlp(model) is not None
    for way in ("separate", "shared"):
        torch.testing.assert_close(found[way][0], found["all logits"][0], atol=2e-5, rtol=1e-5)
        for name, gradient in found["all logits"][1].items():
            torch.testing.assert_close(
                found[way][1][name], gradient, atol=1e-4, rtol=1e-3, msg=f"{way}: {name}"
            )


def test_a_row_by_hand():
    ids, _, targets = batch()
    rows = SharedPrompts.of(ids, targets)
    assert rows.input_ids[0].tolist() == [5, 6, 7, 11, 12, 18, 19, 20]
    assert rows.positions[0].tolist() == [0, 1, 2, 3, 4, 3, 4, 5]
    assert rows.part[0].tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert rows.input_ids[1, :6].tolist() == [8, 13, 14, 15, 16, 21]
    assert rows.part[1].tolist() == [0, 1, 1, 1, 1, 2, 3, 3]
    # 11 and 12 are predicted at 2 and 3; 18, 19 and 20 at 2, 5 and 6.
    chosen, rejected = (
        list(zip(*(p[s].tolist() for p in rows.before), strict=True))
        for s in (slice(0, 2), slice(7, 10))
    )
    assert chosen == [(0, 2), (0, 3)] and rejected == [(0, 2), (0, 5), (0, 6)]
    seen = rows.seen()[0].int().tolist()
    assert seen[4] == [1, 1, 1, 1, 1, 0, 0, 0], "the chosen completion's last token"
    assert seen[6] == [1, 1, 1, 0, 0, 1, 1, 0], "the rejected one's second"


def test_neither_completion_sees_the_other():
    model, (ids, _, targets) = model_of("llama"), batch()
    before = shared_logprobs(model, ids, targets).detach()
    changed = ids.clone()
    changed[: len(CHOSEN)][targets[: len(CHOSEN)]] = 33
    after = shared_logprobs(model, changed, targets).detach()
    torch.testing.assert_close(after[3:], before[3:])
    assert not torch.allclose(after[:3], before[:3], atol=1e-2)


def test_only_where_it_is_cheaper(policy):
    """Long completions of short prompts attend to one another in vain."""

    def shape(prompt, completion):
        targets = torch.ones(4, prompt + completion).bool()
        targets[:, :prompt] = False
        return shared_shape(policy, ModelCost.of(policy), torch.full(targets.shape, 5), targets)

    assert shape(prompt=16, completion=32) == (2, 80)
    assert shape(prompt=4, completion=200) is None


def test_only_models_that_can(policy):
    model = model_of("llama")
    assert takes_any_mask(model)
    for name, value in (
        ("sliding_window", 4),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("is_causal", False),
        ("use_bidirectional_attention", True),
        ("_attn_implementation_internal", "flash_attention_2"),
        ("model_type", "bloom"),  # positions are in its attention's mask
    ):
        model = model_of("llama")
        setattr(model.config, name, value)
        assert not takes_any_mask(model), name
        ids, _, targets = batch()
        assert shared_shape(model, ModelCost.of(policy), ids, targets) is None


def test_only_batches_of_shared_prompts(policy):
    ids, _, targets = batch()
    cost = ModelCost.of(policy)
    assert shared_shape(policy, cost, ids, targets) == (3, 8)
    empty, longer, other = targets.clone(), targets.clone(), ids.clone()
    empty[0] = False  # nothing says where its prompt ends
    longer[3, 3] = False  # the rejected one's prompt has a token more
    other[3, 1] = 33
    for case in ((ids, empty), (ids, longer), (other, targets)):
        assert shared_shape(policy, cost, *case) is None
