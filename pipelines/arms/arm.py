"""What an arm of a comparison is: a name, its settings, and how it makes a policy from what all
arms share.
"""

import dataclasses
import hashlib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.data.specs import OwnProtocol, PretrainedProtocol
from pipelines.shared.errors import UserError
from pipelines.shared.specs import Protocol, SimulatedProtocol, Spec
from pipelines.shared.steps import Step, closure

FAMILIES = ("start", "supervised", "rl", "dpo", "sampling", "own")
TRAINS_ON = ("loss", "proxy", "scaled-proxy", "gold", "")
MARGINS = "margins"
TAKEN = frozenset(
    {
        "corpus",
        "gold",
        "sft",
        "completions",
        "pairs",
        "reward-model",
        "reference-logprobs",
        "reference-samples",
        "proxy-scores",
        "evaluation",
    }
)


@dataclass(frozen=True)
class Ingredients:
    """What the arms of one comparison share, as inert steps, for one seed.

    Attributes:
        protocol: with this arm's settings and coefficient applied.
        seed: of labels, reward model and training; the SFT model is one for all seeds.
        setting: the swept setting's value, as a part of a folder's name: "beta0.1", or "".
        pairs: labelled pairs of `completions`, which the SFT model sampled.
        reward_model: learnt from `pairs`.
        reference_logprobs: of `completions`, by the SFT model.
        reference_samples: of the SFT model on the evaluation prompts.
    """

    protocol: Protocol
    seed: int
    setting: str
    corpus: Step
    gold: Step
    sft: Step
    completions: Step
    pairs: Step
    reward_model: Step
    reference_logprobs: Step
    reference_samples: Step

    @property
    def label(self) -> str:
        """What tells this run from the arm's others in a folder's name: "beta0.1-s0"."""
        return f"{self.setting}-s{self.seed}" if self.setting else f"s{self.seed}"

    def step(self, name: str, spec: Spec, function: str, *reads: str, version: int = 1) -> Step:
        """A training step that reads the SFT model and the named ingredients.

        The code of a module outside this project is a part of the step's identity: edited, it is
        another step, and no stale result is reused.

        Args:
            name: of the arm: the step's stage.
            spec: its settings, the step's recipe.
            function: "package.module:function", called with a `Context`.
            reads: names of ingredients, besides sft.
            version: to be raised when the meaning of a function of this project changes.

        Raises:
            UserError: the name is another stage's.
        """
        if name in TAKEN:
            raise UserError(f"the step of an arm cannot be called {name}: a shared stage is")
        return Step(
            stage=name,
            label=self.label,
            function=function,
            version=version,
            recipe={spec.section: spec, **self.protocol.trained_by},
            seed=self.seed,
            threads=self.protocol.compute.arm_threads,
            upstream={"sft": self.sft, **{name: getattr(self, name) for name in reads}},
            assets=code_of(function),
        )

    def sampled_step(self, name: str, spec: Spec, function: str, judge: str) -> Step:
        """A training step that samples on the pairs' prompts and learns from a judge's scores.

        Args:
            name, spec, function: see `step`.
            judge: reward_model or gold.
        """
        step = self.step(name, spec, function, "corpus", judge)
        return dataclasses.replace(step, recipe={**step.recipe, "sampling": self.protocol.sampling})


def code_of(function: str) -> dict[str, str]:
    """What identifies a function of a user's own module: its name and its file's sha256."""
    module = function.partition(":")[0]
    if module.startswith("pipelines."):
        return {}
    file = getattr(importlib.import_module(module), "__file__", None)
    if file is None:
        raise UserError(f"{function}: its module has no file")
    return {f"code of {function}": hashlib.sha256(Path(file).read_bytes()).hexdigest()}


