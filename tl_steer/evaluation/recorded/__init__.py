"""Answers that were recorded elsewhere, as the table that a sweep makes."""

from .table import read_recorded

__all__ = ["read_recorded"]
