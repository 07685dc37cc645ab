"""Comparisons: arms on shared stages. The only place where all pipelines meet."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from experiments import settings
from experiments.forecast import Forecast, Sizes
from experiments.stages import Shared, Simulated, Stages
from experiments.study import Choice, Experiment, Study, Written
from pipelines.arms import ARMS, Arm, Ingredients
from pipelines.arms.arm import check as check_arm
from pipelines.data import brought
from pipelines.data.brought import Brought
from pipelines.dpo.pipeline import reference_logprobs
from pipelines.evaluate.comparisons import chosen_samples, peoples_choices
from pipelines.evaluate.pipeline import (
    evaluation,
    held_out,
    reference_samples,
    temperature_sweep,
)
from pipelines.evaluate.schema import conform
from pipelines.rlhf.pipeline import reward_model
from pipelines.shared.assets import BY_IDENTITY
from pipelines.shared.errors import UserError
from pipelines.shared.specs import LabelsSpec, Protocol, TemperaturesSpec
from pipelines.shared.steps import Step, closure

CHOSEN_TEXTS = "chosen.parquet"
PAPER = "paper"  # the scale of papers' own models and data
IMPORTED = "imported"
JUDGED = "judge's reward"  # what the report calls it where there is no gold reward
ALWAYS = ("sft", "best-of-n", "optimum")  # made of the SFT model and its samples, as all need them


@dataclass(frozen=True)
class Run:
    """One trained policy and its evaluation.

    Attributes:
        setting: the value of the arm's swept setting; None for an arm that has none.
        variant: other settings that were swept, as on the command line; "" for none.
        temperatures: its sweep of sampling temperatures, if the experiment has one.
        held_out: its view, and its reward model's, of the pairs that people compared and nothing is
            trained on, if any.
    """

    arm: str
    setting: float | None
    seed: int
    variant: str
    policy: Step
    evaluation: Step
    temperatures: Step | None = None
    held_out: tuple[Step, Step] | None = None


@dataclass(frozen=True)
class Estimate:
    """A curve that is estimated from samples of the SFT model.

    Attributes:
        step: with the samples, or with their scores.
    """

    arm: str
    seed: int
    variant: str
    step: Step


@dataclass(frozen=True)
class Comparison(Experiment):
    """Arms that share data, models, prompts, sampling and evaluation.

    Any registered arm (pipelines/arms) can be part of it.

    Attributes:
        stages: where the stages that all arms share come from.
        at_scale: the same for scales where they come from elsewhere.
        imports: checkpoints from elsewhere, by the names of the arms that they become.
        default: the arms that are run unless others are named.
        sweeps: values of an arm's swept setting, where not the arm's own.
        axes: other settings swept by default, by name.
        temperatures: at which final policies are sampled besides evaluation's; () for none.
        trials: settings tried together by default, one mapping a trial (a search), in order.
        reward_label: what the gold reward is, for the figures' axes.
        judge: what stands for a gold reward where there is none, in the report's words.
        papers: whether papers' claims can be put to the test in it.
        deviations: from a protocol, what its source says and what is done here, for the report.
        sizes: of the data at scales whose cost is to be told before anything like it has run.
        tuning: name of the experiment that chose the settings of `tuned_scales`, or "".
    """

    stages: Stages = field(default_factory=Simulated)
    at_scale: Mapping[str, Stages] = field(default_factory=dict)
    imports: Mapping[str, Brought] = field(default_factory=dict)
    default: Sequence[str] = ()
    sweeps: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    axes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    temperatures: tuple[float, ...] = ()
    trials: Sequence[Mapping[str, Any]] = ()
    reward_label: str = "gold reward"
    judge: str = ""
    papers: bool = True
    deviations: Callable[[Any], Sequence[Mapping[str, str]]] = lambda protocol: ()
    sizes: Mapping[str, Sizes] = field(default_factory=dict)
    tuning: str = ""
    tuned_scales: Sequence[str] = ()

    @property
    def folder(self) -> str:
        """How the folders of its studies begin."""
        return self.name

    @property
    def arms(self) -> Mapping[str, Arm]:
        """Those that there are to choose from, and those that were imported."""
        return {**ARMS, **{name: imported(name, thing) for name, thing in self.imports.items()}}

    def choices(self) -> Mapping[str, Choice]:
        always = {*ALWAYS, *self.imports}
        return {
            name: Choice(arm.summary, self.sweep(arm), name in self.default, name in always)
            for name, arm in self.arms.items()
        }

    def chosen(self, arms: Sequence[str] | None) -> tuple[list[str], str]:
        """See `Experiment.chosen`.

        Raises:
            UserError: an arm is trained on the gold reward, and there is none but the judge.
        """
        names, named = super().chosen(arms)
        told = [name for name in names if self.arms[name].trains_on == "gold"]
        if told and self.judge:
            raise UserError(
                f"arm {told[0]} is trained on the gold reward, and here is only a judge, who "
                "would judge what it taught (custom takes a gold reward: --gold)"
            )
        return names, named

    def importing(self, imports: Mapping[str, str]) -> "Comparison":
        things = {name: brought.model(given) for name, given in imports.items()}
        return dataclasses.replace(self, imports=things)

    def sweep(self, arm: Arm) -> tuple[str, tuple[float, ...]] | None:
        """The arm's swept setting and its values in this experiment."""
        if arm.sweep is None:
            return None
        name, values = arm.sweep
        return name, self.sweeps.get(arm.name, values)

    def resolve(
        self,
        scale: str,
        arms: Sequence[str] | None = None,
        seeds: int = 1,
        assignments: Sequence[str] = (),
    ) -> "ComparisonStudy":
        """See `Experiment.resolve`. A seed draws labels, reward model and policy; the SFT model is
        one for all of them."""
        return resolve(self, scale, arms, seeds, assignments)


