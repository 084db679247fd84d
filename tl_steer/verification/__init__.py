"""`verify`: check the package's guarantees on the user's own model."""

from ._verify import format_table, summary, verify

__all__ = ["format_table", "summary", "verify"]
