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
from collections.abc import Callable, Sequence
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
    """Somebody's function: called with prompts and completions (lists of text), returns a number
    for each of them."""
    name = json.loads((folder / FUNCTION).read_text())["function"]
    specification: Any = importlib.util.spec_from_file_location("own_reward", folder / SOURCE)
    module = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
        function = getattr(module, name)
    except Exception as error:
        raise UserError(f"--gold: {type(error).__name__} on reading {name}: {error}") from error

    def gold(table: pd.DataFrame) -> np.ndarray:
        given = {"prompts": table["prompt"].tolist(), "completions": table["completion"].tolist()}
        try:
            returned = function(**given)
        except Exception as error:
            raise UserError(f"--gold: {name} raised {type(error).__name__}: {error}") from error
        return checked(returned, given["completions"], name)

    return gold


def checked(returned: Any, completions: Sequence[str], name: str) -> np.ndarray:
    """What a reward function returned, as (N,) float64.

    Raises:
        UserError: it is not one finite number for each completion.
    """
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


def check_classifier(folder: Path) -> None:
    """Raise `UserError` unless a folder has a sequence classifier of one or two labels."""
    from pipelines.shared.models import load_config

    kinds = load_config(folder).architectures or []
    if not any("SequenceClassification" in kind for kind in kinds):
        raise UserError(
            f"--gold {folder}: is no sequence classifier (its architectures: "
            f"{', '.join(kinds) or 'none'}): name one, or a function as FILE.py:FUNCTION"
        )


def _sequence_classifier(folder: Path, device: str) -> Gold:
    """A classifier's score: its one logit, or the log-odds of the second of two labels.

    A reward model of this project reads the very token ids; another model reads prompt and
    completion as one text, in its own tokens, cut at its own length.
    """
    import torch

    from pipelines.shared.logprobs import pack
    from pipelines.shared.models import load_reward_model, load_tokenizer, rewards

    model, tokenizer = load_reward_model(folder, device), load_tokenizer(folder)
    own = not (folder.parent / FUNCTION).is_file()
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
        given = tokenizer(
            texts, padding=True, padding_side="right", truncation=True, return_tensors="pt"
        )
        logits = model(**given.to(model.device)).logits
        return logits[:, -1] - logits[:, 0] if labels == 2 else logits[:, 0]

    @torch.no_grad()
    def gold(table: pd.DataFrame) -> np.ndarray:
        scores = np.empty(len(table))
        order = np.argsort(-(table["prompt"].str.len() + table["completion"].str.len()).to_numpy())
        for first in range(0, len(order), BATCH):
            places = order[first : first + BATCH]
            part = table.iloc[places]
            scores[places] = (of_ids if own else of_texts)(part).double().cpu().numpy()
        return scores

    return gold
