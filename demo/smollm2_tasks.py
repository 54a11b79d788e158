"""Three tasks for SmolLM2: two-digit sums, the section of a Debian package, the kind of a WordNet noun.

Each has training rows (a prompt and what should follow) and a multiple-choice set in our own format, whose
items no training row holds.
"""

import collections
import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.packages import apt_indexes
from demo.texts import KINDS, read_nouns, split_of, wordnet_folder

TASKS = ("sums", "debian", "wordnet")
QUESTIONS = {"validation": 64, "held-out": 96}
SECTIONS = {
    "admin": "system administration",
    "database": "database",
    "devel": "software development",
    "editors": "text editor",
    "electronics": "electronics",
    "fonts": "font",
    "games": "game",
    "graphics": "graphics",
    "hamradio": "amateur radio",
    "kernel": "Linux kernel",
    "localization": "translation",
    "mail": "email",
    "math": "mathematics",
    "net": "networking",
    "otherosfs": "emulator",
    "science": "science",
    "shells": "command shell",
    "sound": "audio",
    "text": "text processing",
    "video": "video",
    "web": "web server",
    "x11": "desktop",
}
SHOTS = "12+7=19\n30-4=26\n5+9=14\n"


@dataclass(frozen=True, slots=True)
class Labelled:
    """A short text and the name of its class."""

    text: str
    label: str

    @property
    def prompt(self) -> str:
        """What the model reads before it names the class."""
        return "Text: " + " ".join(self.text.split()[:24]) + "\nTopic:"


@dataclass(frozen=True, slots=True)
class Question:
    """One line of a multiple-choice set."""

    context: str
    choices: tuple[str, ...]
    answer: int

    def line(self) -> str:
        """Its JSON form."""
        fields = {"context": self.context, "choices": list(self.choices), "answer": self.answer}
        return json.dumps(fields, ensure_ascii=False)


def debian_descriptions() -> list[Labelled]:
    """One-line descriptions of Debian packages with their section, from apt's package index."""
    found: dict[str, Labelled] = {}
    for index in apt_indexes():
        for each in descriptions(index):
            found.setdefault(each.text, each)
    return list(found.values())


def descriptions(index: str) -> Iterator[Labelled]:
    """The stanzas of a ``Packages`` index that have a known section and more than a word to say."""
    for stanza in index.split("\n\n"):
        section = re.search(r"^Section: (\S+)", stanza, re.MULTILINE)
        text = re.search(r"^Description: (.+)", stanza, re.MULTILINE)
        if section and text and section[1] in SECTIONS and len(text[1]) > 15:
            yield Labelled(text[1].strip(), SECTIONS[section[1]])


def noun_kinds(work: Path) -> list[Labelled]:
    """Glosses of WordNet nouns with their kind."""
    entries, _ = read_nouns(wordnet_folder(work))
    return [Labelled(entry.gloss, entry.kind) for entry in entries]


def balanced(rows: Iterable[Labelled], split: str, most: int) -> list[Labelled]:
    """At most ``most`` rows of each class, shuffled, of one split."""
    mine = [row for row in rows if split_of(row.text) == split]
    random.Random(f"balance {split}").shuffle(mine)
    count: collections.Counter[str] = collections.Counter()
    kept = []
    for row in mine:
        count[row.label] += 1
        if count[row.label] <= most:
            kept.append(row)
    return kept


def label_questions(rows: Sequence[Labelled], labels: Sequence[str], count: int) -> list[Question]:
    """Four labels to choose from, one of them right."""
    rng, questions = random.Random("labels"), []
    for row in rows[:count]:
        choices = [row.label, *rng.sample([label for label in labels if label != row.label], 3)]
        rng.shuffle(choices)
        texts = tuple(f" {choice}" for choice in choices)
        questions.append(Question(row.prompt, texts, choices.index(row.label)))
    return questions


def sum_of(rng: random.Random, split: str) -> tuple[str, int]:
    """A sum as text up to the equals sign, and its result; the pair of numbers decides the split."""
    while True:
        a, b = rng.randint(0, 99), rng.randint(0, 99)
        if split_of(f"{a},{b}") == split:
            return (f"{a}+{b}=", a + b) if a < b or rng.random() < 0.5 else (f"{a}-{b}=", a - b)


def sum_questions(split: str, count: int) -> list[Question]:
    """Sums after three worked ones; the wrong answers are off by one, two, ten or eleven."""
    rng, questions = random.Random(f"sum questions {split}"), []
    for _ in range(count):
        prompt, right = sum_of(rng, split)
        near = [right + off for off in (-11, -10, -2, -1, 1, 2, 10, 11) if right + off >= 0]
        choices = [right, *rng.sample(near, 3)]
        rng.shuffle(choices)
        # The line end makes "1" and "12" different answers rather than one the beginning of the other.
        texts = tuple(f"{choice}\n" for choice in choices)
        questions.append(Question(SHOTS + prompt, texts, choices.index(right)))
    return questions


def write_tasks(work: Path) -> Mapping[str, list[Labelled]]:
    """Writes the sets of both splits under ``work/texts`` and returns the rows to train the two label tasks
    on.
    """
    sources = {
        "debian": (debian_descriptions(), list(SECTIONS.values())),
        "wordnet": (noun_kinds(work / "sources"), list(KINDS.values())),
    }
    for split, count in QUESTIONS.items():
        folder = work / "texts" / split
        folder.mkdir(parents=True, exist_ok=True)
        sets = {"sums": sum_questions(split, count)}
        for task, (rows, labels) in sources.items():
            sets[task] = label_questions(balanced(rows, split, 16), labels, count)
        for task, questions in sets.items():
            text = "".join(question.line() + "\n" for question in questions)
            (folder / f"{task}.jsonl").write_text(text, encoding="utf-8")
    return {task: balanced(rows, "train", 200) for task, (rows, _) in sources.items()}
