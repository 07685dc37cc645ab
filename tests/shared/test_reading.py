"""The last block's MLP at the positions that somebody reads."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipelines.rlhf.actor_critic import ActorCritic, new_critic
from pipelines.rlhf.reward_model import ends
from pipelines.shared.logprobs import completion_logprobs, pack, target_logprobs
from pipelines.shared.models import rewards, token_values
from pipelines.shared.reading import as_mask, last_mlp, mlp_at

PAD = 1


@pytest.fixture
def sequences():
    return pack([[5, 6, 7], [8]], [[9, 10, 0], [11, 12, 13, 14, 15]], PAD)


def rows_seen(module):
    seen = []
    module.register_forward_hook(lambda _, given, out: seen.append(tuple(given[0].shape)))
    return seen


def test_completions_are_read_at_what_predicts_them(policy, sequences):
    first, last = (rows_seen(block.mlp) for block in policy.transformer.h)
    completion_logprobs(policy, sequences)
    assert first == [(2, 8, 32)] and last == [(3 + 5, 32)]


def test_states_that_are_read_are_the_models_and_others_lack_the_mlp(policy, sequences):
    read = torch.rand(2, 8, generator=torch.Generator().manual_seed(0)) < 0.5
    trunk, inputs = policy.transformer, sequences.model_inputs()
    whole = trunk(**inputs).last_hidden_state
    with mlp_at(policy, read):
        some = trunk(**inputs).last_hidden_state
    torch.testing.assert_close(some[read], whole[read], atol=1e-5, rtol=1e-5)
    assert not torch.isclose(some[~read], whole[~read], atol=1e-3).all(-1).any()
    assert torch.equal(trunk(**inputs).last_hidden_state, whole), "the hooks are gone"


def test_scores_and_values_are_those_of_the_whole_pass(policy, sequences):
    critic = new_critic(policy).eval()
    torch.nn.init.normal_(critic.score.weight)
    seen = rows_seen(critic.transformer.h[-1].mlp)
    everywhere = token_values(critic, sequences)
    last = torch.tensor([[5], [7]])  # columns of the last real tokens
    torch.testing.assert_close(rewards(critic, sequences), everywhere.gather(1, last).squeeze(1))
    values = ActorCritic(policy, critic).values(sequences)
    torch.testing.assert_close(values, everywhere[:, 2:], atol=1e-5, rtol=1e-5)
    assert seen == [(2, 8, 32), (2, 32), (2 * 6, 32)]


def test_a_head_on_the_trunk_reads_beyond_the_completions(policy, sequences):
    both = ActorCritic(policy, None).eval()
    torch.nn.init.normal_(both.head.weight)
    states = policy.transformer(**sequences.model_inputs()).last_hidden_state
    expected = both.head(states[:, 2:]).squeeze(-1)
    logprobs, values = both(sequences, 1.0)
    torch.testing.assert_close(values, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(both.values(sequences), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logprobs, completion_logprobs(policy, sequences))


def test_classifiers_are_read_where_transformers_reads_them(policy):
    critic = new_critic(policy).eval()
    torch.nn.init.normal_(critic.score.weight)
    ids = torch.tensor([[5, 6, 7, PAD, PAD], [8, PAD, 9, 10, PAD], [PAD] * 5])
    assert ends(critic, ids).nonzero().tolist() == [[0, 2], [1, 3], [2, 0]]
    whole = critic(ids, attention_mask=torch.ones_like(ids)).logits
    with mlp_at(critic, ends(critic, ids)):
        read = critic(ids, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(read, whole, atol=1e-5, rtol=1e-5)


def test_what_is_computed_again_in_the_backward_pass_is_left_whole(policy, sequences):
    policy.train().gradient_checkpointing_enable()
    assert last_mlp(policy) is None
    completion_logprobs(policy, sequences).sum().backward()
    checkpointed = policy.transformer.wte.weight.grad.clone()
    policy.zero_grad()
    policy.gradient_checkpointing_disable()
    assert last_mlp(policy) is not None
    completion_logprobs(policy, sequences).sum().backward()
    torch.testing.assert_close(policy.transformer.wte.weight.grad, checkpointed)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "bloom"])
def test_mixtures_of_experts_and_mlps_that_take_more_are_left_whole(family, sequences):
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
    if family != "bloom":
        size |= {"intermediate_size": 16, "num_key_value_heads": 2, "num_local_experts": 2}
        size |= {"num_experts_per_tok": 1}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **size)).eval()
    assert last_mlp(model) is None
    rows = torch.tensor([[5, 6, 7, 9, 10], [8, 11, 12, 13, 14]])
    targets = torch.tensor([[0, 0, 0, 1, 1], [0, 1, 1, 1, 1]]).bool()
    found = target_logprobs(model, {"input_ids": rows}, targets)
    expected = model(rows).logits[:, :-1].log_softmax(-1).gather(-1, rows[:, 1:, None])[..., 0]
    torch.testing.assert_close(found[:, 1:][targets[:, 1:]], expected[targets[:, 1:]])


def test_places_as_a_mask():
    rows, columns = torch.tensor([1, 0, 1, 1]), torch.tensor([0, 2, 0, 1])
    mask = as_mask((rows, columns), (2, 3))
    assert mask.tolist() == [[False, False, True], [True, True, False]]
    assert as_mask(mask, (2, 3)) is mask
