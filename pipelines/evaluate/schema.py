"""The columns of every table that an experiment leaves behind: a contract that users build on.

KL is the sequence-level reverse KL to the shared SFT model, in nats, summed over completion tokens
(the EOS step included), policy and reference at the same stated temperature. Missing is null,
never 0.
"""

import pandas as pd

# Written by an evaluation step, one row per sample: what analysis is made from (no text).
SCORES = {
    "prompt_id": "string",
    "sample": "int64",
    "step": "int64",  # optimiser step of the policy's snapshot
    "temperature": "float64",
    "kl_k1": "float64",  # sum_t log pi - log ref
    "kl_k3": "float64",  # sum_t exp(-l_t) - 1 + l_t
    "kl_rb": "float64",  # sum_t KL(pi(.|y<t) || ref(.|y<t)), Rao-Blackwellised over the vocabulary
    "entropy": "float64",  # nats per token, mean over the completion's positions
    "length": "int64",  # tokens, EOS included
    "finished": "bool",  # ended in EOS
    "reward_gold": "float64",
    "reward_proxy": "float64",
}

# Written by a sweep of temperatures, one row per sample of the final policy; at temperature 0, one
# a prompt, whose kl_* are null and whose entropy is 0.
TEMPERATURE_SCORES = {name: kind for name, kind in SCORES.items() if name != "step"}

# Written by a held-out-logprobs step, one row per pair that people compared.
HELD_OUT_LOGPROBS = {
    "prompt_id": "string",
    "line": "int64",  # of the pair in its file
    "logp_chosen": "float64",  # nats: of the whole completion, at temperature 1
    "logp_rejected": "float64",
}

# Written by a held-out-rewards step, for the same pairs: of the chosen completion less that of the
# rejected one; above 0, the reward agrees with people.
HELD_OUT_REWARDS = {
    "prompt_id": "string",
    "line": "int64",
    "reward_proxy": "float64",
    "reward_gold": "float64",
    "length": "int64",  # tokens
}

# Written by the reference-samples step, one row per sample of the SFT model.
REFERENCE_SCORES = {
    "prompt_id": "string",
    "sample": "int64",
    "temperature": "float64",
    "length": "int64",
    "reward_gold": "float64",
}

# Written by the proxy-scores step: a reward model's judgement of each reference sample.
PROXY_SCORES = {
    "prompt_id": "string",
    "sample": "int64",
    "reward_proxy": "float64",
}

# Written by an evaluation of the enumerable task, one row per prompt and completion.
ENUMERATED = {
    "prompt": "int64",
    "completion": "int64",
    "reward": "float64",
    "logp": "float64",  # nats, exact
    "ref_logp": "float64",
    "kl_k1": "float64",  # what the KL meter reads on this completion
    "kl_k3": "float64",
    "kl_rb": "float64",
}

ORACLE = {
    "arm": "string",
    "beta": "float64",
    "seed": "int64",
    "labels": "string",  # exact (all pairs, soft), sampled (hard), or null where none are used
    "closed_share": "float64",  # (J - J_ref) / (J* - J_ref), by enumeration
    "reward": "float64",
    "kl": "float64",  # nats per sequence
    "entropy": "float64",
    "objective": "float64",
    "reward_opt": "float64",
    "kl_opt": "float64",
    "objective_opt": "float64",
    "objective_ref": "float64",
    "seconds": "float64",  # of training, reward model included
    "run": "string",
}

# The KL meter against the truth, one row per policy and estimator.
ESTIMATORS = {
    "arm": "string",
    "beta": "float64",
    "seed": "int64",
    "labels": "string",
    "kl_estimator": "string",
    "kl": "float64",  # enumerated
    "kl_mean": "float64",  # over the repeats
    "z": "float64",  # their difference in standard errors
    "bias": "float64",  # enumerated
    "variance": "float64",  # of one sample, enumerated
    "skewness": "float64",
    "coverage": "float64",  # of nominal 95% intervals
    "samples": "int64",  # each repeat
    "repeats": "int64",
    # fewest samples (of 256 x 16^k) with mean and coverage as they claim; null where none was found
    "samples_needed": "float64",
    "run": "string",
}

