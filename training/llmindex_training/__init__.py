"""Adaptation: pairs, contrastive LoRA training, evaluation, and what the adaptation changed."""