@dataclass(frozen=True)
class ComparisonStudy(Study):
    """A comparison at one scale, resolved into steps."""

    experiment: Comparison
    protocol: Protocol
    arms: Sequence[Arm]
    runs: Sequence[Run]
    estimates: Sequence[Estimate]
    reference_samples: Step
    gold: Step

    @property
    def tuned(self) -> bool:
        """True where the settings are those that the tuning experiment chose."""
        declared = complete(self.experiment.scales[self.scale])
        swept = any(run.variant for run in self.runs)
        tuned = self.scale in self.experiment.tuned_scales
        return tuned and self.protocol == declared and not swept

    @property
    def brought(self) -> Mapping[str, Path]:
        return {thing.sha256: thing.path for thing in self._own().values() if thing.path}

    def _own(self) -> dict[str, Brought]:
        """What is the user's own, by the name that steps know it by."""
        imports = {f"{IMPORTED} {name}": thing for name, thing in self.experiment.imports.items()}
        return {**self.experiment.stages.brought, **imports}

    def steps(self) -> list[Step]:
        evaluations = (run.evaluation for run in self.runs)
        estimates = (estimate.step for estimate in self.estimates)
        return closure(
            [self.reference_samples, *evaluations, *estimates, *self.sweeps, *self.held_out]
        )

    @property
    def sweeps(self) -> list[Step]:
        """The sweeps of sampling temperatures, one a run; none where the experiment has none."""
        return [run.temperatures for run in self.runs if run.temperatures is not None]

    @property
    def held_out(self) -> list[Step]:
        """The views of held-out pairs, each once; none where there are no such pairs."""
        views = {step.fingerprint: step for run in self.runs for step in run.held_out or ()}
        return list(views.values())

    def kept(self) -> list[tuple[Step, str]]:
        estimates = {estimate.step.fingerprint: estimate.step for estimate in self.estimates}
        scored = (*estimates.values(), *(run.evaluation for run in self.runs), *self.sweeps)
        scored = (*scored, *self.held_out)
        return [(step, "scores.parquet") for step in scored]

    def forecast(self) -> Forecast | None:
        sizes = self.experiment.sizes.get(self.scale)
        declared: Any = self.experiment.scales[self.scale]
        names = ("corpus", "data", "start")  # the sizes are of the data and model as declared
        alike = all(getattr(declared, n, None) == getattr(self.protocol, n, None) for n in names)
        return Forecast(sizes, self.steps()) if sizes and alike else None

    def collect_text(self, results: Path, folder: Path) -> None:
        """tables/samples.parquet: the text that every final policy wrote; and chosen.parquet: for
        each prompt a chosen completion, of the SFT model where one labeller chose, or people's."""

        def of(run: Run) -> pd.DataFrame:
            table = pd.read_parquet(run.evaluation.folder(results) / "samples.parquet")
            return table.assign(run=run.evaluation.fingerprint[:8])

        tables = folder / "tables"
        tables.mkdir(exist_ok=True)
        table = conform(pd.concat([of(run) for run in self.runs], ignore_index=True), "samples")
        table.to_parquet(tables / "samples.parquet")
        labels: set[Any] = {
            step.recipe.get("labels") for step in self.steps() if step.stage == "pairs"
        } - {None}  # people's choices are no function of the gold reward
        (tables / CHOSEN_TEXTS).unlink(missing_ok=True)
        if len(labels) == 1:  # with several labellers there is no one chosen completion
            self._chosen_texts(results, *labels).to_parquet(tables / CHOSEN_TEXTS)
        elif self.held_out:
            self._peoples_texts(results).to_parquet(tables / CHOSEN_TEXTS)

    def _peoples_texts(self, results: Path) -> pd.DataFrame:
        """See `comparisons.peoples_choices`."""
        upstream = self.reference_samples.upstream["corpus"]
        pairs = pd.read_parquet(upstream.folder(results) / "all_pairs.parquet")
        prompts = pd.read_parquet(self.reference_samples.folder(results) / "scores.parquet")
        run = self.reference_samples.fingerprint[:8]
        return peoples_choices(pairs, prompts["prompt_id"], run)

    def _chosen_texts(self, results: Path, labels: LabelsSpec) -> pd.DataFrame:
        """See `comparisons.chosen_samples`."""
        from pipelines.shared.models import load_tokenizer  # loads torch, which planning need not

        folder = self.reference_samples.folder(results)
        sft = self.reference_samples.upstream["sft"].folder(results)
        tokenizer = load_tokenizer(sft / "checkpoint")
        texts = pd.read_parquet(folder / "completions.parquet")
        texts = texts[texts["sample"] < 2]

        def decoded(name: str) -> list[str]:
            ids = [list(row) for row in texts[name]]
            return tokenizer.batch_decode(ids, skip_special_tokens=True)

        texts = texts.assign(prompt=decoded("prompt_ids"), completion=decoded("completion_ids"))
        scores = pd.read_parquet(folder / "scores.parquet")
        run = self.reference_samples.fingerprint[:8]
        return chosen_samples(texts, scores, labels, run, tokenizer.eos_token_id)

    def manifest(self) -> dict[str, Any]:
        identities = {identity for step in self.steps() for identity in step.assets.values()}
        assets = [BY_IDENTITY[each] for each in identities & BY_IDENTITY.keys()]
        return {
            **super().manifest(),
            "reward_label": self.experiment.reward_label,
            "judge": self.experiment.judge,
            "papers": self.experiment.papers,
            "deviations": [dict(row) for row in self.experiment.deviations(self.protocol)],
            "trials": [dict(trial) for trial in self.experiment.trials],
            "tuning": self.experiment.tuning if self.tuned else "",
            "assets": [
                dataclasses.asdict(asset) for asset in sorted(assets, key=lambda asset: asset.name)
            ],
            "catalogue": [
                {
                    "arm": arm.name,
                    "family": arm.family,
                    "summary": arm.summary,
                    "setting": arm.sweep[0] if arm.sweep else "",
                    "coefficient": arm.coefficient,
                    "trains_on": arm.trains_on,
                }
                for arm in self.arms
            ],
            "estimates": [
                {
                    "arm": estimate.arm,
                    "seed": estimate.seed,
                    "variant": estimate.variant,
                    "step": estimate.step.fingerprint,
                }
                for estimate in self.estimates
            ],
            "arms": [
                {
                    "arm": run.arm,
                    "setting": run.setting,
                    "seed": run.seed,
                    "variant": run.variant,
                    "policy": run.policy.fingerprint,
                    "evaluation": run.evaluation.fingerprint,
                }
                for run in self.runs
            ],
            "temperatures": [
                {
                    "arm": run.arm,
                    "setting": run.setting,
                    "seed": run.seed,
                    "variant": run.variant,
                    "step": run.temperatures.fingerprint,
                }
                for run in self.runs
                if run.temperatures is not None
            ],
            "held_out": [
                {
                    "arm": run.arm,
                    "setting": run.setting,
                    "seed": run.seed,
                    "variant": run.variant,
                    "step": run.held_out[0].fingerprint,
                    "rewards": run.held_out[1].fingerprint,
                }
                for run in self.runs
                if run.held_out is not None
            ],
            "brought": {
                name: {"name": thing.name, "sha256": thing.sha256}
                for name, thing in self._own().items()
            },
            "reference_samples": self.reference_samples.fingerprint,
            "gold": self.gold.fingerprint,
        }

    def write_report(self, folder: Path) -> Written:
        from analysis.formats import in_words_of
        from analysis.report.views import headline_grid
        from analysis.report.write import write_report

        made = write_report(folder)
        headline = headline_grid(made["headline"])
        judged = {"judge": self.experiment.judge}
        columns = [(in_words_of(judged, name), right) for name, right in headline["columns"]]
        return Written(columns, headline["rows"], made["sentences"])


