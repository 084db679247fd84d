"""The results of the plain loop; what conditions and prompts have in common is computed once."""

__all__: list[str] = []
