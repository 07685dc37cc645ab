"""Weights and data of a case, from one seed, as plain Transformers folders that every side reads.

    python -m timing.models FOLDER CASE   (a JSON object, see `cases.Case`)

policy/, reference/ (the policy, perturbed), reward/ (a sequence classifier; the critic starts from
it too) and tokenizer/. All work is on token ids, so the tokenizer gives EOS and PAD only.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from pipelines.shared.corpus import train_tokenizer
from timing.cases import Case, Shape, case_of

SEED = 0
PERTURBATION = 0.002  # standard deviation of what is added to the reference's weights


def new_model(shape: Shape, eos: int, pad: int) -> Any:
    """A causal LM from torch's global generator, without dropout."""
    special = {"bos_token_id": None, "eos_token_id": eos, "pad_token_id": pad}
    if shape.family == "gpt2":
        config = GPT2Config(
            vocab_size=shape.vocabulary,
            n_positions=shape.positions,
            n_embd=shape.width,
            n_layer=shape.layers,
            n_head=shape.heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **special,
        )
        return GPT2LMHeadModel(config)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary,
            max_position_embeddings=shape.positions,
            hidden_size=shape.width,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            intermediate_size=shape.inner,
            tie_word_embeddings=True,
            **special,
        )
    )


def make_models(folder: Path, case: Case) -> None:
    """Save the networks and the tokenizer."""
    torch.manual_seed(SEED)
    tokenizer = train_tokenizer(["a fine film", "a dull film"], vocab_size=280)
    tokenizer.save_pretrained(folder / "tokenizer")
    policy = new_model(case.shape, tokenizer.eos_token_id, tokenizer.pad_token_id)
    policy.save_pretrained(folder / "policy")
    reward = AutoModelForSequenceClassification.from_pretrained(folder / "policy", num_labels=1)
    reward.save_pretrained(folder / "reward")
    for weight in policy.parameters():
        weight.data += PERTURBATION * torch.randn_like(weight)
    policy.save_pretrained(folder / "reference")


def make_data(case: Case) -> dict[str, list[list[int]]]:
    """Token ids without EOS and PAD: prompts for a rollout, and pairs."""
    generator = np.random.default_rng(SEED)

    def draw(rows: int, tokens: int) -> list[list[int]]:
        return generator.integers(2, case.shape.vocabulary, (rows, tokens)).tolist()

    pairs = case.pairs * case.batches
    return {
        "prompts": draw(max(case.rollouts, case.rows), case.prompt),
        "prompt_ids": draw(pairs, case.prompt),
        "chosen_ids": draw(pairs, case.completion),
        "rejected_ids": draw(pairs, case.completion),
    }


def main() -> None:
    folder, case = Path(sys.argv[1]), case_of(json.loads(sys.argv[2]))
    folder.mkdir(parents=True)
    make_models(folder, case)
    (folder / "data.json").write_text(json.dumps(make_data(case)))


if __name__ == "__main__":
    main()
