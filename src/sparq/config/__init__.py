"""The settings of every part of a run, typed and frozen; :mod:`sparq.recipe` puts them together.

Where the paper gives a value (appendix E), it is the default. Paths are taken from the folder the command runs in.
Wherever a part can be had ready made, its key ``name`` says which: the name of weights that ship with SpARQ, or a
folder (for encoders and language models also the name of a model on a hub); without it the part is made by the run.
"""

from __future__ import annotations

from sparq.config.adaptation import (
    FINETUNING_METHODS,
    INITIALISATIONS,
    LORA_TARGETS,
    TASKS,
    AdaptationConfig,
    CurriculumConfig,
    EarlyStoppingConfig,
    LoraConfig,
    QloraConfig,
)
from sparq.config.augmentation import AugmentationConfig
from sparq.config.corpus import (
    KINDS,
    LAYOUTS,
    CorpusConfig,
    EncoderConfig,
    SourceConfig,
    UnitsConfig,
    VocabularyConfig,
)
from sparq.config.evaluation import (
    EvaluationConfig,
    RecordingConfig,
)
from sparq.config.model import (
    SINKS,
    AttentionConfig,
    ClippingConfig,
    GatingConfig,
    ModelConfig,
)
from sparq.config.quantization import (
    QUANTIZATION_METHODS,
    QUANTIZATION_ROUNDINGS,
    QuantizationRow,
)
from sparq.config.vocoder import (
    VocoderTrainingConfig,
)

__all__ = [
    "FINETUNING_METHODS",
    "INITIALISATIONS",
    "KINDS",
    "LAYOUTS",
    "LORA_TARGETS",
    "QUANTIZATION_METHODS",
    "QUANTIZATION_ROUNDINGS",
    "SINKS",
    "TASKS",
    "AdaptationConfig",
    "AttentionConfig",
    "AugmentationConfig",
    "ClippingConfig",
    "CorpusConfig",
    "CurriculumConfig",
    "EarlyStoppingConfig",
    "EncoderConfig",
    "EvaluationConfig",
    "GatingConfig",
    "LoraConfig",
    "ModelConfig",
    "QloraConfig",
    "QuantizationRow",
    "RecordingConfig",
    "SourceConfig",
    "UnitsConfig",
    "VocabularyConfig",
    "VocoderTrainingConfig",
]