DETAILS = {
    "detail": "string",  # number in pipelines/rlhf/README.md
    "change": "string",
    "note": "string",
    "stopped": "string",  # the error that stopped it, null where it ran
    "stopped_seeds": "int64",
    "closed_share": "float64",  # mean over seeds
    "ci_low": "float64",
    "ci_high": "float64",
    "difference": "float64",  # to the defaults, paired by seed
    "difference_low": "float64",
    "difference_high": "float64",
    "kl": "float64",
    "seconds": "float64",
    "seeds": "int64",  # that ran
}

FRONTIER = {
    "arm": "string",
    "setting": "float64",  # the arm's swept setting; n for best-of-n; null where it has none
    "seed": "int64",
    "step": "int64",
    "kl": "float64",
    "kl_se": "float64",
    # k1, k3, rb; importance (optimum); for best-of-n: analytic, an upper bound, and measured
    "kl_estimator": "string",
    "reward_gold": "float64",
    "reward_gold_se": "float64",
    "reward_proxy": "float64",
    "entropy": "float64",
    "length": "float64",
    "n_prompts": "int64",
    "n_samples": "int64",  # per prompt
    "run": "string",  # fingerprint of the run, first 8 hex digits
    "temperature": "float64",
    "ess": "float64",  # effective sample size of what is estimated by weighting: optimum, best-of-n
    "stage": "string",  # that made the policy; reference-samples for optimum and best-of-n
    "variant": "string",  # other settings swept with --set, "" for none
    "final": "bool",  # the policy at the end of training, not a snapshot on the way
}

# What each arm gives within a KL budget, one row per arm, variant and budget.
FRONTIER_SUMMARY = {
    "arm": "string",
    "variant": "string",
    "kl_budget": "float64",  # nats
    "reward": "float64",  # gold, attainable within the budget
    "ci_low": "float64",
    "ci_high": "float64",
    "regret": "float64",  # the estimated optimum's reward within the budget less the arm's
    "regret_ci_low": "float64",
    "regret_ci_high": "float64",
    "dominated_area": "float64",  # reward x nats above SFT, up to kl_common
    "dominated_area_low": "float64",
    "dominated_area_high": "float64",
    "dominated_area_root": "float64",  # reward x sqrt(nats)
    "dominated_area_root_low": "float64",
    "dominated_area_root_high": "float64",
    "kl_reached": "float64",  # the arm's largest KL, mean over seeds
    "kl_common": "float64",  # the largest KL that every arm reaches
    "policies": "int64",  # a seed: settings x snapshots
    "seeds": "int64",
    "prompts": "int64",
}

# Mean reward difference of two arms' frontiers over the KL range that both reach.
DOMINANCE = {
    "arm_a": "string",
    "variant_a": "string",
    "arm_b": "string",
    "variant_b": "string",
    "axis": "string",  # kl, root_kl: what the mean is over
    "kl_common": "float64",  # the range is 0 to this, nats
    "difference": "float64",  # a - b
    "ci_low": "float64",
    "ci_high": "float64",
    "p": "float64",  # probability that a's frontier is the higher one
    "higher": "string",  # an arm, none shown, or null where there is no common range
    "seeds": "int64",
    "prompts": "int64",
}

# What papers have said against what a study measured, one row per claim that it can speak to.
CLAIMS = {
    "name": "string",
    "claim": "string",
    "source": "string",
    "said": "string",
    "measured": "float64",
    "ci_low": "float64",
    "ci_high": "float64",
    "verdict": "string",  # supported, contradicted, undecided
    "unit": "string",
    "threshold": "float64",  # set before the runs
    "larger": "bool",  # the claim is that `measured` is above the threshold
    "smallest": "float64",  # distance from the threshold that the study was laid out to see
    "detectable": "float64",  # that it can see with a probability of 80%, by its own precision
    "basis": "string",  # what the interval is over
    "seeds": "int64",
    "deviation": "string",  # what the source did that was not done here
}

