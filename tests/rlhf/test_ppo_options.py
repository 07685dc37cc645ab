"""Every detail that is an option: read, off by default where it says so, and doing what it says."""

import copy
import dataclasses
import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback, TrainingArguments

from pipelines.rlhf import PPOConfig, PPOTrainer
from pipelines.rlhf.losses import gae, kl_penalised_rewards, masked_var
from pipelines.rlhf.ppo_stage import ppo_arguments
from pipelines.rlhf.rollout import RunningMoments
from pipelines.rlhf.specs import PPOSpec
from pipelines.shared.logprobs import completion_logprobs
from pipelines.shared.models import new_reward_model, rewards

PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13], [14]]


def even(completion_ids, **columns) -> list[float]:
    return [float(sum(token % 2 == 0 for token in ids)) for ids in completion_ids]


def config(folder, **changes) -> PPOConfig:
    settings = {
        "kl_coef": 0.1,
        "updates": 2,
        "rollouts": 16,
        "num_ppo_epochs": 2,
        "num_mini_batches": 2,
        "max_completion_length": 6,
        "learning_rate": 3e-3,
        "bf16": False,
        "save_strategy": "no",
    }
    return PPOConfig(
        str(folder), use_cpu=True, report_to="none", disable_tqdm=True, **(settings | changes)
    )


@pytest.fixture
def make(policy, tokenizer, tmp_path):
    """A trainer on a model that often ends early: its EOS is a token that it likes."""
    policy.save_pretrained(tmp_path / "sft")
    tokenizer = copy.deepcopy(tokenizer)
    with torch.no_grad():
        liked = [int(policy(torch.tensor([ids])).logits[0, -1].argmax()) for ids in PROMPTS]
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(liked[0])

    def new(model=None, **arguments) -> PPOTrainer:
        torch.manual_seed(0)
        judge = new_reward_model(tmp_path / "sft").eval()
        given = {"reward_model": judge, "reward_funcs": even}
        names = {field.name for field in dataclasses.fields(PPOConfig)}
        changes = {name: arguments.pop(name) for name in list(arguments) if name in names}
        return PPOTrainer(
            model or copy.deepcopy(policy),
            args=config(tmp_path, **changes),
            train_dataset=Dataset.from_dict({"prompt_ids": PROMPTS}),
            processing_class=tokenizer,
            **(given | arguments),
        )

    return new


def weights(trainer: PPOTrainer) -> torch.Tensor:
    return torch.cat(
        [weight.detach().flatten() for weight in trainer._networks.policy.parameters()]
    )


def logged(trainer: PPOTrainer, name: str) -> list[float]:
    return [row[name] for row in trainer.state.log_history if name in row]


def own_fields() -> list[str]:
    inherited = {field.name for field in dataclasses.fields(TrainingArguments)}
    return [f.name for f in dataclasses.fields(PPOConfig) if f.name not in inherited]


INHERITED_BY_HF = {"learning_rate", "adam_epsilon", "logging_nan_inf_filter"}  # other defaults


def test_every_option_is_read_somewhere():
    folder = Path(__file__).parents[2] / "pipelines" / "rlhf"
    files = [path for path in folder.glob("*.py") if path.name != "ppo_config.py"]
    derived = {"updates", "num_ppo_epochs"}  # read in steps_per_update and max_steps
    source = "\n".join(path.read_text() for path in files)
    for name in own_fields():
        read = re.search(rf"args\.{name}\b", source)
        assert read or name in derived or name in INHERITED_BY_HF, f"{name} is read nowhere"


def test_the_page_names_every_option_and_every_metric(make):
    page = (Path(__file__).parents[2] / "pipelines" / "rlhf" / "README.md").read_text()
    for name in own_fields():
        assert f"`{name}`" in page, f"README.md does not explain {name}"
    trainer = make(ratio_threshold=1e-3)
    trainer.train()
    metrics = {name for row in trainer.state.log_history for name in row if "/" in name}
    for name in metrics:
        assert f"`{name}`" in page, f"README.md does not explain {name}"


def test_every_setting_of_the_studies_reaches_the_trainer(tmp_path):
    spec = PPOSpec(missing_eos="subtract", missing_eos_value=-2.0, clip_range_value=0.0)
    arguments = ppo_arguments(spec)
    args = PPOConfig(str(tmp_path), use_cpu=True, bf16=False, **arguments)
    assert args.missing_eos_penalty == 2.0 and args.cliprange_value is None
    assert args.ratio_threshold is None and args.ema_reference is None
    assert ppo_arguments(PPOSpec(missing_eos="replace"))["missing_eos_score"] == -1.0


