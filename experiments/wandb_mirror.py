"""The tables and figures of a finished report as a wandb run: a mirror, never read back."""

import os

import pandas as pd

from experiments.study import Study
from pipelines.shared.errors import UserError
from pipelines.shared.specs import Runtime
from pipelines.shared.steps import digest


def check() -> None:
    """Raise `UserError` unless wandb has a key, or WANDB_MODE is offline or disabled."""
    import wandb

    local = os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun")
    if not local and not wandb.login(prompt=False):
        raise UserError(
            "--wandb: no key is known here; run `wandb login`, or set WANDB_MODE=offline to keep "
            "the metrics in files"
        )


def publish(study: Study, runtime: Runtime) -> None:
    """Log tables/*.csv and figures/*.png of the study to one run of its group."""
    import wandb

    folder = study.folder(runtime.results)
    with wandb.init(
        project="rlhf-vs-dpo",
        id=digest(study.manifest()["steps"]),
        group=runtime.experiment,
        job_type="report",
        name=study.folder_name,
        dir=runtime.results,
        resume="allow",
        settings=wandb.Settings(console="off", silent=True),
    ) as run:
        tables = {
            f"tables/{p.stem}": wandb.Table(dataframe=pd.read_csv(p))
            for p in (folder / "tables").glob("*.csv")
        }
        figures = {
            f"figures/{p.stem}": wandb.Image(str(p)) for p in (folder / "figures").glob("*.png")
        }
        run.log({**tables, **figures})
