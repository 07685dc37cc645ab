"""TRL's DPO on exactly the ids that were sampled."""

import copy
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from datasets import Dataset
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from trl import DPOConfig

from pipelines.dpo.dpo import ExactIdsDPOTrainer
from pipelines.dpo.family import PairTrainer
from pipelines.dpo.reference import with_reference
from pipelines.dpo.specs import DPOSpec
from pipelines.shared.ledger import Ledger, ModelCost
from pipelines.shared.logprobs import completion_logprobs, pack
from pipelines.shared.steps import Step
from pipelines.shared.training import PolicyWriter, StepCallback

BETA = 0.3
ROWS = [
    {"prompt_ids": [5, 6, 7], "chosen_ids": [9, 10, 0], "rejected_ids": [11, 12, 13, 14]},
    {"prompt_ids": [8], "chosen_ids": [15, 16, 17, 18], "rejected_ids": [19, 20]},
]


def logps(model, side: str) -> torch.Tensor:
    sequences = pack([row["prompt_ids"] for row in ROWS], [row[side] for row in ROWS], pad_id=1)
    return completion_logprobs(model, sequences).sum(-1)


@pytest.fixture
def reference(policy):
    reference = copy.deepcopy(policy)
    for parameter in reference.parameters():
        parameter.data.mul_(0.9)
    return reference


@pytest.fixture
def trainer(policy, reference, tokenizer, tmp_path) -> ExactIdsDPOTrainer:
    with torch.no_grad():
        chosen, rejected = (
            logps(reference, "chosen_ids").tolist(),
            logps(reference, "rejected_ids").tolist(),
        )
    columns = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    trainer = ExactIdsDPOTrainer(
        model=policy,
        args=DPOConfig(
            output_dir=str(tmp_path),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            beta=BETA,
            precompute_ref_log_probs=True,
            per_device_train_batch_size=2,
            max_length=None,
            max_steps=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_nan_inf_filter=False,
            learning_rate=1e-4,
        ),
        train_dataset=Dataset.from_dict(
            {**columns, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        ),
        processing_class=tokenizer,
        callbacks=[StepCallback(SimpleNamespace(progress=lambda *a: None, log=lambda row: None))],
    )
    trainer.ledger, trainer.cost = Ledger(), ModelCost.of(policy)
    return trainer


def test_the_batch_holds_the_ids_as_sampled_and_no_eos_is_added(trainer, tokenizer):
    batch = next(iter(trainer.get_train_dataloader()))
    found = {
        (tuple(ids[mask.bool() & ~done.bool()].tolist()), tuple(ids[done.bool()].tolist()))
        for ids, mask, done in zip(
            batch["input_ids"], batch["attention_mask"], batch["completion_mask"], strict=True
        )
    }
    expected = {
        (tuple(row["prompt_ids"]), tuple(row[side]))
        for row in ROWS
        for side in ("chosen_ids", "rejected_ids")
    }
    assert found == expected
    assert tokenizer.eos_token_id == 0, "the first pair ended in EOS, the others were cut off"


def test_the_loss_is_the_papers_equation(trainer, policy, reference):
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        loss = trainer.compute_loss(policy, batch)
        double, ref = policy.double(), reference.double()
        margin = (logps(double, "chosen_ids") - logps(ref, "chosen_ids")) - (
            logps(double, "rejected_ids") - logps(ref, "rejected_ids")
        )
    assert float(loss) == pytest.approx(
        float(-torch.nn.functional.logsigmoid(BETA * margin).mean()), abs=1e-5
    )
    assert abs(float(margin.mean())) > 0.1, "the margin must matter for the test to mean anything"


def test_at_zero_margin_the_loss_is_ln_2(trainer, reference):
    batch = next(iter(trainer.get_train_dataloader()))
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(reference, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    with torch.no_grad():
        assert float(trainer.compute_loss(reference, batch)) == pytest.approx(0.6931472, abs=1e-5)


def test_training_books_its_cost(trainer, policy, tokenizer):
    trainer = PairTrainer(
        spec=DPOSpec(),
        model=policy,
        args=trainer.args,
        train_dataset=trainer.train_dataset,
        processing_class=tokenizer,
    )
    trainer.account(Ledger())
    # The counter does not see the fused CPU attention; its plain form does the same.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        trainer.train()
    (book,) = trainer.ledger.phases().values()
    assert book["flops"] == counted.get_total_flops()
    assert book["tokens_trained"] == 6 + 7 + 5 + 3
    # Two rows, the longer of 3 + 3 + 4 tokens; each prompt predicts two tokens from one state.
    tokens = 3 + 4 + 4 + 2
    assert book["flops"] == 3 * trainer.cost.forward(2, 10, logits=tokens, read=tokens - 2)


def test_a_prompt_is_computed_once_for_both_completions(trainer, policy):
    seen = []
    policy.transformer.wte.register_forward_hook(lambda _, given, out: seen.append(given[0].shape))
    batch = next(iter(trainer.get_train_dataloader()))
    together = trainer.token_logprobs(policy, batch)
    assert [tuple(shape) for shape in seen] == [(2, 10)]
    policy.config.model_type = "not known to take any mask"
    apart = trainer.token_logprobs(policy, batch)
    assert tuple(seen[1]) == (4, 7)
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run(trainer, monkeypatch):
    loss = trainer._compute_loss
    monkeypatch.setattr(trainer, "_compute_loss", lambda *a, **k: loss(*a, **k) * float("nan"))
    trainer.args.logging_steps = 1
    with pytest.raises(FloatingPointError, match="loss is nan at step 1"):
        trainer.train()


def test_weights_that_are_not_finite_are_never_saved(policy, tokenizer, tmp_path):
    policy.lm_head.weight.data[0, 0] = float("inf")
    writer = PolicyWriter(
        SimpleNamespace(path=tmp_path, step=Step("arm", "s0", "a:b", 1, {})), policy, tokenizer
    )
    with pytest.raises(FloatingPointError, match="not finite at step 7"):
        writer(7)


def test_reference_logprobs_reach_the_pair_they_belong_to():
    pairs = pd.DataFrame(
        {"prompt_id": ["p", "q"], "chosen_sample": [0, 1], "rejected_sample": [1, 0]}
    )
    logprobs = pd.DataFrame(
        {
            "prompt_id": ["q", "q", "p", "p"],
            "sample": [0, 1, 0, 1],
            "ref_logp": [1.0, 2.0, 3.0, 4.0],
        }
    )
    joined = with_reference(pairs, logprobs)
    assert joined["ref_chosen_logps"].tolist() == [3.0, 2.0]
    assert joined["ref_rejected_logps"].tolist() == [4.0, 1.0]
    with pytest.raises(ValueError, match="do not cover"):
        with_reference(pairs, logprobs[1:])


def test_pairs_without_ids_are_refused(trainer, tokenizer):
    with pytest.raises(ValueError, match="ref_chosen_logps"):
        trainer._prepare_dataset(
            Dataset.from_dict({"prompt": ["a"]}), tokenizer, trainer.args, "train"
        )
