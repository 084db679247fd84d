"""What grows in the study of growth, over which points."""

from dataclasses import dataclass

SHARED_EVERY, SHARED_LAST, PLAIN_EVERY = "every token", "last token", "every token, plain loop"


@dataclass(frozen=True)
class Study:
    """The sweep that is varied: its number of layers, multipliers and prompts, and claims in a prompt."""

    layers: int = 3
    multipliers: int = 2
    prompts: int = 8
    claims: int = 1


@dataclass(frozen=True)
class Growth:
    """What is varied, over which points; the plain loop does the first `plain` of them."""

    name: str
    title: str
    field: str
    points: tuple[int, ...]
    plain: int = 2


THINGS = (
    Growth("layers", "Layers", "layers", (1, 3, 10, 30)),
    Growth("multipliers", "Multipliers", "multipliers", (1, 2, 4, 8, 16)),
    Growth("prompts", "Prompts", "prompts", (4, 8, 16, 32, 64)),
    Growth("length", "Tokens in a prompt", "claims", (1, 4, 9, 19)),
)
