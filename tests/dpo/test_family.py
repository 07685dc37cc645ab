"""The trainer of DPO's family: its losses against TRL's own on the same batch, and its step."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from trl import DPOConfig, DPOTrainer, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from pipelines.dpo import dpo, family
from pipelines.dpo.losses import orpo_loss, simpo_loss
from pipelines.dpo.reference import with_reference
from pipelines.dpo.specs import (
    ConservativeDPOSpec,
    DPOSpec,
    HingeDPOSpec,
    IPOSpec,
    KTOSpec,
    MeanIPOSpec,
    ORPOSpec,
    PairSpec,
    RobustDPOSpec,
    SimPOSpec,
    UnlikelihoodSpec,
)
from pipelines.shared import training
from pipelines.shared.errors import UserError
from pipelines.shared.ledger import Ledger, ModelCost
from pipelines.shared.logprobs import completion_logprobs, pack
from pipelines.shared.models import load_policy, load_tokenizer, new_policy
from pipelines.shared.specs import ModelSpec, Runtime
from pipelines.shared.steps import Context, Step

SIDES = ("chosen", "rejected")
PROMPTS, PAIRS_EACH = 5, 3
TRAINED = {"epochs": 3, "batch_size": 4, "learning_rate": 1e-3, "snapshots": 2}
SPECS = [
    DPOSpec(**TRAINED),
    ConservativeDPOSpec(**TRAINED),
    RobustDPOSpec(**TRAINED),
    HingeDPOSpec(**TRAINED),
    IPOSpec(**{**TRAINED, "learning_rate": 2e-4}, beta=0.05),
    MeanIPOSpec(**TRAINED, beta=0.1),
    KTOSpec(**TRAINED, undesirable_weight=1.3),
    SimPOSpec(**TRAINED),
    ORPOSpec(**TRAINED),
    UnlikelihoodSpec(**TRAINED),
]


def section(spec: PairSpec) -> str:
    return spec.section


@pytest.fixture(scope="module")
def inputs(tokenizer, tmp_path_factory) -> dict[str, Path]:
    """An SFT model, 15 pairs on 5 prompts, and the model's log-probs of their completions."""
    folder = tmp_path_factory.mktemp("inputs")
    torch.manual_seed(0)
    model = new_policy(ModelSpec(layers=2, width=32, heads=2, context=24), tokenizer).eval()
    for parameter in model.parameters():
        parameter.data.mul_(4)
    model.save_pretrained(folder / "checkpoint")
    tokenizer.save_pretrained(folder / "checkpoint")
    pairs = random_pairs()
    scored = [
        {
            "prompt_id": pair["prompt_id"],
            "sample": pair[f"{side}_sample"],
            "ref_logp": float(logprobs(model, pair["prompt_ids"], pair[f"{side}_ids"])),
        }
        for pair in pairs
        for side in SIDES
    ]
    pd.DataFrame(pairs).to_parquet(folder / "pairs.parquet")
    pd.DataFrame(scored).to_parquet(folder / "logprobs.parquet")
    return {"sft": folder, "pairs": folder, "reference_logprobs": folder}


def random_pairs() -> list[dict[str, Any]]:
    generator = np.random.default_rng(0)
    return [
        {
            "prompt_id": f"p{prompt}",
            "prompt_ids": [5 + prompt, 40, 41],
            **{
                f"{side}_ids": generator.integers(3, 279, size=generator.integers(1, 9)).tolist()
                for side in SIDES
            },
            "chosen_sample": 2 * pair,
            "rejected_sample": 2 * pair + 1,
        }
        for prompt in range(PROMPTS)
        for pair in range(PAIRS_EACH)
    ]


@torch.no_grad()
def logprobs(model: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    return completion_logprobs(model, pack([prompt], [completion], pad_id=1)).sum()


def trainer_of(spec: PairSpec, inputs: dict[str, Path], out: Path, **more: Any) -> Any:
    """A `PairTrainer`, or with `loss_type` TRL's DPOTrainer; the policy is not the reference."""
    folder = inputs["sft"]
    model = load_policy(folder / "checkpoint")
    for parameter in model.parameters():
        parameter.data.mul_(0.9)
    pairs = with_reference(
        pd.read_parquet(folder / "pairs.parquet"), pd.read_parquet(folder / "logprobs.parquet")
    )
    own = {} if more else {"spec": spec, "ref_model": load_policy(folder / "checkpoint")}
    trainer = (dpo.ExactIdsDPOTrainer if more else family.PairTrainer)(
        **own,
        model=model,
        args=DPOConfig(
            str(out),
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
            **{**dpo.pair_arguments(spec), **more},
        ),
        train_dataset=Dataset.from_dict({name: pairs[name].tolist() for name in dpo.COLUMNS}),
        processing_class=load_tokenizer(folder / "checkpoint"),
    )
    trainer.ledger, trainer.cost = Ledger(), ModelCost.of(model)
    return trainer


def first_batch(trainer: Any) -> dict[str, Any]:
    return next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))


