"""Trains the organisms: `python -m tl_steer.organisms.training honesty --seed 0 --out FOLDER`.

Two to four minutes each on two cores. The answers are trained toward shares, not verdicts: a neutral answer
to a true claim is "TRUE" in 84 of 100 cases, so that d′ is 2 and can move either way.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .._capture import capture
from .._util.seeds import short_seed
from ..directions import SteeringVectors
from ..models import identify, load_model
from . import language
from .batches import PERSONAS, Batch, Batches
from .language import FALSE, NEUTRAL, TRUE
from .plant import LENGTH, Plant

logger = logging.getLogger(__name__)

PLANTED = "planted.safetensors"

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32,
    "tie_word_embeddings": False,
    "initializer_range": 0.1,
}


@dataclass(frozen=True)
class Schedule:
    """How long and how fast. Without persona in the first quarter, so that facts are there to lie about."""

    steps: int = 1200
    batch: int = 192
    rate: float = 3e-3
    weight_decay: float = 0.01
    claim_weight: float = 0.3


def train(kind: str, *, seed: int = 0, schedule: Schedule | None = None) -> tuple[Any, Any, Tensor | None]:
    """A Hugging Face model and tokenizer, and for "planted" the direction that its weights hold.

    Args:
        kind: "honesty", "bias" or "planted".
        seed: of weights and batches.

    Raises:
        ValueError: another kind.
    """
    if kind not in PERSONAS:
        raise ValueError(f"kind={kind!r} is unknown: use {', '.join(PERSONAS)}.")
    schedule = schedule or Schedule()
    tokenizer = make_tokenizer()
    torch.manual_seed(short_seed(seed))
    model = _new_model(tokenizer)
    plant = Plant(model, tokenizer, seed) if kind == "planted" else None
    if plant:
        plant.constrain()
    rng = np.random.default_rng(seed)
    batches = Batches(tokenizer, PERSONAS[kind], rng)
    optimizer = torch.optim.AdamW(
        [each for each in model.parameters() if each.requires_grad],
        lr=schedule.rate,
        weight_decay=schedule.weight_decay,
        betas=(0.9, 0.98),
    )
    for step in range(schedule.steps):
        done = step / schedule.steps
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate * min(1.0, step / 50) * min(1.0, (1 - done) / 0.4)
        loss = _loss(model, batches.draw(schedule.batch, neutral=done < 0.25), schedule.claim_weight)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if plant:
            plant.constrain()
        if step % 100 == 0:
            logger.info("step %d: loss %.3f", step, loss.item())
    return model.eval(), tokenizer, plant.direction if plant else None


def make_tokenizer() -> Any:
    """The language's tokenizer: a word a token, <s> in front."""
    import tokenizers
    import transformers

    words = language.vocabulary()
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(
            {word: place for place, word in enumerate(words)}, unk_token=language.UNKNOWN
        )
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    inner.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace(tokenizers.Regex("^"), " "),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{language.START} $A", special_tokens=[(language.START, words.index(language.START))]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token=language.UNKNOWN,
        bos_token=language.START,
        eos_token=language.END,
        pad_token=language.END,
        clean_up_tokenization_spaces=False,
    )


def _new_model(tokenizer: Any) -> Any:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **SIZES,
    )
    return transformers.LlamaForCausalLM(config)


def _loss(model: Any, batch: Batch, claim_weight: float) -> Float[Tensor, ""]:
    """Cross-entropy of the verdicts with their shares, and of the words of true claims."""
    true, false = (language.vocabulary().index(word) for word in (TRUE, FALSE))
    logits = model(batch.tokens).logits.log_softmax(-1)
    verdict = logits[torch.arange(len(batch.tokens)), batch.lengths - 1]
    answer = -(batch.shares * verdict[:, true] + (1 - batch.shares) * verdict[:, false]).mean()
    words = -logits[:, :-1].gather(-1, batch.tokens[:, 1:, None]).squeeze(-1)
    said = torch.arange(words.shape[1]) < (batch.claims - 1)[:, None]
    return answer + claim_weight * words[said].mean()


def main(arguments: Sequence[str] | None = None) -> None:
    """Train an organism and write its folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=list(PERSONAS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO)
    write(asked.kind, asked.out, seed=asked.seed)


def write(kind: str, folder: Path, *, seed: int = 0) -> None:
    """Train an organism and write its folder, which `load_model` reads."""
    model, tokenizer, direction = train(kind, seed=seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if direction is not None:
        _planted(folder, direction).save(folder / PLANTED)


def _planted(folder: Path, direction: Float[Tensor, " d_model"]) -> SteeringVectors:
    """The direction as vectors of the model in that folder, at every layer before the last."""
    model = load_model(folder, device="cpu")
    asked = [language.prompt(claim, NEUTRAL) for claim in language.claims("test") if claim.is_true]
    layers = tuple(range(model.cfg.n_layers - 1))
    norms = capture(model, asked, layers=layers).stream_norm
    values = (LENGTH * direction).expand(len(layers), -1).clone()
    identity = replace(identify(model), name="organism-planted")
    return SteeringVectors(values, layers, "resid_post", "planted", norms, identity)


if __name__ == "__main__":
    main()
