"""The peer of the study does what the study does; its stages are done once."""

import pandas as pd
import pytest
import torch
from peer import ppo, runs
from peer import stages as peer
from peer.timed import Stages

from pipelines.evaluate.kl import divergence
from pipelines.rlhf import PPOConfig
from pipelines.shared.generation import packed_batches
from pipelines.shared.logprobs import target_logits
from pipelines.shared.models import new_reward_model, rewards
from pipelines.shared.specs import SamplingSpec, SimulatedProtocol

PROMPTS = pd.DataFrame(
    {"prompt_id": ["a", "b"], "prompt": ["x", "y"], "prompt_ids": [[5, 6, 7], [8, 9, 10]]}
)


@pytest.fixture
def completions(policy, tokenizer):
    torch.manual_seed(0)
    protocol = SimulatedProtocol(sampling=SamplingSpec(max_new_tokens=8))
    return peer.generate(policy, tokenizer, PROMPTS, 20, protocol, 1.0)


def test_completions_end_at_their_first_eos(completions, tokenizer):
    assert completions["sample"].tolist() == [*range(20)] * 2
    for ids, finished in zip(completions["completion_ids"], completions["finished"], strict=True):
        assert tokenizer.eos_token_id not in ids[:-1]
        assert finished == (ids[-1] == tokenizer.eos_token_id)
        assert finished or len(ids) == 8


def test_until_end_keeps_the_eos():
    assert peer.until_end([4, 0, 1, 0], eos_id=0) == [4, 0]
    assert peer.until_end([4, 5], eos_id=0) == [4, 5]


def test_peer_measures_the_kl_and_the_reward_that_the_project_measures(
    completions, policy, tokenizer, tmp_path
):
    policy.save_pretrained(tmp_path)
    reference, judge = peer.load_policy(tmp_path), new_reward_model(tmp_path).eval()
    for parameter in reference.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    # Completions of different lengths, so that there is padding, and no PAD among what was sampled
    # (this policy is untrained): Transformers takes it for padding.
    completions["completion_ids"] = [
        [5 if token == tokenizer.pad_token_id else token for token in ids[: 1 + row % 8]]
        for row, ids in enumerate(completions["completion_ids"])
    ]
    [(ids, mask, prompt)] = peer.batches(completions, tokenizer.pad_token_id)
    found = peer.divergences(policy, reference, ids, mask, prompt)
    [(places, sequences)] = packed_batches(completions, tokenizer.pad_token_id, policy.device)
    inputs, targets = sequences.model_inputs(), sequences.targets
    with torch.no_grad():
        logits = [target_logits(model, inputs, targets) for model in (policy, reference)]
        wanted = divergence(*logits, sequences.input_ids[targets], sequences.completion_mask)
        scores = rewards(judge, sequences).double()
    order = torch.from_numpy(places)
    for name, values in found.items():
        torch.testing.assert_close(values[order], getattr(wanted, name), rtol=1e-3, atol=1e-4)
    found_scores = peer.score(judge, ids, mask)[order]
    torch.testing.assert_close(found_scores, scores, rtol=1e-4, atol=1e-5)


def test_a_finished_stage_is_not_repeated(tmp_path):
    def once(folder):
        (folder / "made").touch(exist_ok=False)

    first, second = Stages(tmp_path), Stages(tmp_path)
    assert (first.run("stage", "label", once) / "made").is_file()
    second.run("stage", "label", lambda folder: pytest.fail("done twice"))
    assert second.rows == first.rows
    second.book("start", "imports", 2.0)
    second.write(tmp_path / "table.csv")
    table = pd.read_csv(tmp_path / "table.csv").fillna("")
    assert table["stage"].tolist() == ["stage", "start", "total"]
    assert table["seconds"].iloc[-1] == pytest.approx(second.total, abs=0.01)


def test_a_stage_that_breaks_does_not_count(tmp_path):
    def breaks(folder):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        Stages(tmp_path).run("stage", "label", breaks)
    assert not Stages(tmp_path).done("stage", "label")


def test_the_study_has_four_runs_of_each_method_and_ppo_s_settings_reach_the_peer():
    study = runs.study("mini")
    counted = pd.Series([run.arm for run in study.runs]).value_counts().to_dict()
    assert counted == {"sft": 1, "ppo": 4, "dpo": 4}
    [run, *_] = [run for run in study.runs if run.arm == "ppo"]
    spec = run.policy.recipe["ppo"]
    found = ppo.trl_arguments(spec, study.protocol, seed=3)
    assert set(ppo.SAME_NAMES) <= set(PPOConfig.__dataclass_fields__)
    assert found["kl_coef"] == 0.05
    assert found["num_ppo_epochs"] == spec.ppo_epochs
    assert found["total_episodes"] == spec.updates * spec.rollouts
    assert found["response_length"] == study.protocol.sampling.max_new_tokens


def test_too_few_prompts_are_repeated_to_fill_a_batch():
    assert ppo.at_least(5, [[1], [2]]) == [[1], [2]] * 3
    assert ppo.at_least(2, [[1], [2], [3]]) == [[1], [2], [3]]