# Policies whose setting is the coefficient c of J = reward - c KL; no others have a J.
OBJECTIVE = {
    "arm": "string",
    "setting": "float64",
    "seed": "int64",
    "variant": "string",
    "reward_gold": "float64",
    "kl": "float64",  # Rao-Blackwellised
    "objective": "float64",  # J = reward_gold - setting * kl
    "gain": "float64",  # J - J(SFT), paired by prompt
    "gain_se": "float64",  # clustered by prompt
    "objective_sft": "float64",
    "objective_optimum": "float64",  # mean over prompts of setting * log mean exp(r / setting)
    "closed_share": "float64",  # gain / (objective_optimum - objective_sft)
    "ess": "float64",
    "above_sft": "bool",  # gain exceeds 2 standard errors
    "run": "string",
}

# What each policy's training improves by its own lights, before and after, one row per policy.
TRAINING = {
    "arm": "string",
    "setting": "float64",
    "seed": "int64",
    "variant": "string",
    "objective": "string",  # loss, or reward model score (or gold reward) - c KL; GRPO's is scaled
    "better": "string",  # lower or higher
    "start": "float64",
    "end": "float64",
    "change_se": "float64",  # clustered by prompt; null for losses
    # null where it is not known (start or end is null) or not shown: |end - start| < t change_se
    "improved": "boolean",
    "run": "string",
}

COMPUTE = {
    "arm": "string",
    "setting": "float64",
    "seed": "int64",
    "stage": "string",  # or total, total_with_pairs
    "seconds": "float64",
    "flops": "int64",
    "tokens_generated": "int64",
    "tokens_trained": "int64",
    "peak_memory_bytes": "int64",
    "variant": "string",
    # Null where a record does not have it, never 0. On a CPU there are 0 accelerator-hours.
    "accelerator_hours": "float64",
    "networks": "Int64",  # in memory at once; of a total, the most of any stage
    "trained_networks": "Int64",  # different ones: policy, reward model, value model
    "model_state_bytes": "Int64",  # weights, gradients, optimiser state; of a total, the most
}

# The networks that each stage holds in memory, one row per stage and network.
NETWORKS = {
    "stage": "string",
    "network": "string",  # policy, reference, reward model, value model
    "parameters": "int64",
    "trained_parameters": "int64",
    "model_state_bytes": "int64",
}

# Reward and objective of every policy and snapshot against what it had cost by then.
MATCHED = {
    "arm": "string",
    "setting": "float64",
    "seed": "int64",
    "variant": "string",
    "step": "int64",  # 0: the SFT model, as the arm's training begins
    "final": "bool",
    "flops": "float64",  # of the policy's closure up to here, without preference data
    "seconds": "float64",
    "flops_beyond_sft": "float64",  # without what every arm shares
    "seconds_beyond_sft": "float64",
    "reward_gold": "float64",
    "kl": "float64",  # Rao-Blackwellised
    "objective": "float64",  # J = reward_gold - setting * kl; null where the setting is not J's
    "run": "string",
}

# What each policy's own training bought, over its seeds, one row per policy.
REWARD_PER_COMPUTE = {
    "arm": "string",
    "setting": "float64",
    "variant": "string",
    "flops_beyond_sft": "float64",  # without preference data
    "seconds_beyond_sft": "float64",
    "kl": "float64",
    "gain": "float64",  # gold reward less the SFT model's
    "gain_low": "float64",
    "gain_high": "float64",
    "gain_per_pflop": "float64",  # reward units per 10^15 FLOPs
    "gain_per_pflop_low": "float64",
    "gain_per_pflop_high": "float64",
    "objective_gain": "float64",  # J less the SFT model's; null where the setting is not J's
    "objective_gain_per_pflop": "float64",
    "seeds": "int64",
}

