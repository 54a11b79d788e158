"""The small files of the result: config, tokenizer, index and the manifest that tells where everything came
from.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from merge.append import MANIFEST_FILE
from merge.checkpoint.layout import index_file, index_json
from merge.checkpoint.places import NAMED_TEMPLATES, safe_path
from merge.checkpoint.tokenizer import READER_FILES
from merge.file_errors import BundleBaseChanged
from merge.journal import Journal, sample_of, sha256_of
from merge.plan import ENGINE_VERSION, Plan
from merge.planning.result_config import in_vocabulary, main_dtype, output_config, takes_ends
from merge.recipe.recipe import canonical, recipe_digest
from merge.recipe.stages import ADAPTER, stage_of
from merge.report import OutputFile
from merge.running.survey.page import render_page
from merge.running.survey.saliency import saliency
from merge.running.survey.summary import Measured, summarise
from merge.tokenizer.files import LENDER_FILES, json_bytes, lender, with_new_tokens
from merge.tokenizer.planned import VocabularyPlan
from merge.tokenizer.special import ends_of, speaks_words
from merge.tokenizer.templates import chosen_template

_ROW = json.JSONEncoder(ensure_ascii=False)
SURVEY_FILE = "merge_report.json"
SURVEY_PAGE = "merge_report.html"
MODEL_FILES = ("generation_config.json",)


def inputs_manifest(
    plan: Plan, folders: Mapping[str, Path], pinned: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """What identifies each input: the user's name for it, the digest of its structure, and of its weight
    files what they are ``pinned`` to, by folder and file, or samples.
    """

    def identified(folder: str, files: Iterable[str]) -> tuple[str, dict[str, str]]:
        known = pinned.get(folder)
        if known is not None:
            return "files_sha256", {file: known[file] for file in files}
        return "samples_sha256", {file: sample_of(safe_path(folders[folder], file)) for file in files}

    told: dict[str, Any] = {}
    for key, index in plan.models.items():
        if key not in folders or stage_of(index.label) is not None:
            continue
        told[key] = {"model": index.label, "structure_sha256": index.digest}
        if index.decoding is not None:
            told[key]["decoded"] = index.decoding.as_dict()
        what, files = identified(key, plan.weight_files(key))
        told[key][what] = files
        if index.adapter is not None:
            what, files = identified(key + ADAPTER, index.adapter.weights)
            told[key] |= {"adapter": index.adapter.label, f"adapter_{what}": files}
    return told


def check_bases(plan: Plan, inputs: Mapping[str, Any]) -> None:
    """Raises ``BundleBaseChanged`` where a bundle's member is read over weights that it was not made over."""
    for key, index in plan.models.items():
        over = index.adapter.over if index.adapter is not None else None
        given = inputs.get(key, {})
        for file, digest in given.get(over.way, {}).items() if over is not None else ():
            if over is not None and over.files.get(file, digest) != digest:
                raise BundleBaseChanged(
                    f"{file} of {index.label} is not the file that {given['adapter']} was made over "
                    f"({over.model}): its weights have changed."
                )


def write_small_files(plan: Plan, folders: Mapping[str, Path], out: Path) -> list[str]:
    """Writes config, generation config, tokenizer files, chat template and shard index; gives their names."""
    files: dict[str, bytes] = {}
    config = plan.result_config()
    if config:
        files["config.json"] = json_bytes(output_config(config, main_dtype(plan.outputs), plan.code))
    files |= small_files(plan, folders, plan.reference, MODEL_FILES)
    chosen = plan.recipe.tokenizer.source
    reader = chosen if chosen is not None and chosen in folders else plan.reference
    if plan.vocabulary is not None:
        reader = plan.vocabulary.alignment.ground
    named = [name for name in plan.models[reader].files if name.startswith(NAMED_TEMPLATES)]
    files |= small_files(plan, folders, reader, (*READER_FILES, *named))
    if plan.vocabulary is not None:
        files = _with_vocabulary(files, plan, plan.vocabulary, folders)
    template = chosen_template(plan.recipe, plan.models)
    facts = plan.models[reader].tokenizer
    if template is not None and (facts is None or template != facts.chat_template):
        files = _with_template(files, template)
    if len(plan.shards) > 1:
        files[index_file(plan.shards)] = index_json(plan.shards)
    for name, content in files.items():
        _write(out / name, content)
    return sorted(files)


def _with_vocabulary(
    files: Mapping[str, bytes], plan: Plan, vocabulary: VocabularyPlan, folders: Mapping[str, Path]
) -> dict[str, bytes]:
    """The files with the new tokens in the tokenizer and the configs' sizes and token ids adjusted."""
    found, made = vocabulary.alignment, dict(files)
    if found.new:
        lenders = dict.fromkeys(token.origin for token in found.new if token.flags is None)
        origins = {
            key: lender(small_files(plan, folders, key, LENDER_FILES)) for key in lenders if key is not None
        }
        made = with_new_tokens(made, found.new, origins)
    lent: dict[str, Mapping[str, Any]] = {}
    reference = plan.models[plan.reference].config
    spoken = speaks_words(reference, vocabulary.tensors[plan.reference].rows)
    named = ("config.json", *(MODEL_FILES if spoken else ()))
    if takes_ends(plan.recipe, vocabulary, plan.reference):
        told = small_files(plan, folders, found.ground, MODEL_FILES)
        ends = ends_of(plan.models[found.ground].config)
        lent = {name: ends | ends_of(_object(told.get(name, b"{}")) or {}) for name in named}
    for name in named:
        own = _object(made.get(name, b""))
        if own is not None:  # what is no JSON stays as the model has it
            made[name] = json_bytes(in_vocabulary(own, vocabulary, plan.reference, lent.get(name, {})))
    return made


