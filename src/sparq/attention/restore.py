"""The attention of a saved model, put back on loading.

``transformers`` does not save which attention a model computes with, and ``from_pretrained`` alone gives the ordinary
softmax. The record that :func:`sparq.attention.install` leaves in the configuration is saved in ``config.json``;
beside a PEFT adapter, which has no configuration of its model, it is ``sparq_attention.json``, written by PEFT's own
``save_pretrained`` from when this module is imported. :func:`load_pretrained` reads both.
"""

# ruff: noqa: SLF001 - transformers has no public way to expect further weights in a folder

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import cached_file

from sparq.artifacts import write_text
from sparq.attention.install import ADDED_MODULES, CONFIG_KEY, SIMULATED, attention_modules, base_model, install
from sparq.attention.settings import AttentionSettings
from sparq.errors import UserError

ADAPTER_RECORD = "sparq_attention.json"
_WEIGHTS = "model.safetensors"
# What transformers calls a quantisation of ours → the module, of a higher room, that makes its layers known to it.
_QUANTISED = {SIMULATED: "sparq.quantization.simulate", "sparq_deployment": "sparq.deployment.in_torch"}
_HUB = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
_ADDED = re.compile(rf"\.({'|'.join(ADDED_MODULES)})\.\w+$")


def restore(model: Any, folder: str | Path | None = None, **hub: Any) -> Any:
    """Put the recorded attention back into a model that ``from_pretrained`` has read; without a record, do nothing.

    Args:
        model: a transformers causal LM.
        folder: where it was read from (a folder or a hub name), for learned sinks and gates; the name it remembers
            if None.
        hub: where on the hub, as for ``from_pretrained`` (``revision``, ``subfolder``, ``token`` and so on).

    Returns:
        The same model.

    Raises:
        UserError: the record is damaged, or what was learned is not where the model was read from.
    """
    record = getattr(model.config, CONFIG_KEY, None)
    if record is None:
        return model
    source = str(folder or model.name_or_path)
    settings = AttentionSettings.parse(record, f"{source}: {CONFIG_KEY}")
    install(model, **settings.record())
    places = dict(_added_parameters(model))
    saved = _saved(source, hub) if places else {}
    for name, parameter in places.items():
        if name not in saved:
            raise UserError(f"{source}: {name} is not among the weights, but {CONFIG_KEY} says that it was learned")
        with torch.no_grad():
            parameter.copy_(saved[name])
    return model


def load_pretrained(folder: str | Path, *, trainable: bool = False, **keywords: Any) -> Any:
    """Load a causal LM, or a PEFT adapter and the LM under it, with the attention that it was saved with.

    Args:
        folder: a folder or hub name of a model; or a folder of an adapter, whose base is loaded from where the
            adapter says.
        trainable: let an adapter be trained further.
        keywords: for ``AutoModelForCausalLM.from_pretrained``.

    Returns:
        The model; around an adapter, the PEFT model.

    Raises:
        UserError: a record is damaged, or what it needs is missing.
    """
    folder = str(folder)
    if (Path(folder) / "adapter_config.json").is_file():
        base = load_pretrained(_base_of_adapter(Path(folder)), **keywords)
        record = _adapter_record(Path(folder))
        if record is not None:
            install(base, **record.record())
        return PeftModel.from_pretrained(base, folder, is_trainable=trainable)
    hub = {key: keywords[key] for key in _HUB if key in keywords}
    config = AutoConfig.from_pretrained(folder, **hub)
    quantised = (getattr(config, "quantization_config", None) or {}).get("quant_method")
    if quantised in _QUANTISED:
        importlib.import_module(_QUANTISED[quantised])
    if getattr(config, CONFIG_KEY, None) is None:
        return AutoModelForCausalLM.from_pretrained(folder, **keywords)
    with _added_expected(config):
        model = AutoModelForCausalLM.from_pretrained(folder, **keywords)
    return restore(model, folder, **hub)


def _base_of_adapter(folder: Path) -> str:
    name = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if not name:
        raise UserError(f"{folder / 'adapter_config.json'}: does not say its base_model_name_or_path")
    return name


def _adapter_record(folder: Path) -> AttentionSettings | None:
    path = folder / ADAPTER_RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: damaged record ({error})") from error
    return AttentionSettings.parse(record, str(path))


def _added_parameters(model: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """Give the learned sinks and gates of a model, by the names they are saved under."""
    for name, module in attention_modules(model):
        for parameter_name, parameter in module.named_parameters(prefix=name):
            if _ADDED.search(parameter_name):
                yield parameter_name, parameter


def _saved(source: str, hub: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read the learned sinks and gates of a folder or hub name, from one file of weights or several."""
    index = _file(source, f"{_WEIGHTS}.index.json", hub)
    names = [_WEIGHTS]
    if index:
        names = sorted(
            {file for key, file in json.loads(index.read_text())["weight_map"].items() if _ADDED.search(key)}
        )
    found: dict[str, Tensor] = {}
    for name in names:
        path = _file(source, name, hub)
        if path is None:
            raise UserError(f"{source}: its learned sinks and gates need {name}, which is not there")
        with safe_open(path, framework="pt") as weights:
            found |= {key: weights.get_tensor(key) for key in list(weights.keys()) if _ADDED.search(key)}
    return found


def _file(source: str, name: str, hub: Mapping[str, Any]) -> Path | None:
    path = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **hub)
    return None if path is None else Path(path)


@contextlib.contextmanager
def _added_expected(config: Any) -> Iterator[None]:
    """Keep ``from_pretrained`` from reporting sinks and gates as unexpected: they are read once they have a place."""
    kind: Any = AutoModelForCausalLM._model_mapping[type(config)]
    before = kind._keys_to_ignore_on_load_unexpected
    kind._keys_to_ignore_on_load_unexpected = [*(before or []), _ADDED.pattern]
    try:
        yield
    finally:
        kind._keys_to_ignore_on_load_unexpected = before


def _record_with_adapters() -> None:
    """Make PEFT write the record beside every adapter that it saves, in a Trainer's checkpoints too."""
    save = PeftModel.save_pretrained

    @functools.wraps(save)
    def save_with_record(self: PeftModel, save_directory: str, *arguments: Any, **keywords: Any) -> None:
        save(self, save_directory, *arguments, **keywords)
        record = getattr(base_model(self).config, CONFIG_KEY, None)
        if record is not None and keywords.get("is_main_process", True):
            # An adapter that is not called "default" has a folder of its own inside.
            for pattern in ("adapter_config.json", "*/adapter_config.json"):
                for file in Path(save_directory).glob(pattern):
                    write_text(file.with_name(ADAPTER_RECORD), json.dumps(record, indent=2) + "\n")

    setattr(PeftModel, save.__name__, save_with_record)


_record_with_adapters()