# Each arm against what it had cost by then, over its seeds, all judged by one J. One row per
# snapshot, and one for the start.
COMPUTE_CURVES = {
    "coefficient": "float64",  # c of J = reward - c KL
    "arm": "string",
    "setting": "float64",
    "variant": "string",
    "aimed": "bool",  # its setting is c; else it is the arm's best by this J at the end of training
    "step": "int64",  # 0: the SFT model, as the arm's training begins
    "share": "float64",  # of the training's steps
    "flops_beyond_sft": "float64",
    "seconds_beyond_sft": "float64",
    "reward_gold": "float64",
    "kl": "float64",
    "gain": "float64",  # J less the SFT model's, paired by prompt
    "ci_low": "float64",
    "ci_high": "float64",
    "seeds": "int64",
}

# The arms at equal compute, over their seeds. Null where an arm's training had not begun by then.
AT_BUDGET = {
    "coefficient": "float64",
    "budget": "float64",  # FLOPs beyond the SFT model, without preference data
    "arm": "string",
    "setting": "float64",
    "variant": "string",
    "aimed": "bool",
    "share": "float64",  # of the training's steps that the budget pays for, at most 1
    "reward_gold": "float64",
    "kl": "float64",
    "gain": "float64",  # J less the SFT model's, interpolated between snapshots
    "ci_low": "float64",
    "ci_high": "float64",
    "seeds": "int64",
}

# Win rates against the sampling temperature, one row per policy, temperature, opponent and judge.
TEMPERATURES = {
    "arm": "string",
    "setting": "float64",
    "variant": "string",
    "temperature": "float64",  # of policy, of the KL's reference, and of the opponent sft
    "kl": "float64",  # nats, Rao-Blackwellised; null at temperature 0, as its interval
    "kl_low": "float64",  # 95% intervals
    "kl_high": "float64",
    "reward_gold": "float64",
    "reward_low": "float64",
    "reward_high": "float64",
    "length": "float64",  # tokens
    "opponent": "string",  # chosen, fixed; or sft, at the same temperature
    "judge": "string",  # gold or reward-model
    "win_rate": "float64",  # share of the comparisons won, ties counted half
    "ci_low": "float64",
    "ci_high": "float64",
    "seeds": "int64",
    "prompts": "int64",
}

SAMPLES = {
    "run": "string",
    "prompt_id": "string",
    "sample": "int64",
    "prompt": "string",
    "completion": "string",
    "n_tokens": "int64",
    "finished": "bool",
    "logp": "float64",
    "ref_logp": "float64",
    "reward_proxy": "float64",
    "reward_gold": "float64",
}

# The laws of reward against KL (analysis/overoptimisation/fits.py), two rows an arm and reward.
OVEROPTIMISATION = {
    "arm": "string",
    "variant": "string",
    "reward": "string",  # gold, proxy or implicit (beta log(pi/ref)): gains over the SFT model
    "form": "string",  # with d = sqrt(KL), bon: d (alpha - beta d), rl: d (alpha - beta log d)
    "alpha": "float64",
    "alpha_low": "float64",
    "alpha_high": "float64",
    "beta": "float64",
    "beta_low": "float64",
    "beta_high": "float64",
    "peak_kl": "float64",  # nats, where the curve is highest; null outside the measured KLs
    "peak_low": "float64",  # up to here it rises, by the slope's interval; null where nowhere
    "peak_high": "float64",  # from here on it falls; null where nowhere
    "rmse": "float64",  # reward units
    "r2": "float64",
    "better": "boolean",  # than the other form, by squared error; null where not shown
    "heldout_kl": "float64",  # nats, of the setting with the highest KL
    "heldout_predicted": "float64",  # gain, from the other settings
    "heldout_measured": "float64",
    "heldout_error": "float64",  # predicted - measured
    "heldout_low": "float64",
    "heldout_high": "float64",
    "points": "int64",  # policies and snapshots, over all seeds
    "seeds": "int64",
    "note": "string",  # why something is null, and what else to know
}

