"""Tiny models that speak different vocabularies: real tokenizer.json files with merges and added tokens."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from merge.local import index_models, model_folders
from merge.plan import Plan, make_plan
from merge.recipe.recipe import recipe_from
from merge.report import Report
from merge.run import run
from tests import tiny

GIB = 1 << 30
CHAT = ("<|im_start|>", "<|im_end|>")
SOURCES = [{"id": "a", "model": "a"}, {"id": "b", "model": "b"}]
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
BYTES = tuple(tiny._byte_characters())


def donated(method: str, **more: Any) -> dict[str, Any]:
    """A recipe that gives a model the vocabulary of a donor."""
    choice = {"source": "donor", "donor": "donor", "approximate": method, "k": 8, **more}
    return {"sources": [{"id": "m", "model": "m"}], "steps": ["passthrough"], "tokenizer": choice}


def speaker(folder: Path, *, merges: Iterable[tuple[str, str]] = (), added: Sequence[str] = tiny.SPECIAL,
            rows: int | None = None, expert: int = 0, plain: Sequence[str] = (), hidden: int = 16,
            first_added: int | None = None, template: str | None = None, **options: Any) -> Path:  # fmt: skip
    """A Llama whose tokens are 256 bytes, what ``merges`` make of them, ``plain`` ones and ``added`` ones."""
    tokens = [*BYTES, *(left + right for left, right in merges), *plain]
    first = len(tokens) if first_added is None else first_added
    vocab = {token: at for at, token in enumerate(tokens)}
    ids = {token: first + at for at, token in enumerate(added)}
    size = max([*ids.values(), *vocab.values()]) + 1
    tiny.llama(folder, expert=expert, vocab=rows or size, hidden=hidden, tokenizer=False, **options)
    tiny.write_tokenizer(folder)
    document = json.loads((folder / "tokenizer.json").read_text())
    document["model"] |= {"vocab": vocab, "merges": [list(pair) for pair in merges]}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    document["added_tokens"] = [{"id": number, "content": token, **flags} for token, number in ids.items()]
    write_json(folder / "tokenizer.json", document)
    config = json.loads((folder / "config.json").read_text())
    named = {"bos_token_id": "<s>", "eos_token_id": "</s>", "pad_token_id": "<pad>"}
    write_json(folder / "config.json", config | {key: ids.get(token) for key, token in named.items()})
    write_json(folder / "generation_config.json", {"eos_token_id": [ids["</s>"]], "do_sample": True})
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def ids_of(folder: Path) -> dict[str, int]:
    """Token to id as the folder's tokenizer.json has them."""
    document = json.loads((folder / "tokenizer.json").read_text())
    ids: dict[str, int] = document["model"]["vocab"]
    return ids | {each["content"]: each["id"] for each in document["added_tokens"]}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors in float32."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= {name: tensor.float() for name, tensor in load_file(file).items()}
    return found


def rows(folder: Path, tensor: str = "model.embed_tokens.weight") -> dict[str, torch.Tensor]:
    """The row of every token, by its text."""
    stored = weights(folder)[tensor]
    return {token: stored[number] for token, number in ids_of(folder).items() if number < len(stored)}


def set_rows(folder: Path, values: Mapping[str, torch.Tensor], tensor: str) -> None:
    """Replaces rows of a tensor by token; the file becomes float32."""
    file = folder / "model.safetensors"
    stored = {name: each.float() for name, each in load_file(file).items()}
    for token, row in values.items():
        stored[tensor][ids_of(folder)[token]] = row
    save_file(stored, file, {"format": "pt"})


def plan_of(root: Path, document: Mapping[str, Any], **options: Any) -> Plan:
    """The plan of a recipe whose models are folders in ``root``."""
    recipe = recipe_from({"steps": ["linear"], "dtype": {"output": "float32"}, **document})
    return make_plan(recipe, index_models(recipe, root), budget=GIB, **options)


def merged(root: Path, document: Mapping[str, Any], out: str = "out", **options: Any) -> tuple[Path, Report]:
    """The folder a recipe is merged into, and the report."""
    plan = plan_of(root, document)
    settings = {"budget_bytes": GIB, "threads": 2, "survey": "none", **options}
    return root / out, run(plan, model_folders(plan.recipe, root), root / out, **settings)


def write_json(path: Path, document: Any) -> None:
    """Writes a JSON file."""
    path.write_text(json.dumps(document, ensure_ascii=False))