def complete(protocol: Protocol) -> Protocol:
    """`protocol` with the settings of every registered arm: its own where it does not set them."""
    own = {arm.settings.section: arm.settings for arm in ARMS.values() if arm.settings}
    return dataclasses.replace(protocol, arms={**own, **protocol.arms})


def resolve(
    experiment: Comparison,
    scale: str,
    arms: Sequence[str] | None = None,
    seeds: int = 1,
    assignments: Sequence[str] = (),
) -> ComparisonStudy:
    """An experiment with the user's choices, as steps; nothing is run.

    Args:
        arms: names to run, "all" for every registered one; None for the default ones. The SFT model
            and what is estimated from its samples are always there.
        seeds: how many; a seed draws labels, reward model and policy, the SFT model is one.
        assignments: `--set` arguments.

    Raises:
        UserError: an unknown scale, arm or setting, a value that does not fit, or an arm that
            cannot be made.
    """
    experiment.check(scale, arms, seeds)
    names, named = experiment.chosen(arms)
    chosen = [experiment.arms[name] for name in names]
    declared = complete(experiment.scales[scale])
    given = settings.parse(assignments, declared)
    read = {arm.settings.section for arm in chosen if arm.settings}
    sections = {arm.name: arm.settings.section for arm in ARMS.values() if arm.settings}
    settings.check_read(given, sections, names)
    _check_fixed(given, chosen)
    _check_declared(experiment.scales[scale], scale, chosen, given)
    swept = {sweep[0] for arm in chosen if (sweep := experiment.sweep(arm))}
    single = {name: values[0] for name, values in given.items() if len(values) == 1}

    def wanted(name: str) -> bool:
        return name not in given and name.partition(".")[0] in {"labels", "reward_model", *read}

    axes = {name: values for name, values in experiment.axes.items() if wanted(name)}
    axes |= {
        name: values for name, values in given.items() if len(values) > 1 and name not in swept
    }
    trials = [
        {name: value for name, value in trial.items() if wanted(name)}
        for trial in experiment.trials or [{}]
    ]
    tried = [{**axis, **trial} for axis in settings.combinations(axes) for trial in trials]
    combinations = [({**single, **values}, values) for values in tried]
    unswept = {name: value for name, value in single.items() if name not in swept}
    protocol = settings.apply(declared, {**unswept, **tried[0]})
    start = Start.of(protocol, experiment.at_scale.get(scale, experiment.stages))
    temperatures = TemperaturesSpec(experiment.temperatures) if experiment.temperatures else None
    runs: dict[str, Run] = {}
    estimates: dict[str, Estimate] = {}
    for everything, values in combinations:
        at = settings.apply(declared, everything)
        for seed in range(seeds):
            for arm in chosen:
                sweep = experiment.sweep(arm)
                if sweep is not None:
                    sweep = sweep[0], given.get(*sweep)
                for run in _runs(arm, sweep, at, seed, values, start, temperatures):
                    # The SFT model is judged by every reward model; other policies by one.
                    judged = run.evaluation if arm.name == "sft" else run.policy
                    known = runs.setdefault(f"{judged.fingerprint}-{seed}", run)
                    if known.arm != run.arm:
                        raise UserError(
                            f"arm {run.arm} makes the very policy of arm {known.arm}: name its "
                            "step after itself, or drop one of them"
                        )
                for estimate in _estimates(arm, at, seed, values, start):
                    estimates.setdefault(f"{estimate.step.fingerprint}-{arm.name}", estimate)
    return ComparisonStudy(
        experiment=experiment,
        scale=scale,
        protocol=protocol,
        folder_name=settings.folder_name(
            experiment.folder, scale, named, seeds, given, experiment.imports
        ),
        arms=chosen,
        runs=sorted(runs.values(), key=lambda run: (names.index(run.arm), run.variant, run.seed)),
        estimates=list(estimates.values()),
        reference_samples=start.reference_samples,
        gold=start.gold,
    )