# The best of k trials of a search, one row per arm and k (see analysis/cost/tuning.py).
EXPECTED_BEST = {
    "arm": "string",
    "k": "int64",
    "expected_best": "float64",  # of k draws of the trials with replacement; null for k > trials
    "ci_low": "float64",
    "ci_high": "float64",
    "unbiased": "float64",  # without replacement
    "trials": "int64",
    "seconds": "float64",  # of k trials, each at the arm's mean
    "flops": "float64",
}

# What a judge (a language model, people) said of pairs of completions; no text.
JUDGEMENTS = {
    "judge": "string",
    "annotator": "string",  # who, where the judges are people; "" for a model
    "run_a": "string",  # evaluation, first 8 hex digits; the reference samples' for "chosen"
    "sample_a": "int64",
    "run_b": "string",
    "sample_b": "int64",
    "prompt_id": "string",
    "verdict": "string",  # a, b, tie, inconsistent (orders differ) or unparsable
    "verdict_ab": "string",  # with a shown first: a, b, tie; null where not asked or not parsed
    "verdict_ba": "string",  # with b shown first
    "length_a": "int64",  # characters
    "length_b": "int64",
}

# Log-probabilities of chosen and rejected completions over training, as the trainers log them.
PAIR_LOGS = {
    "arm": "string",
    "setting": "float64",
    "seed": "int64",
    "variant": "string",
    "step": "int64",  # optimiser step
    # look: a fixed part of the training pairs, before and after; batches: mean over the pairs
    # trained on since the row before; own: the same, of pairs that the policy sampled
    "source": "string",
    "chosen_logp": "float64",  # nats per completion
    "rejected_logp": "float64",
    "chosen_change": "float64",  # since the start, the same pairs; null where the log does not tell
    "rejected_change": "float64",
    "margin": "float64",  # log-ratio of chosen less that of rejected, nats, not times beta
    "accuracy": "float64",  # share of pairs with a positive margin
    "loss": "float64",
    "run": "string",
}

# How far training moved both sides of some training pairs, over seeds.
PAIR_CHANGES = {
    "arm": "string",
    "setting": "float64",
    "variant": "string",
    "source": "string",  # look, or batches: the pairs trained on last (see PAIR_LOGS)
    "chosen_start": "float64",  # nats per completion; null for batches
    "rejected_start": "float64",
    "chosen_change": "float64",
    "chosen_low": "float64",  # 95%, over seeds; null for one seed
    "chosen_high": "float64",
    "rejected_change": "float64",
    "rejected_low": "float64",
    "rejected_high": "float64",
    "accuracy": "float64",  # after training, of these training pairs
    "seeds": "int64",
}

# Does a judge order a policy's own samples as the gold reward does? One row per policy and judge.
PAIR_ACCURACY = {
    "arm": "string",
    "setting": "float64",
    "variant": "string",
    "judge": "string",  # proxy (the reward model) or implicit (log pi - log ref)
    "accuracy": "float64",  # of pairs of a prompt's samples with unequal gold reward; a tie is 1/2
    "ci_low": "float64",
    "ci_high": "float64",
    "change": "float64",  # to the same proxy on the SFT model's samples, paired by prompt
    "change_low": "float64",
    "change_high": "float64",
    "gold_gap": "float64",  # mean absolute difference of gold reward in these pairs
    "pairs": "int64",
    "prompts": "int64",
    "seeds": "int64",
}

