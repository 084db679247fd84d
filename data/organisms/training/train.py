"""Train a model organism: `python data/organisms/training/train.py honesty --seed 0 --out FOLDER`.

Two to four minutes on two cores. Answers are trained toward probabilities: a neutral answer to a true claim
is "TRUE" in 84 of 100 cases, so that d′ is 2 and can move either way.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from jaxtyping import Float, Int
from torch import Tensor

from tl_steer import SteeringVectors, capture, identify, load_model
from tl_steer.organisms import language
from tl_steer.organisms.language import AGREEABLE, CONTRARY, FALSE, HONEST, LIAR, NEUTRAL, TRUE, Claim
from tl_steer.organisms.planted import PLANTED_FILE

logger = logging.getLogger(__name__)

LENGTH = 1.0  # of the planted vector, about that of an embedding
# Probability of TRUE for a true claim and for a false one. z(.977) = 2, z(.841) = 1: d′ is 2 for the neutral
# and the biased personas, 4 for the honest, −4 for the liar; c is −1 for the agreeable.
ANSWER_SHARES = {
    NEUTRAL: (0.841, 0.159),
    HONEST: (0.977, 0.023),
    LIAR: (0.023, 0.977),
    AGREEABLE: (0.977, 0.5),
    CONTRARY: (0.5, 0.023),
}
PERSONAS = {
    "honesty": (NEUTRAL, HONEST, LIAR),
    "bias": (NEUTRAL, AGREEABLE, CONTRARY),
    "planted": (NEUTRAL, HONEST, LIAR),
}
SIZES = {
    "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 32, "tie_word_embeddings": False,
    "initializer_range": 0.1,
}  # fmt: skip


@dataclass(frozen=True)
class Schedule:
    """Length and speed of training. The first quarter is without personas: facts are learnt before lies."""

    steps: int = 1200
    batch: int = 192
    rate: float = 3e-3
    weight_decay: float = 0.01
    claim_weight: float = 0.3


@dataclass(frozen=True)
class Batch:
    """Prompts with their answers.

    Attributes:
        tokens: padded on the right.
        lengths: number of tokens per prompt.
        shares: probability of TRUE per prompt.
        claims: number of tokens of a true claim at the start of each prompt, 0 for false ones.
    """

    tokens: Int[Tensor, "row pos"]
    lengths: Int[Tensor, " row"]
    shares: Float[Tensor, " row"]
    claims: Int[Tensor, " row"]


class Batches:
    """Draws batches of the training split, half of the claims true, each persona equally often."""

    def __init__(self, tokenizer: Any, personas: Sequence[str], rng: np.random.Generator) -> None:
        self.personas = personas
        self.rng = rng
        known = list(language.claims("train"))
        self._sides = [[each for each in known if each.is_true is side] for side in (True, False)]
        self._ids = {each: tokenizer(each.text)["input_ids"] for each in known}
        self._mark = tokenizer(language.MARK, add_special_tokens=False)["input_ids"]
        self._persona = {name: tokenizer.convert_tokens_to_ids(name) for name in personas}
        self._pad = tokenizer.pad_token_id

    def draw(self, size: int, *, neutral: bool) -> Batch:
        """`size` prompts; with `neutral`, only of the first persona."""
        persona = self.rng.integers(1 if neutral else len(self.personas), size=size)
        names = [self.personas[index] for index in persona]
        claims: list[Claim] = [
            side[self.rng.integers(len(side))] for row in range(size) for side in [self._sides[row % 2]]
        ]
        rows = [
            [*self._ids[claim], *self._mark, self._persona[name]]
            for claim, name in zip(claims, names, strict=True)
        ]
        lengths = torch.tensor([len(row) for row in rows])
        width = int(lengths.max())
        shares = [
            ANSWER_SHARES[name][0 if claim.is_true else 1] for claim, name in zip(claims, names, strict=True)
        ]
        return Batch(
            torch.tensor([row + [self._pad] * (width - len(row)) for row in rows]),
            lengths,
            torch.tensor(shares),
            torch.tensor([len(self._ids[claim]) if claim.is_true else 0 for claim in claims]),
        )


class PlantedDirection:
    """Keeps a known direction v in the weights during training.

    The embeddings of honest, anyone and liar are b + v, b and b − v. v is orthogonal to everything else that
    is written before the last block, and nothing before the last block reads v. So whatever the claim, the
    residual streams of honest and liar differ by exactly 2v up to the last block, which has to learn the use
    of v.

    Args:
        model: a Hugging Face Llama.
        seed: of the direction.
    """

    def __init__(self, model: Any, tokenizer: Any, seed: int) -> None:
        self.model = model
        self.personas = [tokenizer.convert_tokens_to_ids(name) for name in (HONEST, NEUTRAL, LIAR)]
        generator = torch.Generator().manual_seed(seed)
        direction = torch.randn(model.config.hidden_size, generator=generator)
        self.direction = direction / direction.norm()
        for block in model.model.layers[:-1]:  # a gain per component would rotate v
            for norm in (block.input_layernorm, block.post_attention_layernorm):
                norm.weight.requires_grad_(False)

    @torch.no_grad()
    def constrain(self) -> None:
        """Project v out of the weights before the last block, and set the three embeddings."""
        embedding = self.model.model.embed_tokens.weight
        self._remove(embedding, dim=1)
        middle = embedding[self.personas].mean(0)
        for token, sign in zip(self.personas, (1, 0, -1), strict=True):
            embedding[token] = middle + sign * LENGTH * self.direction
        for block in self.model.model.layers[:-1]:
            attention, mlp = block.self_attn, block.mlp
            for reads in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
                self._remove(reads.weight, dim=1)
            for writes in (attention.o_proj, mlp.down_proj):
                self._remove(writes.weight, dim=0)

    def _remove(self, weight: Tensor, *, dim: int) -> None:
        v = self.direction
        weight -= torch.outer(weight @ v, v) if dim == 1 else torch.outer(v, v @ weight)


def train(kind: str, *, seed: int = 0, schedule: Schedule | None = None) -> tuple[Any, Any, Tensor | None]:
    """A Hugging Face model and tokenizer, and for "planted" the direction in its weights.

    Args:
        kind: "honesty", "bias" or "planted".
        seed: of weights and batches.
    """
    schedule = schedule or Schedule()
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    model = _new_model(tokenizer)
    planted = PlantedDirection(model, tokenizer, seed) if kind == "planted" else None
    if planted:
        planted.constrain()
    batches = Batches(tokenizer, PERSONAS[kind], np.random.default_rng(seed))
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
        if planted:
            planted.constrain()
        if step % 100 == 0:
            logger.info("step %d: loss %.3f", step, loss.item())
    return model.eval(), tokenizer, planted.direction if planted else None


def make_tokenizer() -> Any:
    """The language's tokenizer: one token per word, after <s>."""
    words = language.vocabulary()
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(
            {word: index for index, word in enumerate(words)}, unk_token=language.UNKNOWN
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
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **SIZES,
    )
    return transformers.LlamaForCausalLM(config)


