"""Adaptation of a language model to the four tasks: examples, starting points, LoRA, training."""