@pytest.mark.parametrize(
    "change",
    [
        {"kl_control": "adaptive", "kl_target": 0.1},
        {"kl_in": "loss"},
        {"clamp_kl": True},
        {"ema_reference": 0.5},
        {"gamma": 0.5},
        {"lam": 0.0},
        {"whiten_rewards": True},
        {"whiten_advantages": False},
        {"value_after_end": True},
        {"normalise_values": True},
        {"missing_eos_score": -1.0},
        {"missing_eos_penalty": 3.0},
        {"reward_reads_prompt": False},
        {"top_k": 2},
        {"top_p": 0.5},
        {"temperature": 0.7},
        {"stop_at_eos": False},
        {"skip_padding": False},
        {"cliprange": 1e-3},
        {"cliprange_value": 1e-3},
        {"cliprange_value": None},
        {"vf_coef": 1.0},
        {"share_trunk": True},
        {"critic_warmup": 1},
        {"ratio_threshold": 1e-3},
        {"reshuffle_minibatches": False},
        {"reshuffle_prompts": False, "rollouts": 4, "updates": 3},
        {"num_ppo_epochs": 1},
        {"adam_epsilon": 1e-2},
        {"max_grad_norm": 1e-3},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_option_changes_the_run(make, change):
    base = {name: change[name] for name in ("rollouts", "updates") if name in change}
    plain, other = make(**base), make(**change)
    for trainer in (plain, other):
        trainer.train()
    critic = [logged(t, "value/loss") for t in (plain, other)]
    assert not torch.equal(weights(plain), weights(other)) or critic[0] != critic[1]


def test_defaults_are_the_documented_ones(tmp_path):
    args = PPOConfig(str(tmp_path), use_cpu=True, bf16=False)
    stated = {
        "kl_coef": 0.05,
        "kl_control": "fixed",
        "kl_target": 6.0,
        "kl_horizon": 10_000,
        "kl_in": "reward",
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "gamma": 1.0,
        "lam": 0.95,
        "cliprange": 0.2,
        "cliprange_value": 0.2,
        "vf_coef": 0.1,
        "num_ppo_epochs": 4,
        "rollouts": 512,
        "adam_epsilon": 1e-5,
        "learning_rate": 3e-6,
        "lr_scheduler_type": "linear",
        "whiten_rewards": False,
        "whiten_advantages": True,
        "disable_dropout": True,
        "keyed_noise": True,
    }
    assert {name: getattr(args, name) for name in stated} == stated


def test_adaptive_control_moves_the_coefficient_towards_the_target(make):
    far, near = (make(kl_control="adaptive", kl_target=t, kl_horizon=100) for t in (1e-3, 50.0))
    for trainer in (far, near):
        trainer.train()
    assert logged(far, "objective/kl_coef")[0] == 0.1  # the first rollout uses what was given
    # KL is 0 at first: below either target, so the coefficient falls by the clipped error.
    assert logged(far, "objective/kl_coef")[1] == pytest.approx(0.1 * (1 - 0.2 * 16 / 100))
    assert far.kl_coef == pytest.approx(logged(far, "objective/kl_coef")[1] * (1 + 0.2 * 16 / 100))
    assert near.kl_coef < logged(near, "objective/kl_coef")[1]


def test_the_critic_alone_learns_in_its_warm_up(make):
    trainer = make(critic_warmup=2)
    before = weights(trainer).clone()
    critic = trainer._networks.value.score.weight.detach().clone()
    trainer.train()
    assert torch.equal(weights(trainer), before)
    assert not torch.equal(trainer._networks.value.score.weight, critic)


def test_an_update_whose_ratio_runs_away_stops(make):
    trainer = make(ratio_threshold=1e-6)  # the mean ratio is always above: nothing is learnt
    before = weights(trainer).clone()
    trainer.train()
    assert torch.equal(weights(trainer), before)
    assert logged(trainer, "policy/skipped") == [4.0, 4.0]
    calm = make(ratio_threshold=100.0)
    before = weights(calm).clone()
    calm.train()
    assert logged(calm, "policy/skipped") == [] and not torch.equal(weights(calm), before)
    assert len(logged(calm, "policy/loss")) == 2


def test_the_reference_follows_the_policy_where_asked(make):
    trainer = make(ema_reference=0.75, updates=2)
    start = trainer.ref_model.lm_head.weight.clone()
    seen = []
    original = trainer._move_reference

    def move(decay):
        policy = trainer._networks.policy.lm_head.weight.detach().clone()
        original(decay)
        seen.append((policy, trainer.ref_model.lm_head.weight.clone()))

    trainer._move_reference = move
    trainer.train()
    [(policy, reference)] = seen  # before the second rollout, not before the first
    torch.testing.assert_close(reference, 0.75 * start + 0.25 * policy)


def test_a_shared_trunk_has_a_head_of_zeros_and_no_network(make):
    trainer = make(share_trunk=True)
    networks = trainer._networks
    assert networks.value is None and float(networks.head.weight.abs().sum()) == 0
    rollout = trainer._roll_out([0, 1, 2, 3])
    assert float(rollout.values.abs().sum()) == 0
    with torch.no_grad():
        both, _ = networks(rollout.sequences, 1.0)
        alone = completion_logprobs(networks.policy, rollout.sequences)
    torch.testing.assert_close(both, alone, atol=1e-5, rtol=1e-5)
    trainer.train()
    assert float(networks.head.weight.abs().sum()) > 0
    with torch.no_grad():  # one pass for both, and the trunk alone, read the same states
        _, values = networks(rollout.sequences, 1.0)
    torch.testing.assert_close(values, networks.values(rollout.sequences), atol=1e-5, rtol=1e-5)
    assert float(values.abs().sum()) > 0


def test_the_critic_is_the_reward_models_copy_unless_given(make):
    trainer = make()
    judge, critic = trainer.scorer.reward_model, trainer._networks.value
    assert critic is not judge
    assert torch.equal(critic.score.weight, judge.score.weight)
    alone = make(reward_model=None)
    assert float(alone._networks.value.score.weight.abs().sum()) == 0
    trunk = alone._networks.value.transformer.wte.weight
    assert torch.equal(trunk, alone._networks.policy.transformer.wte.weight)


def test_the_state_after_an_early_end_can_have_the_score(make):
    """TRL's convention by hand: one more column for rows that ended early, and only for them."""
    plain, after = make(), make(value_after_end=True)
    for trainer in (plain, after):  # the last completion runs to the full length
        trainer.rollout = trainer._roll_out([0, 1, 2, 3] * 4)
    a, b = plain.rollout, after.rollout
    lengths = a.mask.sum(-1)
    early = lengths < 6
    assert early.any()
    assert b.value_mask.sum(-1).tolist() == (lengths + early.long()).tolist()
    rows = torch.arange(len(lengths))
    end = lengths - 1
    torch.testing.assert_close(
        b.rewards[rows, end + early.long()] - a.rewards[rows, end] * (~early), a.scores * early
    )
    expected, _ = gae(b.rewards, b.values * b.value_mask, b.value_mask, 1.0, 0.95)
    width = a.mask.shape[1]
    centred = expected[:, :width][a.mask]
    torch.testing.assert_close(
        b.advantages[a.mask], (centred - centred.mean()) / centred.std(), atol=1e-4, rtol=1e-4
    )


def test_running_moments_are_those_of_everything_seen():
    moments, parts = RunningMoments(), [torch.randn(4, 3) * 3 + 1 for _ in range(3)]
    assert moments.std == 1.0
    for part in parts:
        moments.add(part, torch.ones(4, 3, dtype=torch.bool))
    everything = torch.cat(parts).double()
    assert moments.mean == pytest.approx(float(everything.mean()))
    assert moments.std == pytest.approx(float(everything.std()))


def test_lora_trains_the_adapter_and_the_reference_is_the_model_without_it(make, tmp_path):
    from peft import LoraConfig, PeftModel

    lora = LoraConfig(r=4, target_modules=["c_attn"], init_lora_weights=True, fan_in_fan_out=True)
    trainer = make(peft_config=lora, save_strategy="steps", save_steps=4, updates=3)
    assert trainer.ref_model is None
    base = trainer._networks.policy.get_base_model()
    before = {n: p.detach().clone() for n, p in base.named_parameters() if "lora" not in n}
    trainer.train()
    assert logged(trainer, "objective/kl")[0] == pytest.approx(0, abs=1e-4)
    assert logged(trainer, "objective/kl")[2] != pytest.approx(0, abs=1e-4)
    for name, weight in before.items():
        assert torch.equal(dict(base.named_parameters())[name], weight), name
    folder = tmp_path / "checkpoint-8"
    assert (folder / "adapter_model.safetensors").is_file()
    fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "sft")
    PeftModel.from_pretrained(fresh, folder)  # what a user would do with it
    again = make(peft_config=lora, save_strategy="no", updates=3)
    again.train(resume_from_checkpoint=str(folder))
    torch.testing.assert_close(weights(again), weights(trainer), atol=0, rtol=0)


@pytest.mark.parametrize("share_trunk", [False, True])
def test_lora_with_either_critic(make, share_trunk):
    from peft import LoraConfig

    lora = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    trainer = make(peft_config=lora, share_trunk=share_trunk, updates=1)
    trainer.train()
    assert len(logged(trainer, "policy/loss")) == 1


@pytest.mark.parametrize("options", [{"bf16": True}, {"activation_checkpointing": True}])
def test_the_first_ratio_is_1_in_bf16_and_with_checkpointing(make, options):
    trainer = make(**options)
    trainer.train()
    assert trainer.ratio_tolerance == (0.3 if "bf16" in options else 1e-4)
    assert len(logged(trainer, "policy/loss")) == 2


def test_checkpointing_changes_no_weight(make):
    plain, checkpointed = make(), make(activation_checkpointing=True)
    for trainer in (plain, checkpointed):
        trainer.train()
    torch.testing.assert_close(weights(plain), weights(checkpointed))


def test_dropout_that_stays_on_is_caught(make, policy):
    model = copy.deepcopy(policy)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    with pytest.raises(RuntimeError, match="likely dropout"):
        make(model, disable_dropout=False).train()


def test_the_reward_model_is_frozen(make):
    trainer = make()
    before = trainer.scorer.reward_model.score.weight.clone()
    trainer.train()
    assert torch.equal(trainer.scorer.reward_model.score.weight, before)
    sequences = trainer._roll_out([0, 1, 2, 3]).sequences
    assert not rewards(trainer.scorer.reward_model, sequences).requires_grad


def test_the_sample_table_is_written(make, tmp_path, capsys):
    import pandas as pd

    make(log_completions=True, num_completions_to_print=2).train()
    tables = sorted((tmp_path / "completions").glob("*.parquet"))
    assert [path.name for path in tables] == [
        "completions_00004.parquet",
        "completions_00008.parquet",
    ]
    table = pd.read_parquet(tables[0])
    assert len(table) == 16
    assert {"step", "prompt", "completion", "score", "kl", "tokens", "finished"} == set(table)
    assert "step 4" in capsys.readouterr().out


def test_a_checkpoint_of_something_else_is_refused(make, tmp_path):
    folder = tmp_path / "checkpoint-4"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"has no ppo_state.json: it is not a checkpoint of PPO"):
        make().train(resume_from_checkpoint=str(folder))


