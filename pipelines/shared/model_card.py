"""The card of a checkpoint: where it comes from, so that it can leave this project's folders."""

import json

from pipelines.shared.steps import Step, canonical

CARD = "README.md"


def model_card(step: Step) -> str:
    """Markdown with the metadata that the hub reads, and the step's identity in full."""
    upstream = [
        f"| {name} | {made.stage} {made.label} | `{made.fingerprint}` |"
        for name, made in step.upstream.items()
    ]
    assets = [f"| {name} | sha256 | `{digest}` |" for name, digest in step.assets.items()]
    recipe = json.dumps(canonical(dict(step.recipe)), indent=1, sort_keys=True)
    lines = [
        "---",
        "library_name: transformers",
        "tags:",
        "- rlhf-vs-dpo",
        f"- {step.stage}",
        "---",
        "",
        f"# {step.stage} {step.label}",
        "",
        f"Made by rlhf-vs-dpo's step `{step.fingerprint}` (version {step.version}, seed "
        f"{step.seed}, {step.threads} CPU threads).",
        "",
        "| reads | made by | fingerprint |",
        "| --- | --- | --- |",
        *upstream,
        *assets,
        "",
        "```json",
        recipe,
        "```",
    ]
    return "\n".join(lines) + "\n"
