"""Tied weights: one tensor under several names, as the config and the names tell."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

_WORDS = re.compile(
    r"(^|\.)(shared|embed_tokens|embed_in|wte|tokens_embed|tok_embeddings|word_embeddings?|embeddings)\.weight$"
)
_HALF = re.compile(r"(?:^|[._])(?:en|de)coder\.embed_tokens\.weight$")
_HEADS = re.compile(
    r"(^|\.)(lm_head|lm_head\.decoder|lm_head\.out_proj|embed_out|output_projection|generator_lm_head"
    r"|vocab_projector|lm_loss|pred_layer\.proj|predictions\.decoder)\.weight$|^(decoder|proj_out)\.weight$"
)
_BIASES = re.compile(r"(?:^|\.)(?:predictions|lm_head)\.decoder\.bias$")
_TIED_BY_DEFAULT = frozenset({
    "albert", "bart", "bert", "bert-generation", "big_bird", "bigbird_pegasus", "biogpt",
    "blenderbot", "blenderbot-small", "bloom", "camembert", "cohere", "cohere2", "convbert",
    "cpmant", "ctrl", "data2vec-text", "deberta", "deberta-v2", "distilbert", "electra", "ernie",
    "esm", "falcon", "falcon_mamba", "flaubert", "fnet", "funnel", "gemma", "gemma2", "gemma3",
    "gemma3_text", "gemma3n", "gemma3n_text", "gemma4", "gemma4_text", "gpt-sw3", "gpt2",
    "gpt_bigcode", "gpt_neo", "gpt_neox_japanese", "ibert", "layoutlm", "led", "longformer",
    "longt5", "luke", "m2m_100", "mamba", "marian", "mbart", "megatron-bert", "mobilebert",
    "modernbert", "modernbert-decoder", "moonshine", "mpnet", "mpt", "mra", "mt5", "mvp",
    "nllb-moe", "nystromformer", "openai-gpt", "opt", "paligemma", "pegasus", "pegasus_x", "plbart",
    "pop2piano", "prophetnet", "recurrent_gemma", "roberta", "roberta-prelayernorm", "roc_bert",
    "roformer", "seamless_m4t", "seamless_m4t_v2", "smollm3", "speech_to_text", "squeezebert",
    "starcoder2", "switch_transformers", "t5", "t5gemma", "tapas", "trocr", "udop", "umt5",
    "whisper", "xglm", "xlm", "xlm-roberta", "xlm-roberta-xl", "xlnet", "xmod", "yoso", "zamba",
    "zamba2",
})  # fmt: skip
"""Model types whose config ties the head to the embedding where it says nothing (Transformers' defaults)."""
_NEVER = frozenset({"bigbird_pegasus", "csm", "luke", "pop2piano"})
"""Their configs say that words are tied, but their heads are tensors of their own."""


def tied_names(config: Mapping[str, Any], names: Iterable[str]) -> Mapping[str, str]:
    """Tensors that are another one under a second name: second name -> first name.

    Heads are their embedding, and the embeddings of an encoder and a decoder their ``shared`` one, where the
    config says that words are tied; a bias stored twice is one, always. Only names that are both there are
    listed: a tied head that is not stored needs no decision.
    """
    present = set(names)
    found: dict[str, str] = {}
    if ties_words(config):
        embeds = sorted(name for name in present if _WORDS.search(name))
        found = dict(_halves(embeds))
        owners = [name for name in embeds if name not in found]
        heads = sorted(name for name in present if _HEADS.search(name)) if owners else []
        if config.get("model_type") not in _NEVER:
            found |= {head: _nearest(head, owners) for head in heads}
    for name in sorted(name for name in present if name.endswith(".decoder.bias")):
        if _BIASES.search(name) and (owner := name.replace(".decoder.bias", ".bias")) in present:
            found[name] = owner
    return found


def ties_words(config: Mapping[str, Any]) -> bool:
    """Whether the output head is the word embedding, by the config or else by the model type's default."""
    text = config.get("text_config")
    inner: Mapping[str, Any] = text if isinstance(text, Mapping) else {}
    said = config.get("tie_word_embeddings")
    if said is None:
        said = inner.get("tie_word_embeddings")
    return config.get("model_type") in _TIED_BY_DEFAULT if said is None else bool(said)


def _halves(embeds: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The embeddings of an encoder and a decoder, each with the shared one of its part of the model."""
    for owner in embeds:
        part = owner.removesuffix("shared.weight")
        if part != owner:
            yield from ((name, owner) for name in embeds if _HALF.search(name) and name.startswith(part))


def _nearest(head: str, owners: Sequence[str]) -> str:
    """The embedding of the head's own part of the model; of a decoder rather than of an encoder."""

    def rank(owner: str) -> tuple[int, bool, str]:
        pairs = zip(head.split("."), owner.split("."), strict=False)
        same = next((place for place, (a, b) in enumerate(pairs) if a != b), 0)
        return -same, "decoder" not in owner and "shared" not in owner, owner

    return min(owners, key=rank)
