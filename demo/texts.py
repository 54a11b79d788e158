"""The real texts behind the demo family: plainly licensed, found on the machine or in one Debian package.

python      source of the Python standard library (PSF licence), split by file
dictionary  WordNet 3.0 nouns with their glosses and their kind (WordNet licence)
prose       the Python language reference carried by ``pydoc`` (PSF) and WordNet's example sentences
sums        generated additions and subtractions of numbers below one hundred
"""

import hashlib
import random
import re
import sysconfig
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from demo.packages import debian

DOMAINS = ("python", "dictionary", "prose", "sums")
CHUNK = 1200  # characters of one Python or prose document
SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "__pycache__", "pydoc_data", "encodings"}

# Lexicographer files of WordNet nouns (lexnames(5WN)), in words a small model can say.
KINDS = {
    "04": "action",
    "05": "animal",
    "06": "artifact",
    "07": "quality",
    "08": "body part",
    "09": "idea",
    "10": "communication",
    "11": "event",
    "12": "feeling",
    "13": "food",
    "14": "group",
    "15": "place",
    "18": "person",
    "19": "phenomenon",
    "20": "plant",
    "21": "possession",
    "22": "process",
    "23": "quantity",
    "26": "state",
    "27": "substance",
    "28": "time",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One dictionary entry: a noun, what it means and what kind of thing it is."""

    word: str
    gloss: str
    kind: str

    @property
    def question(self) -> str:
        """The entry up to the point where its kind is said."""
        return f"{self.word}: {self.gloss}. Kind:"

    @property
    def text(self) -> str:
        """The whole entry as the model reads it."""
        return f"{self.question} {self.kind}."


@dataclass(frozen=True, slots=True)
class Part:
    """One split (train, validation or held-out) of every domain, with the dictionary's entries apart."""

    texts: dict[str, list[str]]
    entries: list[Entry]


def split_of(key: str) -> str:
    """Which split a document belongs to, by a hash of its name: 2 % validation, 2 % held out, the rest train.

    >>> split_of("json/decoder.py") == split_of("json/decoder.py")
    True
    """
    bucket = int(hashlib.sha256(key.encode()).hexdigest(), 16) % 100
    return {0: "validation", 1: "validation", 2: "held-out", 3: "held-out"}.get(bucket, "train")


def wordnet_folder(work: Path) -> Path:
    """Folder with ``data.noun``; taken from the system or unpacked (no root needed) from ``wordnet-base``."""
    system, unpacked = Path("/usr/share/wordnet"), work / "wordnet"
    for folder in (system, unpacked / "usr/share/wordnet"):
        if (folder / "data.noun").exists():
            return folder
    debian("wordnet-base", unpacked, holds="usr/share/wordnet/data.noun")
    return unpacked / "usr/share/wordnet"


def python_files() -> list[tuple[str, str]]:
    """(relative name, source) of the standard library's modules, tests and generated tables left out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if not SKIPPED & set(name.parts):
            found.append((name.as_posix(), path.read_text(encoding="utf-8", errors="ignore")))
    return found


def documents(text: str, size: int = CHUNK) -> list[str]:
    """Cuts a text at line ends into documents of at most ``size`` characters (a longer line stays whole)."""
    chunks: list[str] = []
    current = ""
    for line in text.splitlines(keepends=True):
        if current and len(current) + len(line) > size:
            chunks.append(current)
            current = ""
        current += line
    return [*chunks, current] if current.strip() else chunks


def read_nouns(folder: Path) -> tuple[list[Entry], list[str]]:
    """Entries of WordNet's nouns, and the example sentences of nouns, verbs and adjectives."""
    entries: dict[str, Entry] = {}
    sentences: dict[str, None] = {}
    for part in ("noun", "verb", "adj"):
        for line in (folder / f"data.{part}").read_text(encoding="utf-8", errors="ignore").splitlines():
            if line.startswith("  ") or " | " not in line:
                continue
            head, gloss = line.split(" | ", 1)
            fields = head.split()
            for quoted in re.findall(r'"([^"]{25,200})"', gloss):
                sentences.setdefault(quoted[0].upper() + quoted[1:] + ".")
            meaning = gloss.split(";")[0].strip()
            if part == "noun" and fields[1] in KINDS and 15 <= len(meaning) <= 160:
                entry = Entry(fields[4].replace("_", " "), meaning, KINDS[fields[1]])
                entries.setdefault(entry.gloss, entry)
    return list(entries.values()), list(sentences)


def reference_pages() -> list[tuple[str, str]]:
    """(topic, text) of the Python reference that ``pydoc`` shows."""
    from pydoc_data.topics import topics

    return sorted(topics.items())


def one_sum(rng: random.Random, split: str) -> str:
    """One line such as ``41+7=48``; the pair of numbers decides the split it may appear in."""
    while True:
        a, b = rng.randint(0, 99), rng.randint(0, 99)
        if split_of(f"{a},{b}") == split:
            return f"{a}+{b}={a + b}\n" if a < b or rng.random() < 0.5 else f"{a}-{b}={a - b}\n"


def _chunks_of(named: Iterable[tuple[str, str]], split: str) -> list[str]:
    return [chunk for name, text in named if split_of(name) == split for chunk in documents(text)]


def collect(work: Path, say: Callable[[str], None] = print) -> dict[str, Part]:
    """Reads every source and returns its parts by split, in an order that depends on nothing but the
    texts.
    """
    entries, sentences = read_nouns(wordnet_folder(work))
    modules, pages = python_files(), reference_pages()
    parts = {}
    for split in ("train", "validation", "held-out"):
        mine = [entry for entry in entries if split_of(entry.gloss) == split]
        lines = [s for s in sentences if split_of(s) == split]
        paragraphs = [" ".join(lines[i : i + 12]) for i in range(0, len(lines), 12)]
        rng = random.Random(f"sums {split}")
        texts = {
            "python": _chunks_of(modules, split),
            "dictionary": [entry.text for entry in mine],
            "prose": _chunks_of(pages, split) + paragraphs,
            "sums": [
                "".join(one_sum(rng, split) for _ in range(30))
                for _ in range(2000 if split == "train" else 60)
            ],
        }
        for domain in DOMAINS:
            random.Random(f"order {domain}").shuffle(texts[domain])
        random.Random("order entries").shuffle(mine)
        parts[split] = Part(texts, mine)
        say(
            f"{split}: "
            + ", ".join(f"{d} {len(texts[d])} texts {sum(map(len, texts[d])):,} chars" for d in DOMAINS)
        )
    return parts
