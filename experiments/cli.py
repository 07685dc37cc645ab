"""The command line: rlhf-vs-dpo and a command; see COMMANDS.

Bad input ends in one line on stderr and exit status 2; a step that breaks in one line and status 1.
"""

import argparse
import importlib
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments import judge_options, plugins, study_options
from experiments.estimates import Estimator
from experiments.progress import Display, duration
from experiments.publish import collect, published_steps
from experiments.study import Choice, Study
from pipelines.arms import ARMS
from pipelines.shared.assets import default_cache, prepare
from pipelines.shared.errors import StepFailed, UserError, unknown
from pipelines.shared.executors import run_local
from pipelines.shared.ray_executor import run_ray
from pipelines.shared.specs import Runtime
from pipelines.shared.steps import is_storage_failure, load_record, partial_folders

COMMANDS = (
    *("list", "plan", "run", "report", "status", "claims", "judge", "label", "win-rates"),
    *("check-data", "export"),
)


class Parser(argparse.ArgumentParser):
    """argparse, with its errors as `UserError`: one line, exit status 2."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see `{self.prog} --help`)")


def parser() -> Parser:
    """The commands and their options."""
    main = Parser(
        prog="rlhf-vs-dpo", description="RLHF and DPO side by side, on shared data and models."
    )
    commands = main.add_subparsers(
        dest="command", metavar="{" + ",".join(COMMANDS) + "}", required=True
    )
    common = Parser(add_help=False)
    common.add_argument(
        "--results", type=Path, default=Path("results"), help="default: %(default)s"
    )
    common.add_argument(
        "--load",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="a Python file that registers arms of your own",
    )
    common.add_argument("--debug", action="store_true", help="show tracebacks")
    chosen = Parser(add_help=False)
    chosen.add_argument("experiment", help="see `rlhf-vs-dpo list`")
    chosen.add_argument("--scale", default="mini", help="default: %(default)s")
    chosen.add_argument("--arms", help="comma-separated, or all; see `list`")
    chosen.add_argument("--seeds", type=int, default=1, help="how many; default: %(default)s")
    chosen.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.FIELD=VALUE[,VALUE]",
        dest="assignments",
        help="change a setting; several values make an ablation axis",
    )
    machine = Parser(add_help=False)
    machine.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="CPU cores to fill")
    machine.add_argument(
        "--device",
        default="cpu",
        help="where models are trained and sampled: cpu, cuda, cuda:N, mps; default: %(default)s",
    )
    own = Parser(add_help=False)
    study_options.add_own(own)
    commands.add_parser("list", parents=[common], help="experiments, scales and arms")
    commands.add_parser(
        "plan", parents=[common, chosen, own, machine], help="the steps, cached or to run"
    )
    run = commands.add_parser(
        "run", parents=[common, chosen, own, machine], help="run what is not done, report"
    )
    run.add_argument(
        "--cache", type=Path, default=default_cache(), help="downloaded data; default: %(default)s"
    )
    run.add_argument(
        "--executor",
        choices=("local", "ray"),
        default="local",
        help="where the steps run: here, or on a Ray cluster; default: %(default)s",
    )
    run.add_argument(
        "--ray-address", metavar="ADDRESS", help="of the cluster; default: this node's, or its own"
    )
    run.add_argument(
        "--gradient-checkpointing",
        action="store_true",
        help="hold fewer activations, compute them twice",
    )
    run.add_argument(
        "--wandb", action="store_true", help="mirror metrics, tables and figures to wandb"
    )
    commands.add_parser(
        "report", parents=[common, chosen, own], help="tables, figures and report.html again"
    )
    commands.add_parser("status", parents=[common], help="what ran, is running, failed")
    study_options.add_claims(commands, common, chosen)
    own = Parser(add_help=False)
    study_options.add_own(own, prefix="own-")
    read = Parser(add_help=False, parents=[chosen, own])
    judge_options.add(commands, common, read)
    study_options.add_label(commands, common, read)
    study_options.add_win_rates(commands, common, chosen)
    study_options.add_check_data(commands, common, chosen)
    own = Parser(add_help=False)
    study_options.add_own(own)
    export = commands.add_parser(
        "export", parents=[common, chosen, own], help="pairs, frontier and samples for other tools"
    )
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to")
    return main


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    options = argparse.Namespace()
    try:
        if given and not given[0].startswith("-") and given[0] not in COMMANDS:
            raise unknown("command", given[0], COMMANDS)
        options = parser().parse_args(given)
        check_options(options)
        for file in options.load:
            plugins.load(file)
        # A log file has no width of its own: tables are not squeezed into 80 columns there.
        width = None if sys.stdout.isatty() else 160
        console = Console(highlight=False, soft_wrap=True, width=width)
        return COMMAND_FUNCTIONS[options.command](options, console)
    except (UserError, StepFailed) as error:
        if "--debug" in given:
            raise
        errors.print(f"rlhf-vs-dpo: {escape(str(error))}")
        return 2 if isinstance(error, UserError) else 1
    except OSError as error:
        results = getattr(options, "results", None)
        if "--debug" in given or results is None or not is_storage_failure(error, results):
            raise
        errors.print(
            f"rlhf-vs-dpo: cannot write: {escape(str(error))}: free some space or choose --results"
        )
        return 2
    except KeyboardInterrupt:
        errors.print(
            "rlhf-vs-dpo: interrupted; finished steps are kept, run the same command to go on"
        )
        return 130


def _study(options: argparse.Namespace) -> Study:
    from experiments import registry  # loads pandas, which --help need not wait for

    return registry.chosen(options)


def list_command(options: argparse.Namespace, console: Console) -> int:
    from experiments import registry

    shared = None
    for experiment in registry.EXPERIMENTS.values():
        choices = experiment.choices()
        console.print(f"[bold]{experiment.name}[/]  {experiment.question}")
        console.print(f"  scales: {', '.join(experiment.scales)}")
        default = [name for name, choice in choices.items() if choice.default or choice.always]
        if choices.keys() == ARMS.keys():
            shared = shared or choices
            console.print(f"  arms: {', '.join(default)}; --arms takes any below, or all")
        else:
            _list_arms(choices, console)
    if shared:
        console.print("[bold]arms of comparisons[/], with the setting that is swept")
        _list_arms(shared, console, shared=True)
    return 0


def _list_arms(choices: Mapping[str, Choice], console: Console, shared: bool = False) -> None:
    width = max(map(len, choices))
    for arm, choice in choices.items():
        swept = ""
        if choice.sweep:
            values = ", ".join(f"{value:g}" for value in choice.sweep[1])
            swept = f"  [dim]{choice.sweep[0]} = {values}[/]"
        if not (shared or choice.default):
            swept += "  [dim](only where named)[/]"
        console.print(f"  {arm:<{width}}  {escape(choice.summary)}{swept}")


def plan_command(options: argparse.Namespace, console: Console) -> int:
    from experiments import planning

    return planning.run(_study(options), options, console)


def run_command(options: argparse.Namespace, console: Console) -> int:
    from experiments import wandb_mirror

    study, started = _study(options), time.monotonic()
    if options.wandb:
        wandb_mirror.check()
    check_writable(options.results)
    if options.executor == "local":  # else the nodes have it, not necessarily this machine
        check_device(options.device)
    runtime = Runtime(
        results=options.results.resolve(),
        cache=options.cache,
        device=options.device,
        gradient_checkpointing=options.gradient_checkpointing,
        wandb=options.wandb,
        experiment=study.folder_name,
        brought=study.brought,
    )
    steps = study.steps()
    todo = [step for step in steps if load_record(step, runtime.results) is None]
    prepare((identity for step in todo for identity in step.assets.values()), runtime.cache)
    console.print(
        f"[bold]{study.experiment.name}[/] at scale {study.scale}: {study.experiment.question}"
    )
    with Display(
        steps, Estimator(runtime.results, options.device), options.cores, console
    ) as display:
        predict = display.estimator.cost
        if options.executor == "ray":
            run_ray(steps, runtime, options.ray_address, display.tell, predict)
        else:
            run_local(steps, runtime, options.cores, display.tell, predict)
    reused = display.reused
    console.print(
        f"every step was reused ({reused} of {reused})"
        if reused == len(steps)
        else f"{len(steps) - reused} steps run, {reused} reused"
    )
    collect(study, runtime.results)
    _report(study, options.results, console)
    if options.wandb:
        wandb_mirror.publish(study, runtime)
    console.print(f"[dim]{duration(time.monotonic() - started)} in all[/]")
    return 0


def report_command(options: argparse.Namespace, console: Console) -> int:
    """Remake tables, figures and report, from the runs or else from what was published."""
    study = _study(options)
    published = (study.folder(options.results) / "manifest.json").is_file()
    if not published or all(load_record(step, options.results) for step in study.steps()):
        collect(study, options.results)  # names the first step that is missing, if one is
    elif published_steps(study.folder(options.results)) != study.manifest()["steps"]:
        console.print(
            "[yellow]this study was published with other settings or versions than today's; "
            "it is shown as it was published[/]"
        )
    _report(study, options.results, console)
    return 0


def _report(study: Study, results: Path, console: Console) -> None:
    folder = study.folder(results)
    written = study.write_report(folder)
    table = Table(box=None, pad_edge=False)
    for heading, numeric in written.columns:
        table.add_column(heading, justify="right" if numeric else "left")
    for row in written.rows:
        table.add_row(*row)
    console.print(table)
    for sentence in written.sentences:
        console.print(f"- {escape(sentence)}")
    console.print(f"report: {escape(str(folder / 'report.html'))}")


def status_command(options: argparse.Namespace, console: Console) -> int:
    runs = options.results / "runs"
    begun = list(partial_folders(options.results))
    partial = [folder for folder, alive in begun if alive]
    dead = [folder for folder, alive in begun if not alive]
    failed, done = sorted(runs.glob("*/failed-*")), sorted(runs.glob("*/[!.]*/record.json"))
    done = [record for record in done if record.parent not in failed]
    for folder in (record.parent for record in done):
        console.print(f"[green]done[/]         {folder.parent.name}/{folder.name}")
    for folder in partial:
        console.print(
            f"[yellow]running[/]      {folder.parent.name}/{folder.name.removeprefix('.partial-')}"
        )
    for folder in dead:
        console.print(
            f"[yellow]interrupted[/]  {folder.parent.name}/{folder.name.removeprefix('.partial-')}"
        )
    for folder in failed:
        lines = (
            (folder / "error.txt").read_text().splitlines()
            if (folder / "error.txt").is_file()
            else []
        )
        reason = lines[-1] if lines else "see output.log"
        console.print(f"[red]failed[/]       {folder.parent.name}/{folder.name}: {escape(reason)}")
    reports = sorted((options.results / "experiments").glob("*/report.html"))
    for report in reports:
        console.print(f"[bold]report[/]       {escape(str(report))}")
    console.print(
        f"{len(done)} done, {len(partial)} running, {len(dead)} interrupted, {len(failed)} failed, "
        f"{len(reports)} reports in {escape(str(options.results))}"
    )
    return 0


def check_options(options: argparse.Namespace) -> None:
    """Raise `UserError` for what can be seen to be wrong before any work."""
    if getattr(options, "ray_address", None) and options.executor != "ray":
        raise UserError("--ray-address is for --executor ray")
    if getattr(options, "executor", "") == "ray" and ":" in options.device:
        raise UserError(f"--device {options.device}: on a cluster Ray says which: name cuda")
    if getattr(options, "cores", 1) < 1:
        raise UserError(f"--cores {options.cores}: must be at least 1")
    if options.results.exists() and not options.results.is_dir():
        raise UserError(f"--results {options.results} is a file: name a folder")


def check_device(device: str) -> None:
    """Raise `UserError` for a device that PyTorch does not have here."""
    if device == "cpu":
        return
    if not re.fullmatch(r"cuda(:\d+)?|mps", device):
        raise UserError(f"--device {device}: must be cpu, cuda, cuda:N or mps")
    import torch

    kind, _, number = device.partition(":")
    # Asked so that nothing is put on the device: this process only waits for others.
    if kind == "mps":
        count = int(torch.backends.mps.is_available())
    else:
        count = torch.cuda.device_count()
    if int(number or 0) >= count:
        raise UserError(
            f"--device {device}: cannot be used here (PyTorch sees {count} of its kind)"
        )


def check_writable(results: Path) -> None:
    """Raise `UserError` unless a file can be written below `results`."""
    try:
        results.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=results) as probe:
            probe.write(b"\0" * 65536)
            probe.flush()
    except OSError as error:
        raise UserError(
            f"cannot write to the results folder {results} ({error.strerror}): "
            "make it writable, free some space, or choose another with --results"
        ) from None


def _later(module: str) -> Callable[[argparse.Namespace, Console], int]:
    """`run` of a module of experiments/ that is imported when it is called."""

    def run(options: argparse.Namespace, console: Console) -> int:
        return importlib.import_module(f"experiments.{module}").run(options, console)

    return run


COMMAND_FUNCTIONS: dict[str, Callable[[argparse.Namespace, Console], int]] = {
    "list": list_command,
    "plan": plan_command,
    "run": run_command,
    "report": report_command,
    "status": status_command,
    "claims": _later("claims_command"),
    "judge": _later("judge_command"),
    "label": _later("label_command"),
    "win-rates": _later("win_rates_command"),
    "check-data": _later("check_data_command"),
    "export": _later("export_command"),
}

if __name__ == "__main__":
    sys.exit(main())
