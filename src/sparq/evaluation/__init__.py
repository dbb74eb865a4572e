"""How good a model is: perplexity, word errors, outliers, and what quantisation costs."""

from __future__ import annotations

from sparq.evaluation.degradation import Scores, average_drop
from sparq.evaluation.outliers import OutlierReport, outliers
from sparq.evaluation.perplexity import Likelihood, perplexity
from sparq.evaluation.recognition import WordErrors, word_error_rate

__all__ = [
    "Likelihood",
    "OutlierReport",
    "Scores",
    "WordErrors",
    "average_drop",
    "outliers",
    "perplexity",
    "word_error_rate",
]
