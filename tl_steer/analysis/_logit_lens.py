"""Logit lens: vectors and activations read in the model's own vocabulary."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from .._util.validation import checked
from ..activations import Activations
from ..directions import SteeringVector, SteeringVectors
from ..models import HookedModel, Layers, exclusive, identify, prompt_label
from ..models.backend import unembedding
from ._projections import chosen_layers, token_texts

MULTIPLIERS = (20.0, -20.0)
MAX_LOGITS = 2**24  # in memory at a time: 64 MiB


@checked
def logit_lens(
    model: HookedModel,
    source: SteeringVectors | SteeringVector | Activations,
    *,
    multipliers: Sequence[float | int] = MULTIPLIERS,
    top: int = 10,
    layers: Layers = None,
    norm: bool = True,
    force: bool = False,
) -> pd.DataFrame:
    """The likeliest tokens when a vector, or an activation, is read as the last layer's output.

    Args:
        model: a `HookedTransformer` or a `TransformerBridge`.
        source: vectors, or activations of the residual stream or of a layer's output to it (not "z").
        multipliers: of vectors; activations are read as they are.
        top: number of tokens per row, likeliest first.
        layers: which of the source's, negatives from the model's end; by default all.
        norm: False leaves out the division by the length, all biases and the soft cap.
        force: accept a source of other weights of the same shapes and processing.

    Returns:
        One row per layer, multiplier and rank (of vectors; of one vector per position, also a token_index) or
        per layer, prompt_id, prompt, label (the message that a prompt was rendered from), token_index (in the
        unpadded text) and rank (of activations): these, then token_id; token, its text; logit; probability.

    Raises:
        ModelMismatchError: the source belongs to another model.
        ValueError: a source at "z", a layer that it lacks, multipliers for activations or none for vectors,
            or more tokens than the vocabulary has.

    Final norm, unembedding, biases and soft cap are the model's own, in float32 at least: of the last layer's
    resid_post this is the model's prediction. Earlier layers match it only as far as they share its basis.

    The final norm divides by the length, so with norm=True the size of a multiplier hardly matters and
    only its sign does; a steering vector is read as if the residual stream contained nothing else. norm=False
    gives what the multiplied vector adds to the logits, except for the division by the residual stream's
    length (d · W_U, after the norm's weights and its centring, where it has them); there the probability is
    the softmax of these alone, and depends on the multiplier's size.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
    """
    labels, rows = _rows(model, source, multipliers, layers, force)
    if not 1 <= top <= model.cfg.d_vocab_out:
        raise ValueError(f"top={top}: give 1 to {model.cfg.d_vocab_out}, the size of the vocabulary.")
    dtype = torch.promote_types(model.cfg.dtype, torch.float32)
    parts = []
    with exclusive(model), torch.no_grad():
        read = unembedding(model, dtype, norm=norm)
        for chunk in rows.split(max(1, MAX_LOGITS // model.cfg.d_vocab_out)):
            logits = read(chunk.to(model.W_U.device, dtype))
            best = logits.topk(top, dim=-1)
            probabilities = (best.values - logits.logsumexp(-1, keepdim=True)).exp()
            parts.append((best.indices, best.values, probabilities))
    token, logit, probability = (torch.cat(part).flatten().cpu().numpy() for part in zip(*parts, strict=True))
    table = labels.loc[labels.index.repeat(top)].reset_index(drop=True)
    distinct = sorted(set(token.tolist()))
    texts = dict(zip(distinct, token_texts(model.tokenizer, distinct), strict=True))
    return table.assign(
        rank=[*range(1, top + 1)] * len(labels),
        token_id=token,
        token=[texts[each] for each in token.tolist()],
        logit=logit,
        probability=probability,
    )


def _rows(
    model: Any, source: Any, multipliers: Sequence[float | int], layers: Layers, force: bool
) -> tuple[pd.DataFrame, Float[Tensor, "row d_model"]]:
    """The rows to read, and their labels."""
    is_activations = isinstance(source, Activations)
    source = source if is_activations else source.as_vectors()
    what = "these activations" if is_activations else "these vectors"
    hint = " If that is what you want, say so with force=True."
    source.identity.require(identify(model), force=force, what=what, hint=hint)
    if source.hook == "z" or source.values.shape[-1] != model.cfg.d_model:
        raise ValueError(f"{what} are at {source.hook}, not of the residual stream: it cannot be read.")
    indices = [source.layers.index(layer) for layer in chosen_layers(source, layers)]
    if is_activations:
        if tuple(multipliers) != MULTIPLIERS:
            raise ValueError("multipliers are for vectors; activations are read as they are.")
        return _activation_rows(source, indices)
    if not len(multipliers):
        raise ValueError("no multipliers given; pass at least one, such as 1 or -1.")
    return _vector_rows(source, indices, [float(each) for each in multipliers])


def _vector_rows(
    vectors: SteeringVectors, indices: Sequence[int], multipliers: Sequence[float]
) -> tuple[pd.DataFrame, Float[Tensor, "row d_model"]]:
    """Vectors in the order layer, (token_index,) multiplier."""
    values = vectors.values[list(indices)]
    values = values if vectors.has_positions else values[:, None]
    rows = einsum(
        values, torch.tensor(multipliers), "layer pos d_model, multiplier -> layer pos multiplier d_model"
    )
    layers = [vectors.layers[index] for index in indices]
    levels = {"layer": layers, "token_index": range(values.shape[1]), "multiplier": multipliers}
    labels = pd.MultiIndex.from_product(levels.values(), names=levels).to_frame(index=False)
    labels = labels if vectors.has_positions else labels.drop(columns="token_index")
    return labels, rows.flatten(0, 2)


def _activation_rows(
    activations: Activations, indices: Sequence[int]
) -> tuple[pd.DataFrame, Float[Tensor, "row d_model"]]:
    """Activations in the order layer, prompt, position, without the padding."""
    tables, values = [], []
    for layer_index in indices:
        token_index, _ = activations.at_layer(layer_index)
        prompt, position = (token_index >= 0).nonzero(as_tuple=True)
        columns = {
            "layer": activations.layers[layer_index],
            "prompt_id": prompt.numpy(),
            "prompt": [str(activations.prompts[row]) for row in prompt],
            "label": [prompt_label(activations.prompts[row]) for row in prompt],
            "token_index": token_index[prompt, position].numpy(),
        }
        tables.append(pd.DataFrame(columns))
        values.append(activations.values[prompt, layer_index, position])
    return pd.concat(tables, ignore_index=True), torch.cat(values)