def write_survey(
    plan: Plan, extent: str, journal: Journal, out: Path, statistics: Mapping[str, Path]
) -> list[str]:
    """Writes the merge report as JSON and as a page; gives their names. ``statistics`` are the folders of
    what was measured on data, by model key.
    """
    told = {name: numbers for done in journal.shards.values() for name, numbers in done.measured.items()}
    found = {name: Measured.from_list(numbers) for name, numbers in told.items()}
    changes = plan.adapter is not None or (plan.bundle is not None and bool(plan.bundle.kept))
    from_base = changes or any(output.base is not None for output in plan.outputs)
    survey = summarise(plan.outputs, found, extent=extent, from_base=from_base)
    survey["saliency"] = saliency(plan.statistics.needed, plan.models, statistics)
    survey["decoded"] = [
        {"model": key, **index.decoding.as_dict()} for key, index in plan.models.items() if index.decoding
    ]
    names = " + ".join(plan.recipe.source_ids())
    title = f"{', '.join(step.name for step in plan.steps)}: {names}"
    _write(out / SURVEY_FILE, (_in_rows(survey, 4) + "\n").encode())
    _write(out / SURVEY_PAGE, render_page(survey, title=title).encode())
    return [SURVEY_FILE, SURVEY_PAGE]


def write_manifest(
    plan: Plan,
    inputs: Mapping[str, Any],
    weights: Sequence[OutputFile],
    small: Sequence[str],
    out: Path,
    device: str,
    told: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], list[OutputFile]]:
    """Writes mergery.json; gives its content and all files of the result. Nothing in it depends on time or
    place. ``told`` are further facts about the result.
    """
    files = [
        *weights,
        *(OutputFile(name, sha256_of(out / name), (out / name).stat().st_size) for name in small),
    ]
    manifest = {
        "mergery": {"engine": ENGINE_VERSION, "device": device},
        "plan_sha256": plan.digest,
        "recipe_sha256": recipe_digest(plan.recipe),
        "recipe": json.loads(canonical(plan.recipe)),
        "methods": {step.name: step.version for part in plan.parts() for step in part.steps},
        "inputs": dict(inputs),
        **(told or {}),
        "files": {file.file: {"sha256": file.sha256 or None, "size": file.size} for file in files},
    }
    content = json_bytes(manifest)
    _write(out / MANIFEST_FILE, content)
    own = OutputFile(MANIFEST_FILE, hashlib.sha256(content).hexdigest(), len(content))
    return manifest, [*files, own]


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Writes a JSON file, durably."""
    _write(path, json_bytes(document))


def read_manifest(out: Path) -> dict[str, Any] | None:
    """The manifest of a finished output, or ``None`` where there is none that can be read."""
    try:
        return _object((out / MANIFEST_FILE).read_bytes())
    except OSError:
        return None


def survey_extent(out: Path) -> str | None:
    """On how much of the weights the merge report of a finished output was measured, if it has one."""
    try:
        told = _object((out / SURVEY_FILE).read_bytes())
    except OSError:
        return None
    return None if told is None else told.get("extent")


def sync_folder(folder: Path) -> None:
    """Makes renames and new names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def small_files(plan: Plan, folders: Mapping[str, Path], key: str, names: Sequence[str]) -> dict[str, bytes]:
    """Those of the named files that one model has; what lies beside a model that is a single file is not its
    own. A bundle's member has the base's, or where any of them differed, those that are kept for it.
    """
    folder, own = folders[key], {name: name for name in plan.models[key].files}
    adapter = plan.models[key].adapter
    kept = {name.rpartition("/")[2]: name for name in (adapter.small if adapter is not None else ())}
    if kept.keys() & set(names):
        folder, own = folders[key + ADAPTER], kept
    there = {name: own[name] for name in names if name in own and (folder / own[name]).is_file()}
    found = {name: safe_path(folder, place).read_bytes() for name, place in there.items()}
    facts = plan.models[key].tokenizer
    made = facts.made_texts() if facts is not None else {}
    found |= {name: made[name] for name in names if name in made}
    if "tokenizer_config.json" in found:
        found["tokenizer_config.json"] = _without(found["tokenizer_config.json"], "auto_map")
    return found


def _with_template(files: dict[str, bytes], template: str) -> dict[str, bytes]:
    made = {
        name: content
        for name, content in files.items()
        if name != "chat_template.json" and not name.startswith(NAMED_TEMPLATES)
    }
    made["chat_template.jinja"] = template.encode()
    if "tokenizer_config.json" in made:
        made["tokenizer_config.json"] = _without(made["tokenizer_config.json"], "chat_template")
    return made


def _without(content: bytes, key: str) -> bytes:
    document = json.loads(content)
    if not isinstance(document, dict) or key not in document:
        return content
    return json_bytes({name: value for name, value in document.items() if name != key})


def _object(content: bytes) -> dict[str, Any] | None:
    """The JSON object in a file; ``None`` where it holds something else."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _in_rows(value: Any, depth: int) -> str:
    """JSON with line breaks down to that depth only: what is below is the row of a table, left to the encoder
    in C, which knows no indentation.
    """
    if not (value and depth and isinstance(value, dict | list)):
        return _ROW.encode(value)
    if isinstance(value, list):
        return "[\n" + ",\n".join(_in_rows(each, depth - 1) for each in value) + "\n]"
    named = (f"{_ROW.encode(name)}: {_in_rows(each, depth - 1)}" for name, each in value.items())
    return "{\n" + ",\n".join(named) + "\n}"


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
