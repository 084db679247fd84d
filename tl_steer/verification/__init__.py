"""`verify`: whether what this package promises holds on the user's own model."""

from .shown import shown, summary
from .verify import verify

__all__ = ["shown", "summary", "verify"]