def test_a_resumed_run_keeps_its_first_reference(make, tmp_path):
    """The bug of others: a reference made from the policy that is resumed."""
    make(save_strategy="steps", save_steps=4).train()
    folder = tmp_path / "checkpoint-4"
    with pytest.raises(ValueError, match="the reference is not the one that this run started with"):
        make(AutoModelForCausalLM.from_pretrained(folder)).train(resume_from_checkpoint=str(folder))
    make().train(resume_from_checkpoint=str(folder))


def test_fp16_weights_are_refused(make, policy):
    with pytest.raises(ValueError, match="weights are fp16"):
        make(copy.deepcopy(policy).half())


def test_a_judge_can_serve_twice_and_the_second_critic_learns_too(make, tmp_path):
    judge = new_reward_model(tmp_path / "sft").eval()
    for _ in range(2):
        trainer = make(reward_model=judge)
        before = trainer._networks.value.score.weight.detach().clone()
        trainer.train()
        assert not torch.equal(trainer._networks.value.score.weight, before)


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.step


def test_a_run_stopped_amid_an_update_leaves_nothing_behind(make, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 4, "updates": 3}
    whole = make(**settings)
    whole.train()
    stopped = make(callbacks=[StopAt(6)], **settings)
    stopped.train()
    assert not (tmp_path / "checkpoint-6").exists()
    stopped.remove_callback(StopAt)
    stopped.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    torch.testing.assert_close(weights(stopped), weights(whole), atol=0, rtol=0)


