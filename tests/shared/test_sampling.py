"""The sampler against a full forward pass and against exact probabilities."""

import pytest
import torch
from scipy.stats import chisquare
from transformers import LlamaConfig, LlamaForCausalLM

from pipelines.shared.logprobs import completion_logprobs, pack, target_logits
from pipelines.shared.sampling import greedy, inverse_cdf, keyed_uniforms, sample

EOS, PAD = 0, 1
PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13]] * 8


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=280,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        eos_token_id=EOS,
        bos_token_id=None,
        pad_token_id=PAD,
    )
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data.mul_(4)
    return model


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_logprobs_equal_a_full_forward_pass(policy, architecture, temperature):
    model = policy if architecture == "gpt2" else llama()
    noise = keyed_uniforms(0, 0, range(len(PROMPTS)), 12)
    drawn = sample(model, PROMPTS, noise, eos_id=EOS, pad_id=PAD, temperature=temperature)
    with torch.no_grad():
        again = completion_logprobs(model, drawn.sequences, temperature)
    assert (drawn.logprobs - again).abs().max() < 1e-5
    assert drawn.logprobs.abs().sum() > 0


def logits_of(model, sequences, temperature: float = 1.0) -> torch.Tensor:
    """Of the completions' tokens, row by row."""
    return target_logits(model, sequences.model_inputs(), sequences.targets, temperature)


def test_batching_and_padding_do_not_change_a_row(policy):
    noise = keyed_uniforms(0, 0, range(len(PROMPTS)), 12)
    together = sample(policy, PROMPTS, noise, eos_id=EOS, pad_id=PAD).completions()
    alone = [
        sample(policy, [prompt], noise[row : row + 1], eos_id=EOS, pad_id=PAD).completions()[0]
        for row, prompt in enumerate(PROMPTS)
    ]
    assert together == alone


def test_left_padding_leaves_the_logits_as_they_are(policy):
    with torch.no_grad():
        padded = logits_of(policy, pack([[5, 6, 7, 8], [9, 10]], [[3, 4], [3, 4]], PAD))[2:]
        alone = logits_of(policy, pack([[9, 10]], [[3, 4]], PAD))
    assert padded.shape == alone.shape == (2, policy.config.vocab_size)
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-5)


def test_a_completion_ends_with_its_first_eos(policy):
    noise = keyed_uniforms(1, 0, range(24), 12)
    free = sample(policy, PROMPTS, noise, eos_id=EOS, pad_id=PAD)
    common = int(torch.bincount(free.sequences.completion_ids.flatten()).argmax())
    drawn = sample(policy, PROMPTS, noise, eos_id=common, pad_id=PAD)
    assert 0 < drawn.finished.sum() < len(PROMPTS), "the test needs both kinds"
    for completion, finished in zip(drawn.completions(), drawn.finished.tolist(), strict=True):
        assert (completion[-1] == common) == finished
        assert common not in completion[:-1]
        assert finished or len(completion) == 12
    padding = ~drawn.sequences.completion_mask
    assert (drawn.sequences.completion_ids[padding] == PAD).all()
    assert drawn.rows[-1] < len(PROMPTS), "rows left the batch"
    for row, prompt in enumerate(PROMPTS):  # and the others kept their noise, cache and place
        alone = sample(policy, [prompt], noise[row : row + 1], eos_id=common, pad_id=PAD)
        assert alone.completions()[0] == drawn.completions()[row]
    assert (drawn.logprobs[padding] == 0).all()


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_greedy_decoding_is_that_of_transformers(policy, architecture):
    model = policy if architecture == "gpt2" else llama()
    free = greedy(model, PROMPTS[:3], 12, eos_id=None, pad_id=PAD).completions()
    eos = free[0][3]  # a token that is written, so that some completions end early
    drawn = greedy(model, PROMPTS[:3], 12, eos_id=eos, pad_id=PAD)
    for prompt, completion in zip(PROMPTS, drawn.completions(), strict=False):
        ids = torch.tensor([prompt])
        special = {"eos_token_id": eos, "pad_token_id": PAD, "max_new_tokens": 12}
        mask = torch.ones_like(ids)
        again = model.generate(ids, attention_mask=mask, do_sample=False, **special)
        assert again[0, len(prompt) :].tolist() == completion
    assert drawn.finished[0] and len(drawn.completions()[0]) <= 4
    assert (drawn.logprobs == 0).all()


