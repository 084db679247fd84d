"""A small random model, its word-level tokenizer, and the slow ways of computing what the package computes.

The oracles run one unpadded prompt at a time through TransformerLens's own `run_with_hooks`, without cache
or mask, and change rows by plain indexing. They use nothing of `tl_steer`; only `made_vector`, `score` and
`write` do.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tl_steer._generation import write_conditions
from tl_steer._scoring import score_conditions
from tl_steer.directions import SteeringVector
from tl_steer.engine import RunOptions
from tl_steer.models import identify

WORDS = [*"abcdefghijklmnopqrstuvwxyzAB():.", "True", "False", "good", "bad", "yes", "no"]
N_LAYERS, D_MODEL, N_HEADS, D_HEAD = 3, 16, 3, 4
NAMES = {
    "resid_pre": "hook_resid_pre", "resid_mid": "hook_resid_mid", "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out", "mlp_out": "hook_mlp_out", "z": "attn.hook_z",
}  # fmt: skip


def word_tokenizer():
    """One word, one token; `<s>` in front; `</s>` ends a text, pads, and is a token inside prompts too."""
    vocabulary = {word: number for number, word in enumerate(["<s>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )


def byte_tokenizer(merges: Sequence[tuple[str, str]] = ()):
    """One byte, one token, but for the merges given; no BOS."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["<end>", *alphabet, *("".join(pair) for pair in merges)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")


