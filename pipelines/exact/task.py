"""The enumerable task: prompts, a trained reference policy, and a reward for every completion."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerFast
from trl import SFTConfig

from pipelines.exact.enumeration import sequence_logprobs
from pipelines.exact.oracle import completions, standardised
from pipelines.exact.specs import TaskSpec
from pipelines.rlhf.sft import AccountedSFTTrainer
from pipelines.shared.logprobs import Sequences
from pipelines.shared.steps import Context, write_json
from pipelines.shared.training import StepCallback, trainer_arguments

EOS, PAD = "<eos>", "<pad>"
NEVER = -1e4  # logit of a token that is never drawn: its probability is exactly 0


class Task:
    """What `make` wrote, read back.

    Attributes:
        prompts, completions: token ids.
        rewards, ref_logp: (X, Y) float64.
    """

    def __init__(self, folder: Path) -> None:
        saved = json.loads((folder / "task.json").read_text())
        self.prompts = [tuple(ids) for ids in saved["prompts"]]
        self.completions = [tuple(ids) for ids in saved["completions"]]
        table = pd.read_parquet(folder / "table.parquet")
        shape = len(self.prompts), len(self.completions)
        self.rewards = table["reward"].to_numpy().reshape(shape)
        self.ref_logp = table["ref_logp"].to_numpy().reshape(shape)
        self._row = {prompt: number for number, prompt in enumerate(self.prompts)}
        self._column = {ids: number for number, ids in enumerate(self.completions)}

    def reward(self, prompt_ids: Any, completion_ids: Any, **columns: Any) -> list[float]:
        """The true reward of each completion: a reward function for PPOTrainer."""
        return [
            float(self.rewards[self._row[tuple(prompt)], self._column[tuple(completion)]])
            for prompt, completion in zip(prompt_ids, completion_ids, strict=True)
        ]

    def judge(self, sequences: Sequences) -> torch.Tensor:
        """The true reward of every sequence, (B,) fp32: a judge for the arms that sample pairs or
        groups. The sigmoid of a difference is the exact preference probability."""
        return torch.tensor(self.reward(*sequences.unpacked()), device=sequences.input_ids.device)


def make(context: Context) -> None:
    """Step: write checkpoint/ (reference and tokenizer), task.json, table.parquet.

    The reference is trained by maximum likelihood on a random source (each symbol's distribution
    depends on the two before it), so that it is neither uniform nor hand-made.
    """
    spec: TaskSpec = context.spec("task")
    generator = torch.Generator().manual_seed(context.seed)
    tokenizer = new_tokenizer(spec.symbols)
    prompts = new_prompts(spec)
    ends = [tokenizer.eos_token_id] if spec.eos else []
    every = completions(range(spec.symbols), spec.length, ends[0] if ends else None)
    model = new_reference(spec, tokenizer)
    rows = source(spec, prompts, ends, generator)
    trainer = AccountedSFTTrainer(
        model=model,
        args=SFTConfig(
            **trainer_arguments(context),
            num_train_epochs=1,
            per_device_train_batch_size=256,
            learning_rate=3e-3,
            max_length=None,
            logging_steps=4,
        ),
        train_dataset=Dataset.from_dict({"input_ids": rows, "labels": rows}),
        processing_class=tokenizer,
        callbacks=[StepCallback(context)],
    )
    trainer.account(context.ledger)
    trainer.train()
    model.eval()
    with torch.no_grad():
        ref_logp = sequence_logprobs(model, prompts, every, tokenizer.pad_token_id)
    batch, longest = len(prompts) * len(every), max(map(len, prompts)) + max(map(len, every))
    read = len(prompts) * sum(map(len, every))
    flops = trainer.cost.forward(batch, longest, read)
    context.ledger.add(flops=flops)
    table = new_rewards(spec, every, generator).double().numpy()
    rewards = standardised(table, ref_logp.numpy())
    pd.DataFrame({"reward": rewards.ravel(), "ref_logp": ref_logp.numpy().ravel()}).to_parquet(
        context.path / "table.parquet"
    )
    write_json(context.path / "task.json", {"prompts": prompts, "completions": every})
    model.save_pretrained(context.path / "checkpoint")
    tokenizer.save_pretrained(context.path / "checkpoint")


def new_rewards(
    spec: TaskSpec, every: list[tuple[int, ...]], generator: torch.Generator
) -> torch.Tensor:
    """(X, Y): what each token is worth at its place after that prompt, and what each neighbouring
    pair is worth, all normal draws (pairs half as large).

    Drawn one by one, without this structure, rewards make a landscape on which even the exact
    gradient of J gets stuck (results/LOG.md): that would test the landscape, not the trainers.
    """
    vocabulary = spec.symbols + 1  # the EOS has a worth too; longer completions pad with it
    own = torch.randn(spec.prompts, spec.length, vocabulary, generator=generator)
    pairs = 0.5 * torch.randn(spec.length - 1, vocabulary, vocabulary, generator=generator)
    table = torch.zeros(spec.prompts, len(every))
    for column, ids in enumerate(every):
        tokens = torch.tensor(ids)
        places = torch.arange(len(ids))
        neighbours = pairs[places[:-1], tokens[:-1], tokens[1:]].sum()
        table[:, column] = own[:, places, tokens].sum(-1) + neighbours
    return table


def new_tokenizer(symbols: int) -> PreTrainedTokenizerFast:
    """Symbols a, b, c, ... with ids 0, 1, 2, ..., then EOS and PAD."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = [chr(ord("a") + number) for number in range(symbols)]
    vocabulary = {word: number for number, word in enumerate([*words, EOS, PAD])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD, padding_side="left"
    )