def test_greedy_decoding_is_the_limit_of_low_temperatures(policy):
    noise = keyed_uniforms(0, 0, range(len(PROMPTS)), 12)
    cold = sample(policy, PROMPTS, noise, eos_id=EOS, pad_id=PAD, temperature=1e-4)
    assert cold.completions() == greedy(policy, PROMPTS, 12, eos_id=EOS, pad_id=PAD).completions()
    assert cold.logprobs.abs().max() < 1e-6


def test_samples_follow_the_models_distribution(policy):
    draws = 20_000
    noise = keyed_uniforms(3, 0, range(draws), 1)
    drawn = sample(policy, [[5, 6, 7]] * draws, noise, eos_id=EOS, pad_id=PAD, temperature=1.5)
    with torch.no_grad():
        logits = logits_of(policy, pack([[5, 6, 7]], [[2]], PAD), 1.5)[0]
    expected = logits.softmax(-1).double() * draws
    counts = torch.bincount(drawn.sequences.completion_ids[:, 0], minlength=len(expected)).double()
    common = expected >= 5
    observed = [*counts[common].tolist(), float(counts[~common].sum())]
    wanted = [*expected[common].tolist(), float(expected[~common].sum())]
    scale = sum(observed) / sum(wanted)
    assert chisquare(observed, [value * scale for value in wanted]).pvalue > 1e-3


def test_inverse_cdf_by_hand():
    probabilities = torch.tensor([[0.2, 0.0, 0.5, 0.3]]).repeat(6, 1)
    uniforms = torch.tensor([0.0, 0.19, 0.2, 0.69, 0.71, 0.9999999999])
    assert inverse_cdf(probabilities, uniforms).tolist() == [0, 0, 2, 2, 3, 3]


def test_inverse_cdf_never_draws_a_token_of_probability_zero():
    probabilities = torch.tensor([[0.0, 0.5, 0.5, 0.0]]).repeat(2, 1)
    assert inverse_cdf(
        probabilities, torch.tensor([0.0, 1 - 1e-12], dtype=torch.double)
    ).tolist() == [1, 2]


def test_noise_is_keyed_by_row_not_by_batch():
    whole = keyed_uniforms(7, 2, range(10), 5)
    torch.testing.assert_close(keyed_uniforms(7, 2, [6], 5)[0], whole[6], rtol=0, atol=0)
    assert not torch.equal(keyed_uniforms(7, 3, range(10), 5), whole)
    assert not torch.equal(keyed_uniforms(8, 2, range(10), 5), whole)
    assert 0 <= whole.min() and whole.max() < 1 and len(whole.unique()) == 50


@pytest.mark.parametrize(
    ("prompts", "steps", "options", "message"),
    [
        ([[5]], 4, {"pad_id": EOS}, "PAD must differ"),
        ([[]], 4, {}, "empty prompt"),
        ([[5] * 20], 12, {}, "exceed the model's 24 positions"),
        ([[5]], 4, {"temperature": 0.0}, "above 0"),
    ],
)
def test_bad_input_is_refused(policy, prompts, steps, options, message):
    arguments = {"eos_id": EOS, "pad_id": PAD, **options}
    with pytest.raises(ValueError, match=message):
        sample(policy, prompts, keyed_uniforms(0, 0, range(len(prompts)), steps), **arguments)


@pytest.mark.parametrize("rows", [1, 3])
def test_every_prompt_has_its_own_row_of_noise(policy, rows):
    # One row would otherwise be broadcast: all prompts would share their noise.
    with pytest.raises(ValueError, match=f"{rows} rows of noise for 2 prompts"):
        sample(policy, [[5], [6]], keyed_uniforms(0, 0, range(rows), 4), eos_id=EOS, pad_id=PAD)