def imported(name: str, thing: Brought) -> Arm:
    """An arm whose policy was trained elsewhere.

    Raises:
        UserError: the name is another arm's, or cannot be one.
    """
    if name in ARMS:
        raise UserError(f"--import {name}: is the name of an arm of this project: choose another")

    def policy(given: Ingredients) -> Step:
        return Step(
            stage=IMPORTED,
            label=name,
            function="pipelines.data.imported:adopt",
            version=1,
            recipe={},
            upstream={"sft": given.sft},
            assets={f"{IMPORTED} {name}": thing.sha256},
        )

    arm = Arm(name, "own", f"trained elsewhere: {thing.name}", policy=policy, trains_on="")
    check_arm(arm)
    return arm


def _check_declared(
    protocol: Protocol, scale: str, chosen: Sequence[Arm], given: Mapping[str, Any]
) -> None:
    """Raise `UserError` for an arm that a paper's preset has no settings for: an arm's own defaults
    are for models of less than a million weights."""
    if scale != PAPER:
        return
    for arm in chosen:
        section = arm.settings.section if arm.settings else None
        if section and section not in protocol.arms and f"{section}.learning_rate" not in given:
            raise UserError(
                f"arm {arm.name} has no settings at scale {scale}, and its defaults are for a far "
                f"smaller model: choose them, at least --set {section}.learning_rate=..."
            )