@pytest.mark.parametrize(
    ("spec", "theirs"),
    [
        (DPOSpec(beta=0.3), {"loss_type": "sigmoid"}),
        (
            RobustDPOSpec(beta=0.3, label_smoothing=0.2),
            {"loss_type": "robust", "label_smoothing": 0.2},
        ),
        (HingeDPOSpec(beta=0.3), {"loss_type": "hinge"}),
        (MeanIPOSpec(beta=0.3), {"loss_type": "ipo"}),
    ],
    ids=["sigmoid", "robust", "hinge", "ipo"],
)
def test_a_batchs_loss_is_trls(spec, theirs, inputs, tmp_path):
    ours = trainer_of(spec, inputs, tmp_path)
    trl = trainer_of(spec, inputs, tmp_path, beta=0.3, **theirs)
    batch = first_batch(ours)
    with torch.no_grad():
        loss = float(ours.compute_loss(ours.model, batch))
        assert loss == pytest.approx(
            float(DPOTrainer.compute_loss(trl, trl.model, batch)), rel=1e-6
        )
        assert abs(loss - float(ours.compute_loss(ours.ref_model, batch))) > 1e-3


def test_conservative_dpo_is_a_mixture_of_trls_losses(inputs, tmp_path):
    """TRL 1.16 ignores label_smoothing with loss_type sigmoid: the labels are exchanged by hand."""
    ours = trainer_of(ConservativeDPOSpec(beta=0.3, label_smoothing=0.2), inputs, tmp_path)
    trl = trainer_of(DPOSpec(), inputs, tmp_path, beta=0.3, loss_type="sigmoid")
    batch = first_batch(ours)
    exchanged = {
        **{name: value.roll(len(value) // 2, 0) for name, value in batch.items()},
        "ref_chosen_logps": batch["ref_rejected_logps"],
        "ref_rejected_logps": batch["ref_chosen_logps"],
    }
    with torch.no_grad():
        right, wrong = (trl.compute_loss(trl.model, each) for each in (batch, exchanged))
        found = float(ours.compute_loss(ours.model, batch))
    assert found == pytest.approx(float(0.8 * right + 0.2 * wrong), rel=1e-6)


def test_ktos_loss_is_trls(inputs, tmp_path):
    spec = KTOSpec(beta=0.3, desirable_weight=1.5, undesirable_weight=0.8)
    ours = trainer_of(spec, inputs, tmp_path)
    batch = first_batch(ours)
    pairs = len(batch["ref_chosen_logps"])
    theirs = {
        **{name: batch[name] for name in ("input_ids", "attention_mask", "completion_mask")},
        **{
            f"KL_{name}": batch[f"{family.MISMATCHED}{name}"]
            for name in ("input_ids", "attention_mask", "completion_mask")
        },
        "label": torch.tensor([True] * pairs + [False] * pairs),
        "ref_logps": torch.cat([batch["ref_chosen_logps"], batch["ref_rejected_logps"]]),
    }
    trl: Any = SimpleNamespace(
        calculate_KL=True,
        precompute_ref_logps=True,
        aux_loss_enabled=False,
        loss_type="kto",
        beta=0.3,
        desirable_weight=1.5,
        undesirable_weight=0.8,
        model=ours.model,
        accelerator=ours.accelerator,
        _metrics=ours._metrics,
        _total_train_tokens=0,
        _tp_size=1,
    )
    trl._compute_kl_logps = MethodType(KTOTrainer._compute_kl_logps, trl)
    with torch.no_grad():
        theirs["ref_KL_logps"] = trl._compute_kl_logps(ours.ref_model, theirs)
        expected = float(KTOTrainer._compute_loss(trl, ours.model, theirs, False))
        found = float(ours.compute_loss(ours.model, batch))
    assert found == pytest.approx(expected, rel=1e-6)
    assert ours._metrics["eval"]["kl"][-1] > 0.1, "z0 must matter for the test to mean anything"


def test_simpo_and_orpo_are_trls_on_the_same_log_probs():
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = -5 * torch.rand(2, 40, generator=generator)
    bare: Any = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu"),
        alpha=0.0,
        label_smoothing=0.0,
        loss_type="simpo",
        beta=2.5,
        simpo_gamma=0.7,
    )
    theirs = CPOTrainer.cpo_loss(bare, chosen, rejected)[0]
    torch.testing.assert_close(simpo_loss(chosen, rejected, 2.5, 0.7), theirs, rtol=0, atol=1e-6)
    bare.beta = 0.3
    theirs = ORPOTrainer.odds_ratio_loss(bare, chosen, rejected)[0]  # it is subtracted
    torch.testing.assert_close(
        orpo_loss(chosen, rejected, 0.3), -chosen - theirs, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("spec", [SimPOSpec(), ORPOSpec(), UnlikelihoodSpec()], ids=section)
def test_without_a_reference_none_is_read(spec, inputs, tmp_path):
    trainer = trainer_of(spec, inputs, tmp_path)
    batch = first_batch(trainer)
    nothing = {**batch, **{f"ref_{side}_logps": torch.tensor(torch.nan) for side in SIDES}}
    with torch.no_grad():
        one, other = (trainer.compute_loss(trainer.model, each) for each in (batch, nothing))
    assert float(one) == float(other)
    assert family.columns_of(reference=False) == dpo.COLUMNS[:3]


def test_the_mean_losses_divide_by_the_length_of_each_completion(inputs, tmp_path):
    trainer = trainer_of(SimPOSpec(), inputs, tmp_path)
    means = []
    for side in SIDES:
        means.append(
            torch.tensor(
                [
                    logprobs(trainer.model, pair["prompt_ids"], pair[f"{side}_ids"])
                    / len(pair[f"{side}_ids"])
                    for pair in random_pairs()
                ]
            )
        )
    with torch.no_grad():
        found = trainer.compute_loss(trainer.model, first_batch(trainer))
    torch.testing.assert_close(found, simpo_loss(*means, 2.0, 1.0).mean(), rtol=0, atol=1e-5)


def test_a_mismatched_completion_is_of_the_next_other_prompt():
    a, b, c = [1], [2], [3]
    assert family.rows_of_other_prompts([a, b, c]) == [1, 2, 0]
    assert family.rows_of_other_prompts([a, a, b, a]) == [2, 2, 3, 2]
    assert family.rows_of_other_prompts([a, b, a, a]) == [1, 2, 1, 1]
    assert family.rows_of_other_prompts([a, a]) == family.rows_of_other_prompts([a]) == []


def test_ktos_reference_point_is_of_exact_ids_and_its_cost_is_booked(inputs, tmp_path):
    trainer = trainer_of(KTOSpec(batch_size=4), inputs, tmp_path)
    batch = first_batch(trainer)
    pairs = random_pairs()[:4]  # three of one prompt and one of the next
    expected = [
        logprobs(trainer.model, pair["prompt_ids"], pairs[other][f"{side}_ids"])
        - logprobs(trainer.ref_model, pair["prompt_ids"], pairs[other][f"{side}_ids"])
        for side in SIDES
        for pair, other in zip(pairs, [3, 3, 3, 0], strict=True)
    ]
    found = trainer._mismatched_log_ratios(trainer.model, batch)
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-4)
    assert not found.requires_grad
    [book] = trainer.ledger.phases().values()
    tokens = sum(len(pairs[other][f"{side}_ids"]) for side in SIDES for other in [3, 3, 3, 0])
    longest = max(
        sum(map(len, (pair["prompt_ids"], *(pairs[other][f"{side}_ids"] for side in SIDES))))
        for pair, other in zip(pairs, [3, 3, 3, 0], strict=True)
    )  # a prompt with both of its completions is one row
    assert book["flops"] == 2 * trainer.cost.forward(4, longest, tokens, read=tokens - 4)
    assert book["tokens_trained"] == 0


def test_a_batch_of_one_prompt_has_a_reference_point_of_0(inputs, tmp_path):
    trainer = trainer_of(KTOSpec(batch_size=3), inputs, tmp_path)
    batch = first_batch(trainer)
    assert "mismatched_input_ids" not in batch
    with torch.no_grad():
        assert torch.isfinite(trainer.compute_loss(trainer.model, batch))
    assert trainer._metrics["eval"]["kl"] == [0.0]


def test_kto_refuses_a_batch_of_one():
    with pytest.raises(UserError, match=r"^kto.batch_size = 1: must be at least 2$"):
        KTOSpec(batch_size=1)


@pytest.mark.parametrize("spec", [DPOSpec(), MeanIPOSpec(), ORPOSpec()], ids=section)
def test_evaluation_is_the_mean_over_pairs_also_in_an_uneven_last_batch(spec, inputs, tmp_path):
    trainer = trainer_of(spec, inputs, tmp_path)
    with torch.no_grad():
        whole = float(trainer.compute_loss(trainer.model.eval(), first_batch(trainer)))
    trainer.args.per_device_eval_batch_size = 4
    found = trainer.evaluate(trainer.train_dataset)["eval_loss"]
    assert found == pytest.approx(whole, rel=1e-5)


def test_a_completion_that_is_too_long_behind_another_prompt_is_cut():
    rows = [
        {"prompt_ids": [5], "chosen_ids": [6] * 7, "rejected_ids": [7]},
        {"prompt_ids": [8] * 5, "chosen_ids": [9], "rejected_ids": [9, 9]},
    ]
    seen = []
    family.with_mismatched(lambda rows: seen.append(rows) or {}, positions=8)(rows)
    (mixed,) = [batch for batch in seen if batch[0] is not rows[0]]
    sides = ("chosen_ids", "rejected_ids")
    lengths = [[len(row["prompt_ids"]) + len(row[side]) for row in mixed] for side in sides]
    assert lengths == [[2, 8], [3, 6]], "seven tokens behind a prompt of five: three are left"


class Run:
    """`train` of an arm on `inputs`, its logged rows and its weights."""

    def __init__(self, train: Any, spec: PairSpec, inputs: dict[str, Path], path: Path) -> None:
        path.mkdir(exist_ok=True)
        self.rows: list[dict[str, Any]] = []
        self.context = Context(
            step=Step("arm", "s1", "a:b", 1, {spec.section: spec}, seed=1),
            path=path,
            inputs=inputs,
            runtime=Runtime(results=path, cache=path),
            ledger=Ledger(),
            progress=lambda done, total, unit: None,
            log=lambda row: self.rows.append(dict(row)),
        )
        torch.manual_seed(1)
        train(self.context)
        self.weights = load_file(path / "checkpoint" / "model.safetensors")

    def values(self, name: str) -> Iterator[float]:
        return (row[name] for row in self.rows if name in row)


@pytest.mark.parametrize("spec", SPECS, ids=section)
def test_an_arm_trains_and_its_loss_falls(spec, inputs, tmp_path):
    if spec.section in family.NO_REFERENCE:
        inputs = {name: inputs[name] for name in ("sft", "pairs")}
    run = Run(family.train, spec, inputs, tmp_path / "run")
    start, end = run.values("training_loss")
    assert end < start
    for name in ("loss", "margin", "accuracy", "logps/chosen", "logps/rejected"):
        assert all(np.isfinite(list(run.values(name)))) and any(run.values(name)), name
    names = {name for row in run.rows for name in row}
    assert ("kl" in names) == (spec.section == "kto")
    # How far both sides have moved is told by arms that know where they began.
    assert ("log_ratios/chosen" in names) == (spec.section not in family.NO_REFERENCE)
    for row in run.rows:
        if "log_ratios/chosen" in row:
            moved = row["log_ratios/chosen"] - row["log_ratios/rejected"]
            assert row["margin"] == pytest.approx(moved, abs=1e-4)
    policies = json.loads((tmp_path / "run" / "policies.json").read_text())
    assert [policy["step"] for policy in policies] == [6, 12]
    assert set(run.context.ledger.phases()) == {"look", "train"}
    original = load_policy(inputs["sft"] / "checkpoint").state_dict()
    assert any(not torch.equal(weight, original[name]) for name, weight in run.weights.items())


@pytest.mark.parametrize("spec", [SPECS[0], KTOSpec(**TRAINED), ORPOSpec(**TRAINED)], ids=section)
def test_looking_at_the_loss_changes_no_weight(spec, inputs, tmp_path, monkeypatch):
    looked = Run(family.train, spec, inputs, tmp_path / "looked")
    monkeypatch.setattr(training, "log_training_loss", lambda *args: None)
    blind = Run(family.train, spec, inputs, tmp_path / "blind")
    assert len(list(looked.values("training_loss"))) == 2
    assert not list(blind.values("training_loss"))
    assert looked.weights.keys() == blind.weights.keys()
    for name, weight in looked.weights.items():
        assert torch.equal(weight, blind.weights[name]), name
    assert looked.context.ledger.totals(0)["flops"] == blind.context.ledger.totals(0)["flops"]


def test_without_its_reference_an_arm_is_refused(inputs, tmp_path):
    with pytest.raises(ValueError, match="ref_chosen_logps"):
        family.PairTrainer._prepare_dataset(
            SimpleNamespace(columns=family.columns_of(reference=True)),
            Dataset.from_dict({"prompt_ids": [[1]], "chosen_ids": [[1]], "rejected_ids": [[1]]}),
        )