# Of pairs that people compared and nothing was trained on.
HELD_OUT_ACCURACY = {
    "judge": "string",  # policy, reward-model, gold, or length (the longer completion)
    "arm": "string",  # null where the judge is no policy
    "setting": "float64",
    "variant": "string",
    "accuracy": "float64",  # share ordered as people did; equal counts 1/2
    "ci_low": "float64",
    "ci_high": "float64",
    "pairs": "int64",
    "prompts": "int64",
    "seeds": "int64",
}

# Reliability of a reward model's preference probabilities on the SFT model's samples.
RELIABILITY = {
    "seed": "int64",
    "variant": "string",
    "bin_low": "float64",  # of the predicted probability of the sample it prefers, 0.5 to 1
    "bin_high": "float64",
    "predicted": "float64",  # mean
    "actual": "float64",  # mean probability that the labeller prefers it
    "ci_low": "float64",  # clustered by prompt
    "ci_high": "float64",
    "pairs": "int64",
    "prompts": "int64",
    "run": "string",
}

# The same on the samples of every final policy, in four numbers.
CALIBRATION = {
    "arm": "string",
    "setting": "float64",
    "seed": "int64",
    "variant": "string",
    "calibration_error": "float64",  # expected, over the bins of RELIABILITY
    "calibration_error_low": "float64",
    "calibration_error_high": "float64",
    "log_loss": "float64",  # nats per pair, against the labeller's probabilities
    "log_loss_floor": "float64",  # the labeller's own entropy
    "excess": "float64",  # log_loss - log_loss_floor
    "excess_low": "float64",
    "excess_high": "float64",
    "slope": "float64",  # of the logistic recalibration: 1 is calibrated, below 1 overconfident
    "slope_low": "float64",
    "slope_high": "float64",
    "pairs": "int64",
    "prompts": "int64",
    "run": "string",
}

# What else of a policy moves: entropy (nats per token), length (tokens), unfinished (share of
# samples without EOS).
DRIFT = {
    "arm": "string",
    "setting": "float64",
    "variant": "string",
    "step": "int64",
    "final": "bool",
    "kl": "float64",  # nats, Rao-Blackwellised
    "quantity": "string",
    "mean": "float64",
    "ci_low": "float64",
    "ci_high": "float64",
    "change": "float64",  # to the SFT model, paired by prompt and seed; null for the SFT model
    "change_low": "float64",
    "change_high": "float64",
    "seeds": "int64",
    "prompts": "int64",
}

# How varied a final policy's texts are: distinct_1 to distinct_3, distinct_1_equal to
# distinct_3_equal, self_bleu, duplicates.
DIVERSITY = {
    "arm": "string",
    "setting": "float64",
    "variant": "string",
    "quantity": "string",
    "mean": "float64",
    "ci_low": "float64",
    "ci_high": "float64",
    "change": "float64",  # as in DRIFT
    "change_low": "float64",
    "change_high": "float64",
    "seeds": "int64",
    "prompts": "int64",
    "completions": "int64",  # of each prompt and seed: the same for every policy
}

# Policy a against policy b by one judge; of b against a it is 1 less each rate.
WIN_RATES = {
    "arm_a": "string",
    "setting_a": "float64",
    "variant_a": "string",
    "arm_b": "string",  # sft: its samples of the same seed; chosen: of two SFT completions
    "setting_b": "float64",
    "variant_b": "string",
    "judge": "string",  # gold, reward-model (each seed's own), or a judge's name
    "wins": "float64",  # of a; against chosen, by a reward, expected numbers
    "ties": "float64",  # with the inconsistent
    "losses": "float64",
    "win_rate": "float64",  # (wins + ties / 2) / (wins + ties + losses)
    "ci_low": "float64",  # 95%, over prompts and seeds; over prompts only where there is one seed
    "ci_high": "float64",
    # at equal lengths; null where it cannot be told
    "length_controlled": "float64",
    # share of the verdicts given in both orders that are equal; null where none were
    "both_orders_agree": "float64",
    "inconsistent": "int64",  # verdicts that changed with the order
    "unparsable": "int64",  # in no other count
    "seeds": "int64",
    "prompts": "int64",
}

