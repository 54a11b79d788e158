"""Writes the generated parts of the shipped calibration set: ``python -m merge.learn.default.make``.

Same seed, same bytes. ``prose_*.txt`` are written by hand, ``english_reference.txt`` and ``code.txt`` are
excerpts; they are not made again here, because their sources change.
"""

import random
from collections.abc import Callable
from pathlib import Path

SEED = 20250131
_NAMES = (
    "Ana", "Ben", "Chidi", "Dara", "Elif", "Farid", "Grace", "Hana", "Ivo", "Jun", "Kofi", "Lena", "Mara",
    "Noor",
)  # fmt: skip
_GOODS = (
    "apples", "pencils", "tickets", "stamps", "tiles", "bricks", "books", "cups", "lamps", "bolts", "eggs",
    "shirts",
)  # fmt: skip
_PLACES = (
    "the library", "the market", "the workshop", "the harbour", "the museum", "the school", "the station",
)  # fmt: skip


def arithmetic(rng: random.Random) -> str:
    """One document of sums, worked steps or a word problem with its solution."""
    return rng.choice((_sums, _long_division, _equation, _word_problem, _percent, _sequence))(rng)


def _sums(rng: random.Random) -> str:
    lines = []
    for _ in range(rng.randint(6, 12)):
        a, b = rng.randint(2, 9999), rng.randint(2, 999)
        sign = rng.choice("+-*")
        lines.append(f"{a} {sign} {b} = {a + b if sign == '+' else a - b if sign == '-' else a * b}")
    return "\n".join(lines)


def _long_division(rng: random.Random) -> str:
    b, q, r = rng.randint(3, 49), rng.randint(11, 499), 0
    r = rng.randint(0, b - 1)
    a = b * q + r
    check = f"{b} * {q} = {b * q}, and {b * q} + {r} = {a}"
    return f"Divide {a} by {b}.\n{a} / {b} = {q}, remainder {r}.\nCheck: {check}."


def _equation(rng: random.Random) -> str:
    a, x, b = rng.randint(2, 19), rng.randint(-20, 40), rng.randint(1, 99)
    c = a * x + b
    return (
        f"Solve {a}x + {b} = {c}.\nSubtract {b} on both sides: {a}x = {c - b}.\nDivide by {a}: x = {x}.\n"
        f"Check: {a} * {x} + {b} = {a * x} + {b} = {c}."
    )


def _word_problem(rng: random.Random) -> str:
    first, second = rng.sample(_NAMES, 2)
    goods, place = rng.choice(_GOODS), rng.choice(_PLACES)
    boxes, each, given = rng.randint(3, 18), rng.randint(4, 30), rng.randint(2, 11)
    left = boxes * each - given
    return (
        f"{first} brings {boxes} boxes to {place}. In each box there are {each} {goods}. {second} takes "
        f"{given} "
        f"{goods} home. How many {goods} are left?\nAnswer: {boxes} boxes of {each} {goods} make {boxes} "
        f"* {each} = "
        f"{boxes * each} {goods}. After {second} has taken {given}, {boxes * each} - {given} = {left} "
        f"{goods} are left."
    )


def _percent(rng: random.Random) -> str:
    whole, share = rng.randint(2, 90) * 20, rng.choice((5, 10, 15, 20, 25, 40, 60, 75))
    part = whole * share // 100
    return (
        f"What is {share} % of {whole}?\n{share} % means {share} out of 100, so {whole} * {share} / 100 = "
        f"{part}. "
        f"The rest is {whole} - {part} = {whole - part}, which is {100 - share} %."
    )


def _sequence(rng: random.Random) -> str:
    start, step, count = rng.randint(1, 40), rng.randint(2, 13), 8
    terms = [start + step * place for place in range(count)]
    return (
        f"The sequence {', '.join(map(str, terms[:5]))}, ... grows by {step} each time. Its next terms are "
        f"{', '.join(map(str, terms[5:]))}. The sum of the first {count} terms is {sum(terms)}, which is "
        f"{count} times the mean of the first and the last: {count} * ({terms[0]} + {terms[-1]}) / 2."
    )


