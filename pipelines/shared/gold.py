"""The gold reward: what the simulated people like, and what every arm is judged by.

A TF-IDF + logistic-regression classifier of the human fresh/rotten labels. Its log-odds of "fresh"
for the whole text (prompt and completion) are the reward, as the DPO paper's controlled-sentiment
experiment uses a sentiment classifier's (Rafailov et al. 2023, section 6).
"""

from collections.abc import Sequence
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from pipelines.shared.specs import GoldSpec
from pipelines.shared.steps import Context


def fit(context: Context) -> None:
    """Step: fit on every split but the evaluation prompts' reviews; log the accuracy on those."""
    spec: GoldSpec = context.spec("gold")
    reviews = pd.read_parquet(context.inputs["corpus"] / "reviews.parquet")
    held_out = reviews["split"] == "evaluation"
    classifier = make_pipeline(
        TfidfVectorizer(ngram_range=(1, spec.longest_ngram), sublinear_tf=True),
        LogisticRegression(C=spec.inverse_regularisation, max_iter=1000),
    )
    classifier.fit(reviews.loc[~held_out, "text"], reviews.loc[~held_out, "fresh"])
    joblib.dump(classifier, context.path / "classifier.joblib")
    tested = reviews[held_out]
    context.log(
        {
            "held_out_accuracy": float(classifier.score(tested["text"], tested["fresh"])),
            "held_out_reviews": len(tested),
            "held_out_majority": float(max(tested["fresh"].mean(), 1 - tested["fresh"].mean())),
        }
    )


class GoldReward:
    """Callable: texts -> log-odds of "fresh", float64 of shape (texts,)."""

    def __init__(self, folder: Path) -> None:
        self.classifier = joblib.load(folder / "classifier.joblib")

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return self.classifier.decision_function(list(texts))
