"""The shared engine: the plain loop's results, with what conditions and prompts share computed once."""

__all__: list[str] = []
