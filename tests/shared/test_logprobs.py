"""Log-probabilities of tokens: the LM head at the positions that are read, and its gradient."""

import copy

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from pipelines.shared import logprobs
from pipelines.shared.kernels import with_fast_kernels
from pipelines.shared.logprobs import (
    completion_logprobs,
    gather_logprobs,
    pack,
    target_logprobs,
)
from pipelines.shared.reading import head_at

PAD = 1
SMALL = {
    "vocab_size": 280,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": PAD,
}


@pytest.fixture
def sequences():
    """Prompts and completions of several lengths: padding on both sides."""
    return pack([[5, 6, 7], [8]], [[9, 10, 0], [11, 12, 13, 14, 15]], PAD)


def by_torch(model, sequences, temperature=1.0):
    """The same from all logits, by torch's own log-softmax."""
    logits = model(**sequences.model_inputs()).logits[:, sequences.prompt_width - 1 : -1]
    logp = (logits / temperature).log_softmax(-1)
    logp = logp.gather(-1, sequences.completion_ids[..., None]).squeeze(-1)
    return logp.masked_fill(~sequences.completion_mask, 0.0)


def models(policy):
    torch.manual_seed(0)
    gemma = Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=3.0)
    yield policy
    yield LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=True))
    yield Gemma2ForCausalLM(gemma)  # it caps its logits after the head


@pytest.mark.parametrize("architecture", [0, 1, 2], ids=["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_are_those_of_the_whole_log_softmax(
    policy, sequences, architecture, temperature
):
    model = list(models(policy))[architecture].eval()
    weights = torch.linspace(-1, 2, 10).view(2, 5)
    found = {}
    for name, function in (("own", completion_logprobs), ("torch", by_torch)):
        model.zero_grad()
        values = function(model, sequences, temperature)
        (values * weights).sum().backward()
        found[name] = values.detach(), {n: p.grad for n, p in model.named_parameters()}
    torch.testing.assert_close(found["own"][0], found["torch"][0], atol=1e-5, rtol=1e-5)
    for name, gradient in found["torch"][1].items():
        torch.testing.assert_close(found["own"][1][name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_the_head_runs_on_the_tokens_that_are_read(policy, sequences):
    seen = []
    policy.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    completion_logprobs(policy, sequences)
    assert seen == [(3 + 5, 280)]
    assert policy(**sequences.model_inputs()).logits.shape == (2, 8, 280), "the hook is gone"


def test_right_padded_batches_as_trl_makes_them(policy, sequences):
    rows = [[5, 6, 7, 9, 10, 0], [8, 11, 12, 13, 14, 15]]
    inputs = {"input_ids": torch.tensor(rows), "attention_mask": torch.ones(2, 6).long()}
    targets = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1]]).bool()
    found = target_logprobs(policy, inputs, targets)
    assert (found[~targets] == 0).all() and (found[targets] < 0).all()
    expected = completion_logprobs(policy, sequences)
    torch.testing.assert_close(found[targets], expected[sequences.completion_mask])


def test_gradients_by_finite_differences(monkeypatch):
    monkeypatch.setattr(logprobs, "BLOCK", 3 * 7)  # blocks of 3 rows, the last of 2
    torch.manual_seed(0)
    logits = torch.randn(5, 7, dtype=torch.double, requires_grad=True)
    ids = torch.tensor([0, 6, 3, 3, 1])
    assert torch.autograd.gradcheck(lambda x: gather_logprobs(x, ids), (logits,))
    torch.testing.assert_close(gather_logprobs(logits, ids), logits.log_softmax(-1)[range(5), ids])


@pytest.mark.parametrize("overwrite", [False, True])
def test_logits_of_any_size(overwrite):
    """Their exponentials alone would overflow, or all be 0."""
    infinite = float("inf")
    logits = torch.tensor([[1e3, 999.0, -1e3], [-1e3, -1001.0, -1e3], [0.0, -infinite, 1.0]])
    ids, own = torch.tensor([1, 2, 0]), logits.clone().requires_grad_()
    expected = own.double().log_softmax(-1)[range(3), ids]
    expected.sum().backward()
    given = logits.clone().requires_grad_()
    found = gather_logprobs(given * 1.0, ids, overwrite)
    found.sum().backward()
    torch.testing.assert_close(found.double(), expected)
    torch.testing.assert_close(given.grad, own.grad)


def test_what_is_overwritten_cannot_be_differentiated_again():
    logits = torch.randn(2, 3, requires_grad=True) * 1.0
    total = gather_logprobs(logits, torch.tensor([0, 1]), overwrite=True).sum()
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="overwritten"):
        total.backward()


def test_a_model_that_hides_its_head_is_named(policy, monkeypatch):
    monkeypatch.setattr(type(policy), "get_output_embeddings", lambda self: None)
    with (
        pytest.raises(ValueError, match="GPT2LMHeadModel has no LM head"),
        head_at(policy, torch.ones(1, 2).bool()),
    ):
        pass


def test_the_fused_gelu_is_gpt2s(policy, sequences):
    plain = type(policy)(policy.config).eval()  # as Transformers makes it
    plain.load_state_dict(policy.state_dict())
    fused = with_fast_kernels(copy.deepcopy(plain))
    assert repr(plain) != repr(fused) and fused.config.activation_function == "gelu_new"
    inputs = sequences.model_inputs()
    torch.testing.assert_close(plain(**inputs).logits, fused(**inputs).logits, atol=1e-5, rtol=1e-5)