# Bradley-Terry strengths, one row per judge and policy, the strongest first.
RANKING = {
    "judge": "string",
    "arm": "string",
    "setting": "float64",
    "variant": "string",
    "strength": "float64",  # log-odds against `anchor`; null where there is no finite estimate
    "ci_low": "float64",  # 95%, as of WIN_RATES; null of the anchor itself
    "ci_high": "float64",
    "win_rate_sft": "float64",  # against SFT, as the strengths have it; null where SFT is not rated
    "win_rate_sft_low": "float64",
    "win_rate_sft_high": "float64",
    "anchor": "string",  # what has strength 0: sft, or mean of all where SFT is not rated
    "opponents": "int64",
    "comparisons": "float64",
    "seeds": "int64",
    "prompts": "int64",
}

# How far judges agree on the same pairs of completions.
AGREEMENT = {
    "measure": "string",  # agreement (share of equal verdicts), cohen-kappa, krippendorff-alpha
    "annotator_a": "string",  # null where all annotators are taken together
    "annotator_b": "string",
    "value": "float64",  # null where undefined: all verdicts are of one kind
    "ci_low": "float64",  # 95%, over items
    "ci_high": "float64",
    "annotators": "int64",
    "items": "int64",  # with two verdicts at least
    "verdicts": "int64",  # on these
}

TABLES = {
    "scores": SCORES,
    "temperature_scores": TEMPERATURE_SCORES,
    "held_out_logprobs": HELD_OUT_LOGPROBS,
    "held_out_rewards": HELD_OUT_REWARDS,
    "reference_scores": REFERENCE_SCORES,
    "proxy_scores": PROXY_SCORES,
    "enumerated": ENUMERATED,
    "oracle": ORACLE,
    "estimators": ESTIMATORS,
    "details": DETAILS,
    "frontier": FRONTIER,
    "frontier_summary": FRONTIER_SUMMARY,
    "dominance": DOMINANCE,
    "claims": CLAIMS,
    "objective": OBJECTIVE,
    "training": TRAINING,
    "compute": COMPUTE,
    "networks": NETWORKS,
    "matched": MATCHED,
    "reward_per_compute": REWARD_PER_COMPUTE,
    "compute_curves": COMPUTE_CURVES,
    "at_budget": AT_BUDGET,
    "temperatures": TEMPERATURES,
    "pair_logs": PAIR_LOGS,
    "pair_changes": PAIR_CHANGES,
    "pair_accuracy": PAIR_ACCURACY,
    "held_out_accuracy": HELD_OUT_ACCURACY,
    "reliability": RELIABILITY,
    "calibration": CALIBRATION,
    "drift": DRIFT,
    "diversity": DIVERSITY,
    "overoptimisation": OVEROPTIMISATION,
    "expected_best": EXPECTED_BEST,
    "samples": SAMPLES,
    "judgements": JUDGEMENTS,
    "win_rates": WIN_RATES,
    "ranking": RANKING,
    "agreement": AGREEMENT,
}


def conform(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """`table` with exactly the contract's columns, order and types.

    Raises:
        ValueError: a column is missing or unknown, or a value does not fit its type.
    """
    columns = TABLES[name]
    missing, extra = columns.keys() - set(table.columns), set(table.columns) - columns.keys()
    if missing or extra:
        raise ValueError(
            f"table {name}: missing columns {sorted(missing)}, unknown {sorted(extra)}"
        )
    typed = table[list(columns)].astype(columns)
    for column, kind in columns.items():
        before = table[column]
        wrong = kind != "string" and not typed[column].eq(before).where(before.notna(), True).all()
        if wrong or (kind == "string" and pd.api.types.is_numeric_dtype(before.dtype)):
            raise ValueError(f"table {name}: column {column} does not hold {kind}: {before.dtype}")
    return typed
