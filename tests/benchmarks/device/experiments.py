"""Two of the study's experiments in full, from the files of a model with random weights to the report."""

import argparse
import json
import re
import tempfile
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from tl_steer.experiments import read_experiment, run
from tl_steer.models.equality import cause_of

from .models import GPT2_XL, SHAPES, write_folder

# Class and settings of the model, the setting that is its depth, and the widths of a trial of the script.
EXPERIMENTS = {
    "honesty_llama2": (
        "Llama", SHAPES["llama-2-13b"], "num_hidden_layers",
        {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4},
    ),
    "activation_addition_gpt2_xl": ("GPT2", GPT2_XL, "n_layer", {"n_embd": 64, "n_head": 4}),
}  # fmt: skip


def run_experiments(args: argparse.Namespace) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The record of each experiment, which runs in a temporary folder."""
    for name in EXPERIMENTS:
        record = {"job": "experiment", "contender": "tl_steer"}
        with tempfile.TemporaryDirectory(prefix="device-") as scratch:
            try:
                record |= measured(name, Path(scratch), args)
            except Exception as error:  # the other one still counts
                record["problem"] = cause_of(error)
        yield name, [record]


def measured(name: str, scratch: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Write the model, run the experiment, and return the seconds of both and the sizes of its files."""
    source = (resources.files("tl_steer.experiments") / f"{name}.toml").read_text(encoding="utf-8")
    folder = scratch / re.search('name = "(.*?)"', source)[1]  # the chat format goes by the name
    source = re.sub('name = ".*?"', f'name = "{folder}"\ndevice = "{args.device}"', source)
    if args.limit:
        source = re.sub(r'(kind = "(honesty|claims)")', rf"\1\nlimit = {args.limit}", source)
    (scratch / "experiment.toml").write_text(source, encoding="utf-8")
    model_class, settings, depth, narrow = EXPERIMENTS[name]
    settings = settings | (narrow if args.shape == ["tiny"] else {})
    settings |= {depth: args.layers or settings[depth]}
    begun = time.perf_counter()
    write_folder(folder, model_class, settings, args.device, getattr(torch, args.dtype))
    written = time.perf_counter()
    out = run(read_experiment(scratch / "experiment.toml"), scratch / "out", progress=False)
    seconds = {"seconds": time.perf_counter() - written, "writing_seconds": written - begun}
    versions = json.loads((out / "versions.json").read_text())
    files = {each.name: each.stat().st_size for each in out.iterdir() if each.is_file()}
    return seconds | {key: versions[key] for key in ("device", "dtype")} | {"bytes": files}
