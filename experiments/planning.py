"""rlhf-vs-dpo plan: the steps, cached or to run, what each will take, and on what."""

import argparse

from rich.console import Console
from rich.table import Table

from experiments.estimates import Estimator
from experiments.forecast import H100, Forecast, Work, seconds
from experiments.progress import duration, seconds_left
from experiments.study import Study
from pipelines.shared.schedule import critical_path
from pipelines.shared.steps import Step, load_record

LIGHT = {"start", "corpus", "pairs"}  # stages without networks to speak of


def run(study: Study, options: argparse.Namespace, console: Console) -> int:
    """Print the plan of a study."""
    steps, estimator = study.steps(), Estimator(options.results, options.device)
    records = {step.fingerprint: load_record(step, options.results) for step in steps}
    todo = [step for step in steps if records[step.fingerprint] is None]
    costs = {step.fingerprint: estimator.cost(step) for step in todo}
    unknown = [step for step in todo if costs[step.fingerprint] is None]
    works = _works(study.forecast(), unknown)

    def taken(step: Step) -> float | None:
        cost = costs[step.fingerprint]
        return cost["seconds"] if cost else None

    path = [] if unknown else critical_path(todo, taken)
    table = Table(box=None, pad_edge=False)
    for column in ("stage", "label", "threads", "state"):
        table.add_column(column, justify="right" if column == "threads" else "left")
    for column in ("seconds", "TFLOP", "on path"):
        table.add_column(column, justify="right")
    for step in steps:
        record = records[step.fingerprint]
        cost = record["cost"] if record else costs[step.fingerprint]
        numbers = ["?", "?"]
        if cost:
            numbers = [f"{cost['seconds']:.1f}", f"{cost['flops'] / 1e12:.3f}"]
        elif step.fingerprint in works:
            work = works[step.fingerprint]
            numbers = [f"~{seconds(work, step, H100):,.0f}", f"~{work.flops / 1e12:,.0f}"]
        state = "[green]cached[/]" if record else "to run"
        on_path = "*" if step in path else ""
        table.add_row(step.stage, step.label, str(step.threads), state, *numbers, on_path)
    console.print(table)
    left = None if unknown else seconds_left(todo, estimator, options.cores)
    time_left = f", about {duration(left)} on {options.cores} cores" if left is not None else ""
    if unknown and not works:
        time_left = ", time unknown: nothing like it has run here yet"
    console.print(f"{len(todo)} of {len(steps)} steps to run{time_left}")
    if left is not None and todo:
        alone = sum(taken(step) or 0.0 for step in path)
        console.print(
            f"critical path (*): {' > '.join(step.stage for step in path)}: {duration(alone)}, "
            "however many cores"
        )
    if works:
        _tell_forecast(works, unknown, console)
    return 0


def _works(forecast: Forecast | None, steps: list[Step]) -> dict[str, Work]:
    """The work of the steps that nothing like has run, by fingerprint."""
    found = {step.fingerprint: forecast.work(step) for step in steps} if forecast else {}
    return {key: work for key, work in found.items() if work is not None}


def _tell_forecast(works: dict[str, Work], steps: list[Step], console: Console) -> None:
    """Hardware and hours, by arithmetic."""
    told = [step for step in steps if step.fingerprint in works]
    left_out = sorted({step.stage for step in steps if step.fingerprint not in works} - LIGHT)
    time = sum(seconds(works[step.fingerprint], step, H100) for step in told)
    flops = sum(work.flops for work in works.values())
    largest = max(told, key=lambda step: works[step.fingerprint].bytes)
    memory = works[largest.fingerprint].bytes
    fits = "fits" if memory < 0.8 * H100.memory else "does not fit"
    console.print(
        f"~: by arithmetic, nothing like it has run here: {flops / 1e18:.2g} EFLOP, about "
        f"{duration(time)} on one {H100.name} at {H100.training:.0%} of its peak in training and "
        f"{H100.reading:.0%} in passes without a gradient, one step after another"
        + (f"; without {', '.join(left_out)}" if left_out else "")
    )
    hint = "" if fits == "fits" else ": take --set weights.lora_rank=16"
    console.print(
        f"most memory: {largest.stage} {largest.label}, {memory / 1e9:.0f} GB of weights, "
        f"gradients and optimiser, activations not counted, which {fits} one {H100.name}{hint}"
    )