@dataclass(frozen=True)
class Arm:
    """One method of a comparison.

    Attributes:
        name: lower case with hyphens, as `--arms` takes it.
        family: one of `FAMILIES`: its colour in the figures.
        summary: one line for `list`.
        policy: makes the step that trains the policy; it must start from `Ingredients.sft`. None
            for an arm that is estimated from samples of the SFT model.
        estimate: for such an arm, the step with the samples or their scores.
        settings: the defaults of the arm's own section of the protocol; None where it has none.
        fixed: settings that make the arm what it is, such as {"ppo.kl_control": "adaptive"}.
        sweep: the setting that is swept by default, and its values.
        coefficient: True where the swept setting is the KL coefficient of the objective
            J = E[r] - c KL, which the arm then aims at.
        trains_on: what its training improves: "loss" (logged at start and end); the "proxy" or the
            "gold" reward less c KL; "scaled-proxy", the same with the rewards standardised within a
            prompt; or "" for nothing.
        needs: what the pairs must have besides a label: ("margins",) or nothing.
    """

    name: str
    family: str
    summary: str
    policy: Callable[[Ingredients], Step] | None = None
    estimate: Callable[[Ingredients], Step] | None = None
    settings: Spec | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    sweep: tuple[str, tuple[float, ...]] | None = None
    coefficient: bool = False
    trains_on: str = "loss"
    needs: tuple[str, ...] = ()

    def make(self, ingredients: Ingredients) -> Step:
        """The step of its policy.

        Raises:
            UserError: the arm does not start from the shared SFT model, needs pairs with margins
                and there are none, or its own function fails.
        """
        assert self.policy is not None
        if MARGINS in self.needs and not ingredients.protocol.margins:
            raise UserError(
                f"arm {self.name} needs pairs with margins, but these have only labels (as with "
                "labels.margins = false): drop that setting or the arm"
            )
        try:
            step = self.policy(ingredients)
        except UserError:
            raise
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            raise UserError(f"arm {self.name}: {type(error).__name__}: {reason}") from error
        if ingredients.sft.fingerprint not in {s.fingerprint for s in closure([step])}:
            raise UserError(
                f"arm {self.name} does not start from the shared SFT model: "
                "give its step upstream={'sft': ingredients.sft, ...}"
            )
        return step


def check(arm: Arm) -> None:
    """Raise `UserError` for an arm that cannot be part of a comparison."""
    if not arm.name or arm.name.strip("abcdefghijklmnopqrstuvwxyz0123456789-"):
        raise UserError(f"arm {arm.name!r}: name it with lower-case letters, digits and hyphens")
    for name, value, choices in (
        ("family", arm.family, FAMILIES),
        ("trains_on", arm.trains_on, TRAINS_ON),
    ):
        if value not in choices:
            raise UserError(f"arm {arm.name}: {name} = {value!r} is not one of {choices}")
    if (arm.policy is None) == (arm.estimate is None):
        raise UserError(f"arm {arm.name}: give either policy or estimate")
    if arm.estimate is not None and arm.family != "sampling":
        raise UserError(f"arm {arm.name}: estimate is for curves from the SFT model's samples")
    if set(arm.needs) - {MARGINS}:
        raise UserError(f"arm {arm.name}: needs = {arm.needs!r} is not (), ('{MARGINS}',)")
    if arm.settings is not None:
        _check_section(arm)
    for name, value in arm.fixed.items():
        _check_own(arm, "fixes", name, value)
    if arm.sweep is not None:
        swept, values = arm.sweep
        if not values:
            raise UserError(f"arm {arm.name}: sweeps {swept} over no values")
        for number in values:
            _check_own(arm, "sweeps", swept, number)
            if isinstance(number, bool | str):
                raise UserError(f"arm {arm.name}: sweeps {swept}, which is not a number")


def _check_section(arm: Arm) -> None:
    """The section must be a name, and not one that the protocol itself has."""
    assert arm.settings is not None
    section = arm.settings.section
    taken = {*dir(SimulatedProtocol()), *dir(OwnProtocol()), *dir(PretrainedProtocol())}
    if not section.isidentifier() or section in taken:
        raise UserError(
            f"arm {arm.name}: its settings' section {section!r} must be a Python name that the "
            "protocol does not use itself"
        )


def _check_own(arm: Arm, does: str, name: str, value: Any) -> None:
    """A setting that an arm sweeps or fixes must be one of its own, with a value that it takes."""
    section, _, field_name = name.partition(".")
    spec = arm.settings
    if spec is None or section != spec.section or field_name not in vars(spec):
        raise UserError(f"arm {arm.name}: {does} {name}, which is not one of its settings")
    dataclasses.replace(spec, **{field_name: value})  # checks its type and range