def new_prompts(spec: TaskSpec) -> list[list[int]]:
    """Distinct prompts of one and two symbols in turn: some are padded on the left."""
    symbols = range(spec.symbols)
    first = [[symbol] if symbol % 2 == 0 else [symbol, 1] for symbol in symbols]
    every = [[a] for a in symbols] + [[a, b] for a in symbols for b in symbols]
    return (first + [prompt for prompt in every if prompt not in first])[: spec.prompts]


def new_reference(spec: TaskSpec, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A one-layer GPT-2 that never draws PAD (and no EOS, unless the task has one).

    One dimension of the last hidden state is made the constant 1, and the output weights of the
    excluded tokens are `NEVER` times it; no gradient reaches weights whose probability is 0.
    """
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=16,
        n_embd=spec.width,
        n_layer=1,
        n_head=spec.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    model = GPT2LMHeadModel(config)
    never = [tokenizer.pad_token_id] + ([] if spec.eos else [tokenizer.eos_token_id])
    with torch.no_grad():
        model.transformer.ln_f.weight[-1], model.transformer.ln_f.bias[-1] = 0.0, 1.0
        model.lm_head.weight[never] = 0.0
        model.lm_head.weight[never, -1] = NEVER
    return model


def source(
    spec: TaskSpec, prompts: list[list[int]], ends: list[int], generator: torch.Generator
) -> list[list[int]]:
    """Training sequences: each prompt continued by a second-order Markov source, up to EOS."""
    tokens = [*range(spec.symbols), *ends]
    logits = torch.randn(spec.symbols, spec.symbols, len(tokens), generator=generator)
    probabilities = logits.softmax(-1)
    rows = []
    for number in range(spec.reference_sequences):
        row = list(prompts[number % len(prompts)])
        for _ in range(spec.length):
            before = row[-2] if len(row) > 1 else row[-1]
            drawn = torch.multinomial(probabilities[before, row[-1]], 1, generator=generator)
            row.append(tokens[int(drawn)])
            if row[-1] in ends:
                break
        rows.append(row)
    return rows
