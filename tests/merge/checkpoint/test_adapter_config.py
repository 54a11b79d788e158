"""What an adapter's config says of the model it was trained over."""

from typing import Any

import pytest

from merge.checkpoint.adapter_config import other_base


@pytest.mark.parametrize(
    ("trained", "model", "same"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B@main", False), ("./runs/merged/", "org/base", False),
        ("unsloth/llama-3-8b-bnb-4bit", "meta-llama/Meta-Llama-3-8B", True),
        ("unsloth/Llama-3.1-8B-unsloth-bnb-4bit", "meta-llama/Llama-3.1-8B@0e9e39f", True),
        ("/root/.cache/huggingface/hub/models--org--base/snapshots/1a2b", "base", True),
        ("C:\\models\\base", "up/base/model.safetensors", True), ("org/base", "org/base@v1:folder", True),
        (None, "base", True), ("", "base", True), (["base"], "other", True),
    ],
)  # fmt: skip
def test_another_base_is_told_by_its_name(trained: Any, model: str, same: bool) -> None:
    found = other_base({"base_model_name_or_path": trained}, model)
    assert found is None if same else found == trained