def test_no_checkpoint_is_made_amid_an_update(make, tmp_path):
    make(callbacks=[StopAt(6)], save_strategy="epoch").train()
    assert not list(tmp_path.glob("checkpoint-*"))
    make(save_strategy="steps", save_steps=4).train()
    with pytest.raises(ValueError, match="was made with 4 steps an update, not 8"):
        make(num_mini_batches=4).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_metrics_are_means_of_updates_whatever_the_logging_arguments(make):
    plain = make()
    other = make(logging_strategy="epoch", logging_first_step=True)
    for trainer in (plain, other):
        trainer.train()
    for name in ("objective/score", "value/loss", "policy/approx_kl"):
        assert logged(plain, name) == logged(other, name) and len(logged(plain, name)) == 2


def test_a_model_given_by_name_trains_in_fp32(make, policy, tokenizer, tmp_path):
    copy.deepcopy(policy).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    trainer = make(str(tmp_path / "half"), reward_model=None)
    assert {weight.dtype for weight in trainer.model.parameters()} == {torch.float32}


def lora(**changes):
    from peft import LoraConfig

    return LoraConfig(**({"r": 2, "target_modules": ["c_attn"], "fan_in_fan_out": True} | changes))


def test_adapters_whose_reference_would_be_another_are_refused(make, policy, tmp_path):
    from peft import get_peft_model

    trained = get_peft_model(copy.deepcopy(policy), lora())
    for name, weight in trained.named_parameters():
        if "lora_B" in name:
            weight.data.normal_()
    with pytest.raises(ValueError, match="the adapter already changes the model"):
        make(trained)
    make(trained, ref_model=copy.deepcopy(policy))  # then it is no secret
    with pytest.raises(ValueError, match="use bias='none'"):
        make(peft_config=lora(bias="all"))
    with pytest.raises(ValueError, match="ema_reference cannot follow an adapter"):
        make(peft_config=lora(), ema_reference=0.9)
    with pytest.raises(ValueError, match="call it default"):
        make(get_peft_model(copy.deepcopy(policy), lora(), adapter_name="mine"))
    frozen = get_peft_model(copy.deepcopy(policy), lora()).requires_grad_(False)
    with pytest.raises(ValueError, match="no weight of the policy is trainable"):
        make(frozen)
    judge = get_peft_model(new_reward_model(tmp_path / "sft"), lora())
    with pytest.raises(ValueError, match="the reward model has an adapter"):
        make(reward_model=judge)