def sentence_tokenizer():
    """As Llama-2's: "▁" is a space, and stands in front of every text; "▁A" and "▁B" are tokens, too."""
    pieces = ["<unk>", "</s>", "▁", "\n", *"abcdefghij:().AB", "▁A", "▁B"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", "A"), ("▁", "B")], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )


def make_model(tokenizer, *, seed=0, dtype=torch.float32, **changes):
    """Three blocks; `n_heads · d_head` is not `d_model`, so that no width passes for another."""
    settings = {
        "n_layers": N_LAYERS, "d_model": D_MODEL, "n_heads": N_HEADS, "d_head": D_HEAD, "n_ctx": 48,
        "d_vocab": len(tokenizer), "act_fn": "gelu", "normalization_type": "LN", "seed": seed,
        "device": "cpu", "dtype": dtype, "model_name": "tiny",
    }  # fmt: skip
    # TransformerLens 4 has none.
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    model = HookedTransformer(HookedTransformerConfig(**(settings | changes)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            spread = 0.1 if name.endswith(("b", "b_Q", "b_K", "b_V", "b_O", "b_in", "b_out")) else 0.35
            weight.copy_((torch.randn(weight.shape, generator=generator) * spread).to(weight.dtype))
        for name, weight in model.named_parameters():
            if name.split(".")[-1] == "w":
                weight.add_(1)
    model.tokenizer = tokenizer
    model.cfg.tokenizer_prepends_bos = True
    return model.eval().requires_grad_(False)


def made_vector(model, layer, hook="resid_post", *, scale=3.0, seed=0, stream_norm=10.0):
    """A random vector of the given length, as a value of the package."""
    width = N_HEADS * D_HEAD if hook == "z" else D_MODEL
    values = torch.randn(width, generator=torch.Generator().manual_seed(100 + seed))
    return SteeringVector(scale * values / values.norm(), layer, hook, "made", stream_norm, identify(model))


def score(model, plan, conditions, *, mass=True, norms=None, clean=None, **options):
    """`score_conditions` with running options as keywords."""
    extra = {"mass": mass, "norms": norms, "clean": clean}
    return score_conditions(model, plan, conditions, **extra, options=RunOptions(**options))


def write(model, prompts, conditions, decoding, *, norms=None, **options):
    """`write_conditions` with running options as keywords."""
    options = RunOptions(**options)
    return write_conditions(model, prompts, conditions, decoding, norms=norms, options=options)


def hook_name(hook: str, layer: int) -> str:
    """TransformerLens's full name, spelled out."""
    return f"blocks.{layer}.{NAMES[hook]}"


@dataclass
class Change:
    """What an oracle does: `to(x)` replaces each row x "d_hook" of the positions that `where` lists.

    `where(prompt_length, length)` gives absolute indices of a sequence that is prompt and generated tokens.
    """

    layer: int
    hook: str
    to: Callable[[torch.Tensor], torch.Tensor]
    where: Callable[[int, int], Iterable[int]]


def run_alone(model, ids, prompt_length: int, changes: Sequence[Change] = (), reads: Sequence[str] = ()):
    """One unpadded sequence in one pass: logits "pos d_vocab", and each hook read by its full name."""
    seen: dict[str, torch.Tensor] = {}

    def changing(change: Change):
        def hook(x, hook):
            rows = x[0].clone()
            for index in change.where(prompt_length, len(ids)):
                changed = change.to(rows[index].flatten().float())
                rows[index] = changed.reshape(rows[index].shape).to(rows.dtype)
            return rows[None]

        return hook

    def reading(x, hook):
        seen[hook.name] = x[0].clone()

    hooks = [(hook_name(change.hook, change.layer), changing(change)) for change in changes]
    hooks += [(name, reading) for name in reads]
    with torch.no_grad():
        logits = model.run_with_hooks(torch.tensor([list(ids)]), fwd_hooks=hooks)[0]
    return logits, seen


def greedy_alone(model, ids, count: int, changes: Sequence[Change] = (), stops: Sequence[int] = ()):
    """The new tokens, each from a whole pass over everything before it."""
    new: list[int] = []
    while len(new) < count and not (new and new[-1] in stops):
        logits, _ = run_alone(model, [*ids, *new], len(ids), changes)
        new.append(int(logits[-1].argmax()))
    return new


def all_hooks(model):
    """Everything that is registered anywhere in a model, by identity and in order."""
    registered = [
        (name, list(module._forward_hooks.items()), list(module._forward_pre_hooks.items()))
        for name, module in model.named_modules()
    ]
    points = [(name, list(map(id, point.fwd_hooks))) for name, point in model.hook_dict.items()]
    return registered, points


def weights_of(model):
    """A copy of every weight."""
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def favouring(model, token: int, amount: float):
    """A copy of the model whose unembedding adds to one token's logit."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.unembed.b_U[token] += amount
    return changed


# Positions as they are written, with the indices they mean in `prompt` tokens followed by generated ones.
TABLE: dict[str, Callable[[int, int], list[int]]] = {
    "all_tokens()": lambda prompt, length: list(range(length)),
    "prompt_tokens()": lambda prompt, length: list(range(prompt)),
    "generated_tokens()": lambda prompt, length: list(range(prompt, length)),
    "last_token()": lambda prompt, length: [prompt - 1],
    "current_token()": lambda prompt, length: list(range(prompt - 1, length)),
    "token(0)": lambda prompt, length: [0],
    "token(1)": lambda prompt, length: [1],
    "token(-1)": lambda prompt, length: [prompt - 1],
    "token(-2)": lambda prompt, length: [prompt - 2],
    "span(0, 2)": lambda prompt, length: [0, 1],
    "span(1, None)": lambda prompt, length: list(range(1, prompt)),
    "span(-2, None)": lambda prompt, length: [prompt - 2, prompt - 1],
    "span(1, -1)": lambda prompt, length: list(range(1, prompt - 1)),
    "(token(0) | generated_tokens())": lambda prompt, length: [0, *range(prompt, length)],
    "(prompt_tokens() & ~token(0))": lambda prompt, length: list(range(1, prompt)),
    "~last_token()": lambda prompt, length: [index for index in range(length) if index != prompt - 1],
    "~token(0)": lambda prompt, length: list(range(1, length)),
    "~generated_tokens()": lambda prompt, length: list(range(prompt)),
}
