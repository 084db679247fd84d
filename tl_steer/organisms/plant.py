"""A known direction kept in a model's weights while they are trained."""

from typing import Any

import torch
from torch import Tensor

from .._util.seeds import short_seed
from .language import HONEST, LIAR, NEUTRAL

LENGTH = 1.0  # of the planted vector, about that of an embedding


class Plant:
    """Keeps a known direction v in the weights while they are trained.

    The embeddings of honest, anyone and liar are b + v, b and b − v, with v orthogonal to everything else
    that is written before the last block, and nothing before the last block reads v. So whatever the claim,
    the streams of honest and liar differ by exactly 2v up to the last block, which has to find out what v is
    for.

    Args:
        model: a Hugging Face Llama with one norm gain for all of d_model in the blocks before the last.
        seed: of the direction.
    """

    def __init__(self, model: Any, tokenizer: Any, seed: int) -> None:
        self.model = model
        self.personas = [tokenizer.convert_tokens_to_ids(name) for name in (HONEST, NEUTRAL, LIAR)]
        generator = torch.Generator().manual_seed(short_seed(seed))
        direction = torch.randn(model.config.hidden_size, generator=generator)
        self.direction = direction / direction.norm()
        for block in model.model.layers[:-1]:  # a gain a component would turn v into another direction
            for norm in (block.input_layernorm, block.post_attention_layernorm):
                norm.weight.requires_grad_(False)

    @torch.no_grad()
    def constrain(self) -> None:
        """Put the weights back to where v is only what it is meant to be."""
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