def test_a_token_without_an_embedding_is_refused(make, policy):
    small = copy.deepcopy(policy)
    small.resize_token_embeddings(270)
    with pytest.raises(ValueError, match="is beyond the 1 embeddings"):
        small.resize_token_embeddings(1)
        make(small, reward_model=None)


def test_the_kl_in_the_loss_is_divided_by_all_that_the_score_was(make):
    trainer = make(kl_in="loss", whiten_rewards=True)
    rollout = trainer._roll_out([0, 1, 2, 3] * 4)
    mask, zeros = rollout.mask, torch.zeros_like(rollout.logprobs)
    raw = kl_penalised_rewards(rollout.scores, zeros, zeros, mask, 0.0)
    advantages, _ = gae(rollout.rewards, rollout.values, mask, 1.0, 0.95)
    divided = masked_var(raw, mask).sqrt() * masked_var(advantages, mask).sqrt()
    assert rollout.kl_weight == pytest.approx(0.1 / float(divided), rel=1e-4)
    alike = make(kl_in="loss", reward_model=None, reward_funcs=lambda completions, **_: [0.0] * 16)
    assert alike._roll_out([0, 1, 2, 3] * 4).kl_weight == pytest.approx(0.1 / 1e-2)


@pytest.mark.parametrize("share_trunk", [False, True])
def test_nothing_of_the_policy_moves_in_the_warm_up(make, share_trunk):
    trainer = make(critic_warmup=2, share_trunk=share_trunk, weight_decay=0.1)
    before = weights(trainer).clone()
    trainer.train()
    assert torch.equal(weights(trainer), before)


def test_a_model_card_is_the_policys(make, tmp_path):
    trainer = make()
    trainer.create_model_card()
    assert (tmp_path / "README.md").is_file()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_bf16_on_an_accelerator_stays_within_its_tolerance(policy, tokenizer, tmp_path):
    trainer = PPOTrainer(
        policy,
        args=PPOConfig(
            str(tmp_path),
            bf16=True,
            updates=3,
            rollouts=64,
            max_completion_length=6,
            report_to="none",
            save_strategy="no",
        ),
        train_dataset=Dataset.from_dict({"prompt_ids": PROMPTS}),
        processing_class=tokenizer,
        reward_funcs=even,
    )
    assert trainer.args.device.type == "cuda"
    trainer.train()
    assert len(logged(trainer, "policy/loss")) == 3
