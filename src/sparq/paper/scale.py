"""Scales: at what size the paper's tables are measured, from two cores in a night to the paper's own.

A scale is a recipe and what differs from it where the model is adapted in full, by LoRA or by QLoRA, as ``key=value``
settings. Its file is ``scales/NAME.yaml``; a path to a file of one's own is as good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sparq.config import QuantizationRow
from sparq.errors import UserError
from sparq.recipe import Recipe, load_recipe
from sparq.schema import did_you_mean, key, parse, read_yaml

SCALES = Path(__file__).parent / "scales"
RANK = 256
"""Rank and alpha of the paper's adapters (E.1)."""


@dataclass(frozen=True)
class Adaptation:
    """How a model of a table is adapted.

    Attributes:
        method: "full", "lora" or "qlora".
        rank: of the adapters, as the paper has it; a scale divides it.
        bits: of the frozen base under QLoRA.
    """

    method: str = "full"
    rank: int = RANK
    bits: int = 8

    @property
    def name(self) -> str:
        """A name for folders: "full", "lora-256", "qlora8-256"."""
        if self.method == "full":
            return "full"
        bits = str(self.bits) if self.method == "qlora" else ""
        return f"{self.method}{bits}-{self.rank}"


FULL = Adaptation()


@dataclass(frozen=True, kw_only=True)
class Scale:
    """One size.

    Attributes:
        name: of the scale.
        description: one or two sentences for the page of results.
        recipe: the recipe whose corpus, model and scoring are used.
        stands_for: the paper's model whose printed numbers stand beside the measured ones.
        rank_divisor: the paper's ranks are divided by it, as the model is narrower.
        settings: what differs from the recipe in every cell.
        full, lora, qlora: what differs besides, where a model is adapted so.
        quantization: what the methods are given; method and widths are the table's.
    """

    name: str = key(pattern=r"[A-Za-z0-9][A-Za-z0-9._-]*")
    description: str
    recipe: str
    stands_for: str = key(choices=("OPT-125m", "OPT-350m", "OPT-1.3b"))
    rank_divisor: int = key(1, minimum=1)
    settings: tuple[str, ...] = ()
    full: tuple[str, ...] = ()
    lora: tuple[str, ...] = ()
    qlora: tuple[str, ...] = ()
    quantization: QuantizationRow = field(default_factory=QuantizationRow)

    @property
    def folder(self) -> str:
        """Where its models and scores are made."""
        return f"runs/paper-{self.name}"

    def cell(self, adaptation: Adaptation, seed: int, overrides: Sequence[str] = ()) -> Recipe:
        """Give the recipe of the models that are adapted in one way.

        Args:
            adaptation: method and rank.
            seed: of the order of batches, of dropout, of adapters and new embeddings.
            overrides: ``key=value`` settings of the user, which have the last word.
        """
        method = {"full": self.full, "lora": self.lora, "qlora": self.qlora}[adaptation.method]
        rank = max(1, adaptation.rank // self.rank_divisor)
        adapters = [f"adaptation.lora.rank={rank}", f"adaptation.lora.alpha={rank}"]
        own = [f"adaptation.method={adaptation.method}", *([] if adaptation.method == "full" else adapters)]
        if adaptation.method == "qlora":
            own.append(f"adaptation.qlora.bits={adaptation.bits}")
        fixed = [f"output={self.folder}", "quantization=[]", "evaluation.recordings=[]", "evaluation.spoken=[]"]
        return load_recipe(self.recipe, [*fixed, *self.settings, *method, *own, f"adaptation.seed={seed}", *overrides])


def shipped_scales() -> list[str]:
    """Name the scales that ship with SpARQ."""
    return sorted(path.stem for path in SCALES.glob("*.yaml"))


def load_scale(name_or_path: str) -> Scale:
    """Read a scale: one that ships, or a YAML file.

    Raises:
        UserError: there is no such scale, or a key or value in it is wrong.
    """
    path = Path(name_or_path)
    if path.suffix not in {".yaml", ".yml"}:
        if name_or_path not in shipped_scales():
            raise UserError(f"--scale: {name_or_path} (there is none; {did_you_mean(name_or_path, shipped_scales())})")
        path = SCALES / f"{name_or_path}.yaml"
    try:
        data = read_yaml(path.read_text(encoding="utf-8"), str(name_or_path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--scale: {name_or_path}: cannot be read ({error})") from error
    return parse(Scale, data, str(name_or_path))
