"""`verify`: whether what this package promises holds on the user's own model."""

from ._verify import verify
from .format_table import shown, summary

__all__ = ["shown", "summary", "verify"]
