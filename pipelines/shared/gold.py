"""The gold reward: what every arm is judged by.

It is one of three kinds, told apart by what a gold step's folder holds:

- classifier.joblib: TF-IDF + logistic regression on human labels; its log-odds for the whole text,
  as the DPO paper's controlled-sentiment experiment uses a sentiment classifier's (Rafailov et al.
  2023, section 6);
- reward.json with reward.py or checkpoint/: somebody's own Python function or classifier;
- checkpoint/ alone: a reward model that this project trained.
"""

import importlib.util
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from pipelines.shared.corpus import TEXTS
from pipelines.shared.errors import UserError
from pipelines.shared.specs import GoldSpec
from pipelines.shared.steps import Context

CLASSIFIER, SOURCE, FUNCTION = "classifier.joblib", "reward.py", "reward.json"  # files
MODULE = "own_reward"  # the name under which somebody's file is imported
BATCH = 64  # texts of a classifier's forward pass

# Called with a table of completions (prompt, completion, prompt_ids, completion_ids); returns their
# rewards, float64 of shape (rows,).
Gold = Callable[[pd.DataFrame], np.ndarray]


def fit(context: Context) -> None:
    """Step: fit on every split but the evaluation prompts' reviews; log the accuracy on those."""
    spec: GoldSpec = context.spec("gold")
    reviews = pd.read_parquet(context.inputs["corpus"] / TEXTS)
    held_out = reviews["split"] == "evaluation"
    classifier = make_pipeline(
        TfidfVectorizer(ngram_range=(1, spec.longest_ngram), sublinear_tf=True),
        LogisticRegression(C=spec.inverse_regularisation, max_iter=1000),
    )
    classifier.fit(reviews.loc[~held_out, "text"], reviews.loc[~held_out, "fresh"])
    joblib.dump(classifier, context.path / CLASSIFIER)
    tested = reviews[held_out]
    context.log(
        {
            "held_out_accuracy": float(classifier.score(tested["text"], tested["fresh"])),
            "held_out_reviews": len(tested),
            "held_out_majority": float(max(tested["fresh"].mean(), 1 - tested["fresh"].mean())),
        }
    )


def load_gold(folder: Path, device: str = "cpu") -> Gold:
    """The gold reward of a gold step's folder."""
    if (folder / CLASSIFIER).is_file():
        return _log_odds(joblib.load(folder / CLASSIFIER))
    if (folder / SOURCE).is_file():
        return _function(folder)
    return _sequence_classifier(folder / "checkpoint", device)


def _log_odds(classifier: Any) -> Gold:
    """Log-odds of a binary scikit-learn classifier, of prompt and completion as one text."""

    def gold(table: pd.DataFrame) -> np.ndarray:
        return classifier.decision_function((table["prompt"] + table["completion"]).tolist())

    return gold


def _function(folder: Path) -> Gold:
    """Somebody's function: called with prompts and completions (lists of text, without special
    tokens), returns a number for each of them."""
    name = json.loads((folder / FUNCTION).read_text())["function"]
    specification: Any = importlib.util.spec_from_file_location(MODULE, folder / SOURCE)
    module = importlib.util.module_from_spec(specification)
    sys.modules[MODULE] = module  # dataclasses look their module up
    try:
        specification.loader.exec_module(module)
        function = getattr(module, name)
    except Exception as error:
        raise UserError(f"--gold: {_told(error)} on reading {name}") from error

    def gold(table: pd.DataFrame) -> np.ndarray:
        given = {"prompts": table["prompt"].tolist(), "completions": table["completion"].tolist()}
        try:
            returned = function(**given)
        except Exception as error:
            raise UserError(f"--gold: {name} raised {_told(error)}") from error
        return checked(returned, table["completion"].tolist(), name)

    return gold


def _told(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def checked(returned: Any, completions: Sequence[str], name: str) -> np.ndarray:
    """What a reward function returned, as (N,) float64.

    Raises:
        UserError: it is not one finite number for each completion.
    """
    if isinstance(returned, str) or not isinstance(returned, Iterable):
        raise UserError(
            f"--gold: {name} returned a {type(returned).__name__}: it must return a list of "
            f"{len(completions)} numbers"
        )
    try:
        rewards = np.array([float(value) for value in returned])
    except (TypeError, ValueError) as error:
        raise UserError(f"--gold: {name} returned what are not numbers ({error})") from None
    if len(rewards) != len(completions):
        raise UserError(
            f"--gold: {name} returned {len(rewards)} rewards for {len(completions)} completions"
        )
    wrong = np.flatnonzero(~np.isfinite(rewards))
    if len(wrong):
        place = int(wrong[0])
        raise UserError(
            f"--gold: {name} gave {rewards[place]} for the completion "
            f"{completions[place][:60]!r}: a reward must be finite"
        )
    return rewards


def _sequence_classifier(folder: Path, device: str) -> Gold:
    """A classifier's score: its one logit, or the log-odds of the second of two labels.

    A reward model of this project reads the very token ids; another model reads prompt and
    completion as one text, in its own tokens.

    Raises:
        UserError: it has more than two labels; and, when called, a text is too long for it.
    """
    import torch

    from pipelines.shared.logprobs import pack
    from pipelines.shared.models import load_config, load_reward_model, load_tokenizer, rewards

    model, tokenizer = load_reward_model(folder, device), load_tokenizer(folder)
    own = not (folder.parent / FUNCTION).is_file()
    positions = getattr(load_config(folder), "max_position_embeddings", None) or math.inf
    longest = min(tokenizer.model_max_length, positions)
    batch = BATCH if own or tokenizer.pad_token_id is not None else 1  # nothing to pad with
    labels = model.config.num_labels
    if labels not in (1, 2):
        raise UserError(f"--gold: a classifier of {labels} labels: a reward needs one or two")

    def of_ids(table: pd.DataFrame) -> Any:
        prompts, completions = (
            part.map(list).tolist() for part in (table["prompt_ids"], table["completion_ids"])
        )
        sequences = pack(prompts, completions, tokenizer.pad_token_id, model.device)
        return rewards(model, sequences)

    def of_texts(table: pd.DataFrame) -> Any:
        texts = (table["prompt"] + table["completion"]).tolist()
        given = tokenizer(texts, padding=len(texts) > 1, padding_side="right", return_tensors="pt")
        length = given["input_ids"].shape[1]
        if length > longest:
            raise UserError(
                f"--gold: {length} tokens of prompt and completion, and the classifier reads "
                f"{longest}: lower data.max_length, or choose another"
            )
        logits = model(**given.to(model.device)).logits
        return logits[:, -1] - logits[:, 0] if labels == 2 else logits[:, 0]

    @torch.no_grad()
    def gold(table: pd.DataFrame) -> np.ndarray:
        scores = np.empty(len(table))
        order = np.argsort(-(table["prompt"].str.len() + table["completion"].str.len()).to_numpy())
        for first in range(0, len(order), batch):
            places = order[first : first + batch]
            part = table.iloc[places]
            scores[places] = (of_ids if own else of_texts)(part).double().cpu().numpy()
        return scores

    return gold
