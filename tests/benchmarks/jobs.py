"""The measured jobs: sizes and contenders. Read by both environments, so nothing of tl_steer is imported."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

# tl_steer by default, with two columns of logits instead of all, and with one forward pass per condition.
OURS, COLUMNS, PLAIN = "tl_steer", "tl_steer, two columns", "tl_steer, plain loop"
BRIDGE, STRONG = "tl_steer, bridge", "transformers, written for sweeps"
SIDES, LETTERS = ("positive", "negative"), ("A", "B")
MATERIALS, VECTORS = "materials.json", "vectors.npy"
PEER_BATCH = 16  # a peer's batch size; not slower than 4, 8 or 32

Condition = tuple[int, float]  # layer, multiplier


@dataclass(frozen=True)
class Job:
    """One job.

    Attributes:
        name, title: on the command line, and in the table.
        measure: "capture", "choice", "generate".
        prompts: number of pairs or questions.
        peers: the other libraries that do it, in a loop over the conditions.
        repeats: of all contenders except the plain loop and the two columns, which run once.
        positions: the vector is added at "every" token, or at the "last" one.
        layers, multipliers: the conditions; without any, nothing is steered.
        sample_layers, sample_multipliers: the conditions of the contenders that loop.
        new_tokens: per prompt.
    """

    name: str
    title: str
    measure: str
    prompts: int
    peers: tuple[str, ...]
    repeats: int = 2
    positions: str = "every"
    layers: tuple[int, ...] = ()
    multipliers: tuple[float, ...] = ()
    sample_layers: tuple[int, ...] = ()
    sample_multipliers: tuple[float, ...] = ()
    new_tokens: int = 0

    def contenders(self) -> list[str]:
        """All contenders, those without tl_steer first."""
        strong = [STRONG] if self.layers else []
        columns = [COLUMNS] if self.measure == "choice" else []
        return [*self.peers, *strong, OURS, BRIDGE, *columns, PLAIN]

    def repeats_of(self, contender: str) -> int:
        return 1 if contender in (COLUMNS, PLAIN) else self.repeats

    def grid(self, contender: str) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Layers and multipliers of a contender's conditions."""
        if contender in (*self.peers, PLAIN):
            return self.sample_layers, self.sample_multipliers
        return self.layers, self.multipliers

    def conditions(self, contender: str) -> list[Condition]:
        """A contender's conditions; empty if nothing is steered."""
        layers, multipliers = self.grid(contender)
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
        positions="last",
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

SHARED_EVERY, SHARED_LAST, PLAIN_EVERY = "every token", "last token", "every token, plain loop"
STRONG_EVERY = f"every token, {STRONG}"
CLAIMS, LONG_PROMPTS = (1, 4, 9, 19), 4  # claims per prompt, and the number of prompts with several


@dataclass(frozen=True)
class Study:
    """Size of the sweep whose cost is measured; `claims` is the number of claims per prompt."""

    layers: int = 3
    multipliers: int = 2
    prompts: int = 8
    claims: int = 1

    def grid(self, n_layers: int) -> tuple[list[int], list[float]]:
        """Layers, spread evenly over the model's depth, and multipliers up to 8."""
        layers = [(2 * index + 1) * n_layers // (2 * self.layers) for index in range(self.layers)]
        return layers, [16 * index / self.multipliers - 8 for index in range(1, self.multipliers + 1)]


@dataclass(frozen=True)
class Growth:
    """The field of `Study` that varies and its values; the plain loop runs the first `plain` of them."""

    name: str
    title: str
    field: str
    points: tuple[int, ...]
    plain: int = 2

    def study(self, point: int) -> Study:
        """The sweep at one of the points; where length grows, with few prompts: claims are limited."""
        base = Study(prompts=LONG_PROMPTS) if self.field == "claims" else Study()
        return replace(base, **{self.field: point})


GROWTHS = (
    Growth("layers", "Layers", "layers", (1, 3, 10, 30)),
    Growth("multipliers", "Multipliers", "multipliers", (1, 2, 4, 8, 16)),
    Growth("prompts", "Prompts", "prompts", (4, 8, 16, 32, 64)),
    Growth("length", "Tokens per prompt", "claims", CLAIMS),
)


def quick_job(job: Job) -> Job:
    """A small version for a test run of a few seconds; its numbers mean nothing."""
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
    (folder / f"{job.name}.json").write_text(json.dumps(asdict(job)))


def read_job(name: str, folder: Path) -> Job:
    return from_values(json.loads((folder / f"{name}.json").read_text()))


def from_values(values: dict[str, Any]) -> Job:
    """A job from its JSON."""
    return Job(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def read_materials(folder: Path) -> dict[str, Any]:
    """Prompts, ids and the model folder, written by `ours.write_materials`."""
    return json.loads((folder / MATERIALS).read_text())
