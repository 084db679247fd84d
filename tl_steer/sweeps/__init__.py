"""Sweeps over vectors, layers and multipliers, and damage to predictions on neutral text."""

from ._damage import damage
from ._sweep import sweep
from .ray_cluster import ray_executor

__all__ = ["damage", "ray_executor", "sweep"]