_ASKS: tuple[tuple[str, str], ...] = (
    (
        "How do I get {goods} to {place} before noon?",
        "Take the early bus and carry them in two bags; {place} opens at nine, so you will have time to "
        "unpack.",
    ),
    (
        "Can you explain in one sentence what a budget is?",
        "A budget is a list of what comes in and what goes out, made before the money is spent.",
    ),
    (
        "My plant has yellow leaves. What should I check first?",
        "Check the soil: if it is wet a finger deep, wait before watering again; if it is dry, water it and "
        "move it out of the strong sun.",
    ),
    (
        "Please write a short note that I will be late.",
        "Dear {other}, I am held up at {place} and will be about {minutes} minutes late. Please start "
        "without me. {name}",
    ),
    ("Which is larger, {a} or {b}?", "{larger} is larger than {smaller}; the difference is {difference}."),
    (
        "Give me three ideas for a rainy afternoon.",
        "1. Visit {place}.\n2. Cook something that takes two hours.\n3. Sort old photographs.",
    ),
    (
        "Translate 'good morning' into German, French and Spanish.",
        "German: guten Morgen. French: bonjour. Spanish: buenos días.",
    ),
    (
        "Is it safe to share my password with {other}?",
        "No. A password should be known to one person only. If {other} needs access, ask for a second "
        "account.",
    ),
    (
        "Write a Python function that counts the vowels in a word.",
        "def vowels(word):\n    return sum(letter in 'aeiou' for letter in word.lower())",
    ),
    ("Sort these numbers: {a}, {b}, {minutes}.", "In rising order: {ordered}."),
    (
        "What does it mean when a study is called randomised?",
        "It means that chance, and not a person, decided who got which treatment, so that the groups differ "
        "in nothing else on average.",
    ),
    (
        "I am nervous about my talk at {place}. Any advice?",
        "Say the first two sentences aloud until they come by themselves. Bring water. And remember that the "
        "audience wants you to succeed.",
    ),
    (
        "How long will {a} kilometres take at 80 kilometres an hour?",
        "Divide the distance by the speed: {a} / 80 = {hours:.2f} hours, that is about {whole} minutes.",
    ),
    (
        "Summarise: the meeting was moved because the room was double booked and half of the team was ill.",
        "The meeting was moved: no room, and many were ill.",
    ),
)


def dialogue(rng: random.Random) -> str:
    """A conversation of a few turns in a neutral layout."""
    name, other = rng.sample(_NAMES, 2)
    turns = []
    for ask, answer in rng.sample(_ASKS, rng.randint(2, 4)):
        a, b, minutes = rng.sample(range(11, 990), 3)
        facts = {
            "name": name, "other": other, "goods": rng.choice(_GOODS), "place": rng.choice(_PLACES), "a": a,
            "b": b, "minutes": minutes, "larger": max(a, b), "smaller": min(a, b), "difference": abs(a - b),
            "hours": a / 80, "whole": round(a * 60 / 80), "ordered": ", ".join(map(str, sorted((a, b,
            minutes)))),
        }  # fmt: skip
        turns += [f"User: {ask.format(**facts)}", f"Assistant: {answer.format(**facts)}"]
    return "\n".join(turns)


def texts(make: Callable[[random.Random], str], size: int) -> str:
    """Different documents, blank lines between them, until ``size`` characters are reached."""
    rng = random.Random(f"{SEED} {make.__name__}")
    found: dict[str, None] = {}
    while sum(map(len, found)) < size:
        found.setdefault(make(rng))
    return "\n\n\n".join(found) + "\n"


def main() -> None:
    """Writes the files beside this one."""
    folder = Path(__file__).parent
    for make, size in ((arithmetic, 36_000), (dialogue, 36_000)):
        (folder / f"{make.__name__}.txt").write_text(texts(make, size), encoding="utf-8")


if __name__ == "__main__":
    main()
