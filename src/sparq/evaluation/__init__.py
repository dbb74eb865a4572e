"""How good a model is: perplexity, word errors, outliers, and what quantisation costs."""

from __future__ import annotations

from sparq.evaluation.degradation import Scores, average_drop
from sparq.evaluation.linear_inputs import InputReport, linear_inputs
from sparq.evaluation.outliers import OutlierReport, outliers
from sparq.evaluation.perplexity import Likelihood, perplexity
from sparq.evaluation.recognition import WordErrors, word_error_rate
from sparq.evaluation.sinks import SinkReport, sinks

__all__ = [
    "InputReport",
    "Likelihood",
    "OutlierReport",
    "Scores",
    "SinkReport",
    "WordErrors",
    "average_drop",
    "linear_inputs",
    "outliers",
    "perplexity",
    "sinks",
    "word_error_rate",
]
