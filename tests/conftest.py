"""Shared fixtures: synthetic activations with a known truth, models, and one browser per process."""

import logging
from pathlib import Path

import hypothesis
import numpy as np
import pandas as pd
import pytest
import tokenizers
import torch
import transformers

from . import shape_checks  # noqa: F401 isort: skip (before the package is imported)
from tl_steer.activations import Activations, PairedActivations
from tl_steer.models import ModelIdentity, get_model, load_model
from tl_steer.positions import last_token

from .fork_server import ForkServer

# No deadline, because machines are slow; the same examples each time, so that failures are reproducible.
hypothesis.settings.register_profile("tl_steer", deadline=None, derandomize=True)
hypothesis.settings.load_profile("tl_steer")


def pytest_addoption(parser):
    parser.addoption("--draws", type=float, default=1.0, help="share of the draws of simulations (CI: fewer)")


def pytest_collection_modifyitems(items):
    """Mark notebooks, which cannot have markers."""
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker("integration")


@pytest.fixture(scope="session")
def draws(request):
    """Number of draws of a simulation: `draws(2000)` is 2000 times the share given by `--draws`."""
    share = request.config.getoption("--draws")
    return lambda number: max(1, round(number * share))


@pytest.fixture(autouse=True)
def restored_logging():
    """Restore the package's logging after each test."""
    logger = logging.getLogger("tl_steer")
    before = logger.level, list(logger.handlers)
    yield
    logger.setLevel(before[0])
    logger.handlers[:] = before[1]


def assert_raises(message, function, *args, error=ValueError, **options):
    """Check that the call raises `error` with a message that matches."""
    with pytest.raises(error, match=message):
        function(*args, **options)


def make_identity(**changes):
    values = {
        "name": "toy", "revision": None, "n_layers": 4, "d_model": 32, "n_heads": 4, "d_head": 8,
        "normalization": "RMS", "centred": False, "tokenizer": "",
        "fingerprint": tuple(np.linspace(-1, 1, 256)),
    }  # fmt: skip
    return ModelIdentity(**(values | changes))


def make_pairs(positive, negative, *, layers=None, factors=None, identity=None, stream_norm=None):
    """Paired activations from two arrays "pair layer d_hook"."""
    positive, negative = (
        torch.as_tensor(np.asarray(side), dtype=torch.float32) for side in (positive, negative)
    )
    pairs, n_layers, width = positive.shape
    layers = tuple(range(n_layers)) if layers is None else layers
    identity = identity or make_identity(n_layers=max(layers) + 1, d_model=width)
    norm = torch.full((n_layers,), 10.0) if stream_norm is None else torch.as_tensor(stream_norm)

    def side(values, name):
        return Activations(
            values=values[:, :, None],
            token_index=torch.full((pairs, 1), 4),
            tokens=torch.full((pairs, 1), 7),
            prompt_lengths=torch.full((pairs,), 5),
            layers=layers,
            hook="resid_post",
            positions=last_token(),
            prompts=tuple(f"{name} prompt {row}" for row in range(pairs)),
            stream_norm=norm,
            identity=identity,
        )

    factors = pd.DataFrame({"group": range(pairs)}) if factors is None else factors
    return PairedActivations(side(positive, "positive"), side(negative, "negative"), factors)


@pytest.fixture
def planted():
    """200 pairs, 2 layers: a unit direction separates the sides, next to a larger shared topic axis."""
    rng = np.random.default_rng(0)
    direction = rng.standard_normal((2, 32))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    topic = rng.standard_normal((200, 1, 1)) * np.ones((1, 2, 32)) * 0.1
    noise = rng.standard_normal((2, 200, 2, 32)) * 0.3
    return make_pairs(topic + 2 * direction + noise[0], topic - 2 * direction + noise[1]), direction


VOCABULARY = 150
WIDTH = 48
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
GPT2_SIZES = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 3, "n_head": 4, "n_positions": 64}
ARCHITECTURES = {
    "gpt2": ("GPT2", GPT2_SIZES | {"bos_token_id": 1, "eos_token_id": 2}),
    "llama": ("Llama", SIZES | {"num_key_value_heads": 2}),
    "neox": ("GPTNeoX", SIZES | {"rotary_pct": 0.5}),
    "qwen2": ("Qwen2", SIZES | {"num_key_value_heads": 2}),
    "gemma2": (
        "Gemma2",
        # four layers, so that both types of attention occur twice; soft caps low enough to matter
        SIZES | {
            "num_hidden_layers": 4, "num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 20,
            "sliding_window": 5, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0,
        },
    ),
}  # fmt: skip


def random_hf_model(name, *, seed=0, **changes):
    """A small Hugging Face model with weights large enough that every part of a block matters."""
    prefix, sizes = ARCHITECTURES[name]
    config = getattr(transformers, f"{prefix}Config")(**(sizes | changes))
    # Only eager attention has Gemma-2's soft caps; the same one everywhere keeps one oracle.
    hf_model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return randomise(hf_model.float().eval(), seed=seed)


def randomise(hf_model, *, seed=0):
    """Random weights in place of those of a small Hugging Face model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in hf_model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * WIDTH**-0.5)
            else:  # norms around 1 (Gemma's 1 + w: around 0), biases around 0
                parameter.add_(0.2 * noise)
    return hf_model


@pytest.fixture(scope="session")
def make_hf_model():
    """Factory of small random Hugging Face models."""
    return random_hf_model


@pytest.fixture
def make_tokenizer():
    """Factory of word-level tokenizers; `bos=True` puts <s> before every text, as Llama's does."""

    def make(*, bos=True):
        tokens = [
            "<unk>", "<s>", "</s>", *"abcdefgh", "the", "is", "not", "cat", "dog", "sky", "blue", *":()"
        ]  # fmt: skip
        vocabulary = {token: index for index, token in enumerate(tokens)}
        inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
        inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        if bos:
            inner.post_processor = tokenizers.processors.TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", 1)]
            )
        special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
        return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **special)

    return make


@pytest.fixture(scope="session", params=ARCHITECTURES)
def architecture(request):
    """(Hugging Face model, the same from `load_model`) per architecture; do not modify them."""
    hf_model = random_hf_model(request.param)
    return hf_model, load_model(f"tiny-{request.param}", hf_model=hf_model, device="cpu")


@pytest.fixture(scope="session")
def embedded():
    """The embedded model, downloaded if necessary; do not modify it."""
    get_model()
    return load_model(device="cpu")


@pytest.fixture(scope="session")
def embedded_hf():
    """The oracle of the embedded model: (Hugging Face model, its tokenizer)."""
    folder = get_model()
    hf_model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return hf_model.eval(), transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium through Playwright. Open pages with `browser.new_page(viewport=…)` and close them."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = Path("/usr/bin/chromium")
    if not chromium.exists():
        pytest.skip(f"{chromium} is missing: install Debian's package chromium")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=chromium, args=flags)
        yield launched
        launched.close()


@pytest.fixture
def opened(browser, tmp_path):
    """A function that saves `Html` and opens its page; `page.errors` has every message of the console."""
    pages = []

    def open_page(shown, width=400, *, scheme="light"):
        shown.save(tmp_path / "page.html")
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page.errors = []
        page.on("console", lambda message: page.errors.append(message.text))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.goto((tmp_path / "page.html").as_uri())
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()


@pytest.fixture(scope="session")
def fork_server():
    """A process with all imports done, which forks the processes that tests kill."""
    server = ForkServer()
    yield server
    server.close()
