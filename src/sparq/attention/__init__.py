"""Outlier-free attention: the definitions, the same on fused kernels, and both inside Hugging Face models."""

from sparq.attention.fused import fused_attention
from sparq.attention.install import install, installed
from sparq.attention.restore import load_pretrained, restore
from sparq.attention.settings import AttentionSettings
from sparq.attention.softmax import FUSED_SINKS, SINKS, attention, probabilities

__all__ = [
    "FUSED_SINKS",
    "SINKS",
    "AttentionSettings",
    "attention",
    "fused_attention",
    "install",
    "installed",
    "load_pretrained",
    "probabilities",
    "restore",
]
