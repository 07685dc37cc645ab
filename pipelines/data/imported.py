"""A policy that was trained elsewhere, as an arm: on the same axes, by the same meter.

Where it was trained is not known here, so nothing is said of its cost, and that it stands on the
shared SFT model is the user's word: its KL is measured to that model whatever it grew from.
"""

from typing import Any

from pipelines.data import brought
from pipelines.data.start import load_causal
from pipelines.shared.errors import UserError
from pipelines.shared.models import load_tokenizer
from pipelines.shared.steps import Context
from pipelines.shared.training import PolicyWriter


def adopt(context: Context) -> None:
    """Step: write checkpoint/, with the shared tokenizer.

    Raises:
        UserError: it cannot be loaded, or does not read and write the shared tokens.
    """
    (name,) = context.step.assets
    folder = brought.of(context, name)
    tokenizer = load_tokenizer(context.inputs["sft"] / "checkpoint")
    own = load_tokenizer(folder).get_vocab()
    shared = tokenizer.get_vocab()
    # A token that was added as padding may be missing: no policy is meant to write it.
    wrong = sorted(
        token for token in own if shared.get(token) != own[token] and token != tokenizer.pad_token
    )
    missing = set(shared) - set(own) - {tokenizer.pad_token}
    if wrong or missing:
        raise UserError(
            f"--import {folder}: its tokens are not those of the shared SFT model (such as "
            f"{[*wrong, *sorted(missing)][0]!r}): only a policy with the same tokenizer has a KL "
            "to it"
        )
    try:
        model: Any = load_causal(folder)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"--import {folder}: cannot be loaded ({reason})") from None
    if model.get_input_embeddings().num_embeddings < len(tokenizer):
        model.resize_token_embeddings(len(tokenizer))
    writer = PolicyWriter(context, model, tokenizer)
    writer(1)  # step 0 of every arm is the SFT model
    writer.finish()
