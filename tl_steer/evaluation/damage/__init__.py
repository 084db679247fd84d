"""What steering costs on neutral text and in what it writes, and which doses are worth it."""

from .joined import effect_and_damage
from .means import mean_damage
from .passages import damage
from .ranges import usable_range
from .texts import text_damage

__all__ = ["damage", "effect_and_damage", "mean_damage", "text_damage", "usable_range"]
