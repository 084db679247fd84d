"""What is timed: the jobs, their sizes, who does them. Both sides read it: nothing of ours is imported."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

# tl_steer as it comes, with two columns of logits instead of all, and with a forward pass a cell.
OURS, COLUMNS, PLAIN = "tl_steer", "tl_steer, two columns", "tl_steer, plain loop"
SIDES, LETTERS = ("positive", "negative"), ("A", "B")
MATERIALS, VECTORS = "materials.json", "vectors.npy"
PEER_BATCH = 16  # prompts in a batch of a peer; no slower than 4, 8 or 32


@dataclass(frozen=True)
class Job:
    """One job.

    Attributes:
        name, title: on the command line, and in the table.
        kind: "capture", "choice", "generate".
        prompts: how many pairs or questions.
        peers: who else does it.
        repeats: of what is claimed; the plain loop and the two columns run once.
        where: the vector at "every" token, or at the "last" one.
        layers, multipliers: the cells; none: nothing is steered.
        sample_layers, sample_multipliers: the cells of whoever needs a forward pass for each.
        new_tokens: written by each prompt.
    """

    name: str
    title: str
    kind: str
    prompts: int
    peers: tuple[str, ...]
    repeats: int = 2
    where: str = "every"
    layers: tuple[int, ...] = ()
    multipliers: tuple[float, ...] = ()
    sample_layers: tuple[int, ...] = ()
    sample_multipliers: tuple[float, ...] = ()
    new_tokens: int = 0

    def contenders(self) -> list[str]:
        """Who does it, peers first."""
        return [*self.peers, OURS, *([COLUMNS] if self.kind == "choice" else []), PLAIN]

    def repeats_of(self, who: str) -> int:
        """How often `who` is timed."""
        return 1 if who in (COLUMNS, PLAIN) else self.repeats

    def is_sampled(self, who: str) -> bool:
        """Whether `who` does some of the cells only."""
        return bool(self.layers) and who not in (OURS, COLUMNS)

    def grid(self, who: str) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Layers and multipliers of the cells that `who` does."""
        if self.is_sampled(who):
            return self.sample_layers, self.sample_multipliers
        return self.layers, self.multipliers

    def cells(self, who: str) -> list[tuple[int, float]]:
        """The cells that `who` does; a job without any is a cell by itself."""
        layers, multipliers = self.grid(who)
        return [(layer, multiplier) for layer in layers for multiplier in multipliers]


FIVE_LAYERS, FOUR_MULTIPLIERS = (3, 9, 15, 21, 27), (-8.0, -4.0, 4.0, 8.0)

JOBS = (
    Job("capture", "Capture", "capture", 64, ("hf", "steering-vectors", "repeng")),
    Job(
        "choice-last",
        "Choice sweep, last token",
        "choice",
        32,
        ("hf",),
        where="last",
        layers=tuple(range(30)),
        multipliers=(-16.0, -8.0, -4.0, -2.0, 2.0, 4.0, 8.0, 16.0),
        sample_layers=(2, 15, 28),
        sample_multipliers=(-8.0, 8.0),
    ),
    Job(
        "choice-all",
        "Choice sweep, every token",
        "choice",
        32,
        ("hf", "steering-vectors"),
        layers=FIVE_LAYERS,
        multipliers=FOUR_MULTIPLIERS,
        sample_layers=(3, 27),
        sample_multipliers=(-8.0, 8.0),
    ),
    Job(
        "generate-sweep",
        "Generation sweep",
        "generate",
        8,
        ("hf", "steering-vectors"),
        layers=FIVE_LAYERS,
        multipliers=FOUR_MULTIPLIERS,
        sample_layers=(3, 15, 27),
        sample_multipliers=(8.0,),
        new_tokens=30,
    ),
    Job("generate-one", "One generation", "generate", 8, ("hf",), repeats=3, new_tokens=30),
)
PARTS = (*(job.name for job in JOBS), "import", "growth")


def quick(job: Job) -> Job:
    """The same in a few seconds, to see whether everything runs; its numbers mean nothing."""
    return replace(
        job,
        prompts=4,
        repeats=1,
        layers=job.sample_layers,
        multipliers=job.sample_multipliers,
        sample_layers=job.sample_layers[-1:],
        sample_multipliers=job.sample_multipliers[-1:],
        new_tokens=min(job.new_tokens, 4),
    )


def write_job(job: Job, folder: Path) -> None:
    """Leave a job where the process that does it will look."""
    (folder / f"{job.name}.json").write_text(json.dumps(asdict(job)))


def read_job(name: str, folder: Path) -> Job:
    """The job that `write_job` left."""
    return from_values(json.loads((folder / f"{name}.json").read_text()))


def from_values(values: dict[str, Any]) -> Job:
    """A job again, of what JSON made of it."""
    return Job(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def read_materials(folder: Path) -> dict[str, Any]:
    """Prompts, ids and the place of the weights, as `materials.write_materials` left them."""
    return json.loads((folder / MATERIALS).read_text())
