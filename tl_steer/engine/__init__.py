"""Runs prompts under operations: padded batches, and plain forward passes over them."""

from .batches import BATCH_TOKENS, Batch, batches, left_padded, logits_of, residual

__all__ = ["BATCH_TOKENS", "Batch", "batches", "left_padded", "logits_of", "residual"]