def _check_fixed(given: Mapping[str, Any], chosen: Sequence[Arm]) -> None:
    """Raise `UserError` for a setting that every arm that reads it has fixed."""
    for name in given:
        section = name.partition(".")[0]
        readers = [arm for arm in chosen if arm.settings and arm.settings.section == section]
        if readers and all(name in arm.fixed for arm in readers):
            raise UserError(
                f"--set {name}: arm {readers[0].name} is what it is by {name} = "
                f"{readers[0].fixed[name]}; choose another arm"
            )


@dataclass(frozen=True)
class Start:
    """What is the same for all seeds and all settings of the arms, and how pairs are made."""

    stages: Stages
    shared: Shared
    reference_samples: Step

    @classmethod
    def of(cls, protocol: Protocol, stages: Stages) -> "Start":
        made = stages.shared(protocol)
        sampled = reference_samples(protocol, made.corpus, made.gold, made.sft)
        return cls(stages, made, sampled)

    @property
    def gold(self) -> Step:
        return self.shared.gold


def _ingredients(protocol: Protocol, seed: int, setting: str, start: Start) -> Ingredients:
    """What an arm may be made from."""
    shared = start.shared
    pairs = start.stages.pairs(protocol, shared, seed)
    return Ingredients(
        protocol=protocol,
        seed=seed,
        setting=setting,
        corpus=shared.corpus,
        gold=shared.gold,
        sft=shared.sft,
        completions=shared.completions,
        pairs=pairs,
        reward_model=reward_model(protocol, shared.sft, shared.completions, pairs, seed),
        reference_logprobs=reference_logprobs(protocol, shared.sft, shared.completions),
        reference_samples=start.reference_samples,
    )


def _runs(
    arm: Arm,
    sweep: tuple[str, tuple[float, ...]] | None,
    protocol: Protocol,
    seed: int,
    values: Mapping[str, Any],
    start: Start,
    temperatures: TemperaturesSpec | None,
) -> list[Run]:
    """An arm at each value of its swept setting, for one seed and one combination of the axes."""
    if arm.policy is None:
        return []
    name, coefficients = sweep or ("", (None,))
    runs = []
    for coefficient in coefficients:
        own = {**arm.fixed, name: coefficient} if name else dict(arm.fixed)
        setting = f"{name.partition('.')[2]}{coefficient:g}" if name else ""
        given = _ingredients(settings.apply(protocol, own), seed, setting, start)
        step = arm.make(given)
        judged = evaluation(
            protocol, given.corpus, given.gold, given.sft, given.reward_model, step, seed
        )
        free = {key: value for key, value in values.items() if key not in own}
        variant = _variant(free, judged if arm.name == "sft" else step)
        swept = temperature_sweep(judged, temperatures) if temperatures else None
        compared = held_out(judged) if start.stages.human else None
        runs.append(Run(arm.name, coefficient, seed, variant, step, judged, swept, compared))
    return runs


def _estimates(
    arm: Arm, protocol: Protocol, seed: int, values: Mapping[str, Any], start: Start
) -> list[Estimate]:
    """The curve of an arm that trains nothing."""
    if arm.estimate is None:
        return []
    step = arm.estimate(_ingredients(protocol, seed, "", start))
    return [Estimate(arm.name, seed, _variant(values, step), step)]


def _variant(values: Mapping[str, Any], step: Step) -> str:
    """The axes' values that a step or what it stands on has in its recipe."""
    read = {section for made in closure([step]) for section in made.recipe}
    return settings.describe(
        {name: value for name, value in values.items() if name.partition(".")[0] in read}
    )
