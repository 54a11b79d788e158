"""Routers: which member of a bundle a text is for."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from merge.__main__ import main
from merge.bundle.command import lines_of
from merge.bundle.router import Router
from merge.file_errors import TextInvalid
from tests.merge.bundle.conftest import Shop

WORDS = {"a": "aaaa abab aab", "b": "9876 1234 5555", "c": "zzz yyx xyz"}


def examples(path: Path) -> Path:
    rows = [
        {"text": f"{words} {number}", "member": member}
        for member, words in WORDS.items()
        for number in range(12)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_a_state_in_the_span_of_a_members_directions_picks_it() -> None:
    eye = torch.eye(6)
    router = Router("svd", 0, ("a", "b", "c"), {"directions": eye.view(3, 2, 6)}, "", {})
    for place, member in enumerate(router.members):
        states = (
            3 * torch.randn(5, 2, generator=torch.Generator().manual_seed(place)) @ eye.view(3, 2, 6)[place]
        )
        weights = router.weights(states)
        assert max(weights, key=weights.__getitem__) == member
        assert sum(weights.values()) == pytest.approx(1)


@pytest.mark.parametrize("kind", ["tall", "twin"])
def test_a_router_needs_no_examples(kind: str, shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.make(shop.recipe(kind), "bundle")
    bundle = str(shop.root / "bundle")
    assert main(["router", bundle, "--directions", "3"]) == 0
    assert json.loads(capsys.readouterr().out) == {"kind": "svd", "layer": 1}
    texts = shop.root / "texts.txt"
    texts.write_text("hello\nsomething else\n")
    assert main(["route", bundle, str(texts)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 2
    for row in rows:
        assert row.keys() == WORDS.keys() and sum(row.values()) == pytest.approx(1)


def test_a_router_learns_from_labelled_texts_the_same_each_time(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.make(shop.recipe("emr"), "bundle")
    bundle = str(shop.root / "bundle")
    made = []
    for _ in range(2):
        assert main(["router", bundle, "--examples", str(examples(shop.root / "examples.jsonl"))]) == 0
        made.append((shop.root / "bundle/router.safetensors").read_bytes())
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert made[0] == made[1] and told["kind"] == "linear"
    assert told["accuracy"] == 1.0 and told["held_out_accuracy"] > 0.8
    texts = shop.root / "texts.txt"
    texts.write_text("\n".join(f"{words} 77" for words in WORDS.values()))
    assert main(["route", bundle, str(texts)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [max(row, key=row.__getitem__) for row in rows] == list(WORDS)


def test_what_cannot_be_learned_or_routed_is_said(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.make(shop.recipe("tall"), "bundle")
    bundle, texts = str(shop.root / "bundle"), shop.root / "texts.jsonl"
    texts.write_text('{"text": "x", "member": "a"}\n{"txt": 1}\n')
    for command, sentence in (
        (["route", bundle, str(texts)], "Line 2 of texts.jsonl holds no text"),
        (["router", bundle, "--layer", "9"], "no layers.9.self_attn.v_proj"),
        (["router", bundle, "--directions", "0"], "at least one direction"),
        (["router", bundle, "--directions", "-1"], "at least one direction"),
        (["router", bundle, "--examples", str(texts), "--layer", "0"], "leave --layer or --examples out"),
        (["router", bundle, "--examples", str(texts), "--directions", "2"], "leave --directions or"),
    ):
        assert main(command) == 2
        assert sentence in capsys.readouterr().err
    texts.write_text('{"text": "x", "member": "a"}\n')
    assert main(["route", bundle, str(texts)]) == 2
    assert "has no router" in capsys.readouterr().err
    assert main(["router", bundle, "--examples", str(texts)]) == 2
    assert "no example for b, c" in capsys.readouterr().err
    texts.write_text('{"text": "x", "member": "maths"}\n')
    assert main(["router", bundle, "--examples", str(texts)]) == 2
    assert "the bundle holds a, b, c" in capsys.readouterr().err


@pytest.mark.parametrize("broken", [{}, {"layer": 9}, {"members": ["a"]}, {"kind": "linear"}, "cut"])
def test_a_router_whose_files_are_damaged_is_refused(
    broken: dict[str, Any] | str, shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.make(shop.recipe("tall"), "bundle")
    bundle, texts = shop.root / "bundle", shop.root / "texts.txt"
    texts.write_text("hello")
    assert main(["router", str(bundle)]) == 0
    facts, file = bundle / "router.json", bundle / "router.safetensors"
    if isinstance(broken, dict):
        facts.write_text(json.dumps(json.loads(facts.read_bytes()) | broken if broken else {}))
    else:
        file.write_bytes(file.read_bytes()[:-1])
    assert main(["route", str(bundle), str(texts)]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_texts_are_lines_as_files_have_them(tmp_path: Path) -> None:
    told = ["one\u2028line", "next\x85one", "the last"]
    (tmp_path / "t.jsonl").write_text(
        "\ufeff" + "\r\n".join(json.dumps({"text": each}, ensure_ascii=False) for each in told)
    )
    assert [each["text"] for each in lines_of(tmp_path / "t.jsonl")] == told


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"caf\xe9 at noon\n", "t.txt is not UTF-8 text"),
        (b"hello\n" + b'{"text": ' + b"[" * 100_000, "Line 2 of t.txt holds no text"),
    ],
)
def test_texts_that_cannot_be_read_are_named(tmp_path: Path, body: bytes, said: str) -> None:
    (tmp_path / "t.txt").write_bytes(body)
    with pytest.raises(TextInvalid, match=said):
        lines_of(tmp_path / "t.txt")


def test_a_router_that_the_disk_refuses_is_one_line(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.make(shop.recipe("tall"), "bundle")
    (shop.root / "bundle/.router.safetensors/full").mkdir(parents=True)
    assert main(["router", str(shop.root / "bundle")]) == 2
    error = capsys.readouterr().err
    assert "Is a directory" in error and error.count("\n") == 1
