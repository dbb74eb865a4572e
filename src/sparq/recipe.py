"""A recipe: one YAML file that says everything a run does, read into one frozen object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sparq.config import (
    AdaptationConfig,
    AttentionConfig,
    CorpusConfig,
    EvaluationConfig,
    ModelConfig,
    QuantizationRow,
    VocabularyConfig,
    VocoderTrainingConfig,
)
from sparq.errors import UserError
from sparq.schema import did_you_mean, key, parse, read_yaml, with_overrides

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run: corpus → vocabulary → adaptation of each attention variant → quantisation → evaluation.

    Attributes:
        name: names the run and its folder.
        description: one or two sentences for the report.
        corpus, vocabulary, model, attention, adaptation, vocoder, quantization, evaluation: settings of the parts.
        output: folder of the run; null for "runs/<name>".
    """

    name: str = key(pattern=r"[A-Za-z0-9][A-Za-z0-9._-]*")
    description: str = ""
    corpus: CorpusConfig
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    adaptation: AdaptationConfig
    vocoder: VocoderTrainingConfig = field(default_factory=VocoderTrainingConfig)
    quantization: tuple[QuantizationRow, ...] = ()
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    output: str | None = None

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return Path(self.output or f"runs/{self.name}")


def shipped_recipes() -> list[str]:
    """Name the recipes that ship with SpARQ."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply ``key=value`` overrides.

    Args:
        name_or_path: the name of a shipped recipe, or a YAML file.
        overrides: such as ``adaptation.learning_rate=1e-3`` or ``corpus.sources.0.limit=100``; values are YAML.

    Raises:
        UserError: there is no such recipe, or a key or value in it is wrong.
    """
    path, where = Path(name_or_path), str(name_or_path)
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise UserError(f"{where}: there is no such recipe file")
    elif where in shipped_recipes():
        path = RECIPES / f"{where}.yaml"
        where = path.name
    else:
        raise UserError(f"{where}: there is no recipe of this name ({did_you_mean(where, shipped_recipes())})")
    try:
        data = read_yaml(path.read_text(encoding="utf-8"), where)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: cannot be read ({error})") from error
    return parse(Recipe, with_overrides(data, overrides), where)