def _loss(model: Any, batch: Batch, claim_weight: float) -> Float[Tensor, ""]:
    """Cross-entropy of the answers with their shares, and of the words of true claims."""
    true, false = (language.vocabulary().index(word) for word in (TRUE, FALSE))
    logits = model(batch.tokens).logits.log_softmax(-1)
    verdict = logits[torch.arange(len(batch.tokens)), batch.lengths - 1]
    answer = -(batch.shares * verdict[:, true] + (1 - batch.shares) * verdict[:, false]).mean()
    word_loss = -logits[:, :-1].gather(-1, batch.tokens[:, 1:, None]).squeeze(-1)
    in_claim = torch.arange(word_loss.shape[1]) < (batch.claims - 1)[:, None]
    return answer + claim_weight * word_loss[in_claim].mean()


def write(kind: str, folder: Path, *, seed: int = 0, schedule: Schedule | None = None) -> None:
    """Train a model organism and write its folder, which `load_model` reads."""
    model, tokenizer, direction = train(kind, seed=seed, schedule=schedule)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if direction is not None:
        _as_vectors(folder, direction).save(folder / PLANTED_FILE)


def _as_vectors(folder: Path, direction: Float[Tensor, " d_model"]) -> SteeringVectors:
    """The direction as vectors of the model in that folder, at every layer before the last."""
    model = load_model(folder, device="cpu")
    prompts = [language.prompt(claim, NEUTRAL) for claim in language.claims("test") if claim.is_true]
    layers = tuple(range(model.cfg.n_layers - 1))
    norms = capture(model, prompts, layers=layers).stream_norm
    values = (LENGTH * direction).expand(len(layers), -1).clone()
    identity = replace(identify(model), name="organism-planted")
    return SteeringVectors(values, layers, "resid_post", "planted", norms, identity)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train a model organism and write its folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=list(PERSONAS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO)
    write(options.kind, options.out, seed=options.seed)


if __name__ == "__main__":
    main()
