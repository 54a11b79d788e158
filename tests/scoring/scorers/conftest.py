"""Tiny models of the kinds that only some scorers take, made by Transformers from a seed."""

from pathlib import Path

import pytest
import torch
import transformers

from tests import tiny

SIZES = {
    "vocab_size": tiny.VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}


def made(folder: Path, cls: type, config: transformers.PretrainedConfig, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    cls(config).save_pretrained(folder)
    tiny.write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT without any head."""
    folder = tmp_path_factory.mktemp("encoder")
    return made(folder, transformers.BertModel, transformers.BertConfig(**SIZES, initializer_range=0.5))


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT that tells three classes apart."""
    folder = tmp_path_factory.mktemp("classifier")
    config = transformers.BertConfig(
        **SIZES, initializer_range=0.5, id2label={0: "red", 1: "green", 2: "blue"}, pad_token_id=259
    )
    return made(folder, transformers.BertForSequenceClassification, config)


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with a head that writes different things."""
    return tiny.llama(tmp_path_factory.mktemp("decoder") / "m", hidden=32)
