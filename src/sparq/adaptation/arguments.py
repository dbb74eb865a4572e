"""What Hugging Face's Trainer is told of an adaptation: schedule, precision, checkpoints."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from transformers import TrainingArguments

from sparq.config import AdaptationConfig

SCHEDULES = {
    "constant": "constant_with_warmup",
    "linear": "linear",
    "cosine": "cosine",
    "inverse_sqrt": "inverse_sqrt",
}
logger = logging.getLogger(__name__)


def trainer_arguments(config: AdaptationConfig, folder: Path) -> TrainingArguments:
    """Translate a configuration; checkpoints go to the folder.

    A process trains on one GPU; several take a process each (torchrun).
    """
    made = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,  # an item of the stream is a whole batch
        gradient_accumulation_steps=config.accumulate,
        learning_rate=config.learning_rate,
        lr_scheduler_type=SCHEDULES[config.schedule],
        max_grad_norm=config.gradient_clip,
        bf16=config.precision == "bfloat16" and _multiplies_bfloat16(),
        fp16=config.precision == "float16",
        save_steps=config.save_every,
        save_total_limit=2,
        logging_steps=config.log_every,
        logging_nan_inf_filter=False,  # it would put earlier losses in the place of one that is not finite
        ignore_data_skip=True,  # the stream starts behind the batches that were seen
        accelerator_config={"dispatch_batches": False},
        report_to=[],
        disable_tqdm=True,
        seed=config.seed,
        use_cpu=not torch.cuda.is_available(),
    )
    # Else the Trainer would cut batches up between all GPUs that it sees, by threads, at places that mean nothing here.
    made._n_gpu = min(1, made.n_gpu)  # noqa: SLF001 - as transformers itself does where it wants one
    return made


def _multiplies_bfloat16() -> bool:
    """Whether the device has such arithmetic; a processor that emulates it is tens of times as slow."""
    processor = torch.cpu._is_avx512_bf16_supported, torch.cpu._is_amx_tile_supported  # noqa: SLF001, no public name
    if torch.cuda.is_available() or any(has() for has in processor):
        return True
    logger.warning("adaptation.precision: bfloat16 is emulated by this processor, which is slow; float32 instead")
    return False
