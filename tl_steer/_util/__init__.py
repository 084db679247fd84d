"""Argument validation, seeds, atomic file writes, logging: private, imports no other package of tl_steer."""

__all__: list[str] = []
