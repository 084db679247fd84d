"""`report`: the page of an experiment from a notebook's tables."""

import pandas as pd

from .._util.html_output import Html
from .._util.validation import checked
from ..activations import PairedActivations
from ..directions import SteeringVectors
from ..sweeps.sweep_table import factors_of, validated_sweep
from .results import REPORT, Results, Settings, estimator_of_vectors

EMPTY = pd.DataFrame()
MAX_LEVELS = 5  # a panel each, next to one of all questions


@checked
def report(
    table: pd.DataFrame,
    *,
    activations: PairedActivations | None = None,
    vectors: SteeringVectors | None = None,
    damage: pd.DataFrame | None = None,
    texts: pd.DataFrame | None = None,
    title: str = "Steering report",
    question: str = "",
    by: str = "answer",
    signal: str = "",
    noun: str = "questions",
    score: str = "accuracy",
    seed: int = 0,
) -> Html:
    """A report on a sweep: the verdict in the first line, the numbers behind it, and all evidence.

    Args:
        table: of `sweep` over questions with right answers. Rows without an answer are open prompts.
        activations: from `capture_pairs`, of the pairs that made the vectors: separation, PCA, agreement and
            confounds.
        vectors: that were swept.
        damage: from `damage`, at the layer that `choose` chooses (others are left out).
        texts: of `sweep(…, measure="generate")` over open prompts.
        title, question: free text.
        by: the factor by which effects are split.
        signal: what choice 0 says, such as "positive"; by default the value of `by` whose right answer it is.
        noun: what the questions are about, in the plural: "reviews".
        score: by which layer and multiplier are chosen on half of the questions (`choose`). The default is
            that of the controls that `sweep` runs at one condition; with others, give the score they have.
        seed: of all resampling.

    Returns:
        HTML, displayed in a notebook; `.save("report.html")` writes the page, which includes plotly.js (5 MB)
        and opens without a network.

    Raises:
        ValueError: columns are missing, or no question has an answer.
        ModelMismatchError: activations and vectors are of different models.

    Every statement is about the questions that had no part in choosing layer and multiplier.
    """
    from .page import report_page  # plotly

    table = validated_sweep(table, "prompt_id", "split", "answer", "text")
    factors_of(table, by)
    if (count := table[by].nunique()) > MAX_LEVELS:
        raise ValueError(
            f"by={by!r} has {count} values, at most {MAX_LEVELS} can be shown. Group them first."
        )
    questions = table[table["answer"].notna()]
    if not questions["split"].eq(REPORT).any():
        raise ValueError("the table has no answered questions with the split 'report': expected a sweep.")
    groups = activations.factors["group"].nunique() if activations is not None else 0
    settings = Settings(
        title=title,
        question=question,
        factor=by,
        signal=signal,
        noun=noun,
        score=score,
        estimator=estimator_of_vectors(vectors),
        folds=min(5, groups),
        seed=seed,
    )
    if texts is None:
        texts = table[table["answer"].isna() & table["text"].notna()]
    else:
        texts = validated_sweep(texts, "prompt_id", "text")
    damage = EMPTY if damage is None else validated_sweep(damage, "kl", "loss_change", producer="damage")
    return report_page(Results(settings, questions, texts, damage, EMPTY, None, activations, vectors))
