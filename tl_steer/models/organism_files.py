"""Where the model organisms lie: small models with a planted truth, which come with the package."""

from importlib import resources
from pathlib import Path

ORGANISMS = {
    "organism-honesty": "175k parameters; its persona makes it lie, so steering it toward honesty is real",
    "organism-bias": "175k parameters; its persona only leans toward TRUE or FALSE, whatever the fact",
    "organism-planted": "175k parameters; the direction of its persona is known",
}


def organism_folder(name: str | Path) -> Path | None:
    """The Hugging Face folder of an organism, or `None` for any other name."""
    if str(name) not in ORGANISMS:
        return None
    return Path(str(resources.files("tl_steer.data"))) / "organisms" / str(name)
