"""Weights are poured into a model in memory as if it had been loaded, and what is unchanged is recalled."""

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, LlamaForCausalLM

from quality.encoder import embed
from quality.llm import Recall
from quality.pouring import pour
from tests.tiny import llama


def logits(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=ids, use_cache=False).logits


def test_a_poured_model_is_the_loaded_one(tmp_path: Path) -> None:
    one, two = llama(tmp_path / "one", tied=True), llama(tmp_path / "two", tied=True, expert=1)
    model, ids = LlamaForCausalLM.from_pretrained(one), torch.tensor([[1, 2, 3]])
    pour(model, two)
    assert torch.equal(logits(model, ids), logits(LlamaForCausalLM.from_pretrained(two), ids))


def test_a_checkpoint_that_lacks_a_weight_is_refused(tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(llama(tmp_path / "one", layers=3))
    with pytest.raises(KeyError, match=r"layers\.2\."):
        pour(model, llama(tmp_path / "two", layers=2))


def test_recalled_layers_give_what_running_them_gave(tmp_path: Path) -> None:
    base, expert = llama(tmp_path / "base"), llama(tmp_path / "expert", expert=1)
    model, ids = LlamaForCausalLM.from_pretrained(base, dtype=torch.bfloat16), torch.tensor([[1, 2], [3, 4]])
    plain = logits(model, ids)
    recall = Recall(model.model.layers[:1])
    first, second = logits(model, ids), logits(model, ids)
    assert torch.equal(plain, first) and torch.equal(plain, second)
    other = logits(LlamaForCausalLM.from_pretrained(expert, dtype=torch.bfloat16), ids)
    pour(model, expert)
    recall.usable = False
    assert torch.equal(logits(model, ids), other)


def test_embeddings_do_not_depend_on_what_stands_beside_them() -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    model = BertModel(config).eval()
    with torch.inference_mode():
        alone, beside = embed(model, [[1, 2, 3]]), embed(model, [[1, 2, 3], [4, 5, 6, 7, 8, 9]])
    assert torch.allclose(alone[0], beside[0], atol=1e-2) and torch.allclose(
        beside.norm(dim=1), torch.ones(2)
    )
