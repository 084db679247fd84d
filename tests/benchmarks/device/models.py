"""Models with random weights in the shapes of known ones, and a tokenizer; nothing is downloaded."""

from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

from tl_steer.prompts import read_claims, read_dilemmas, read_misconceptions

TOKENS = 1500  # in the tokenizer, by which a claim has about as many tokens as by Llama-2's
LLAMA_2 = {
    "vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "num_hidden_layers": 40,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
SHAPES = {
    "tiny": LLAMA_2 | {
        "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_hidden_layers": 5, "vocab_size": 2000,
    },
    "llama-2-13b": LLAMA_2 | {"hidden_size": 5120, "intermediate_size": 13824, "num_attention_heads": 40},
    "llama-3-8b": LLAMA_2 | {
        "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
        "num_hidden_layers": 32, "vocab_size": 128256, "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    },
}  # fmt: skip
GPT2_XL = {
    "n_embd": 1600, "n_layer": 48, "n_head": 25, "n_positions": 1024, "vocab_size": 50257,
    "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


def random_model(name: str, settings: dict[str, Any], device: str, dtype: torch.dtype) -> Any:
    """A Hugging Face model whose weights are drawn on the device, so that memory holds them once.

    Args:
        name: "Llama" or "GPT2".

    The weights' size is that with which a block adds about as much to the residual stream as the embedding.
    """
    width = settings.get("hidden_size") or settings["n_embd"]
    config = getattr(transformers, f"{name}Config")(**settings, initializer_range=width**-0.5)
    torch.manual_seed(0)
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def trained_tokenizer(name: str) -> Any:
    """Byte-level, trained on the package's own texts; Llama's puts a BOS in front of each text."""
    special = {"Llama": ["<s>", "</s>"], "GPT2": ["<|endoftext|>"]}[name]
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    options = {"special_tokens": special, "initial_alphabet": alphabet, "show_progress": False}
    texts = [*read_claims()["statement"], *read_dilemmas()["dilemma"], *read_misconceptions()["question"]]
    inner.train_from_iterator(sorted(texts), tokenizers.trainers.BpeTrainer(vocab_size=TOKENS, **options))
    if len(special) > 1:
        processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        inner.post_processor = processor
    named = {"bos_token": special[0], "eos_token": special[-1], "pad_token": special[-1]}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, padding_side="left", **named)


def write_folder(folder: Path, name: str, settings: dict[str, Any], device: str, dtype: torch.dtype) -> None:
    """A Hugging Face folder with a random model and its tokenizer, as `load_model` reads it."""
    random_model(name, settings, device, dtype).save_pretrained(folder, max_shard_size="4GB")
    trained_tokenizer(name).save_pretrained(folder)
