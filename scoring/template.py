"""Renders a model's chat template in a process of its own: Jinja's sandbox inside, time and memory limits
outside.

A chat template comes with the model, so it is somebody's program. The sandbox keeps it from Python's
internals; the child has an empty environment, no files to speak of, and dies when it computes or allocates
too much. The file is run as a script in isolated mode, so it imports nothing of ours.
"""

import json
import resource
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

CHILD_MEMORY = 1 << 30
LONGEST_TEXT = 1_000_000


@dataclass(frozen=True, slots=True)
class Rendered:
    """``text`` of the rendered chat, or the ``problem`` that kept it from being rendered."""

    text: str
    problem: str | None = None


def render_chat(
    template: str, messages: list[dict[str, str]], special_tokens: dict[str, str], *, seconds: int = 10
) -> Rendered:
    """Renders ``messages`` with a generation prompt. Never raises for what the template does."""
    request = {"template": template, "messages": messages, "tokens": special_tokens, "seconds": seconds}
    try:
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-I", str(Path(__file__).resolve())],
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=seconds
            + 20,  # starting Python may take long on a busy machine; the child counts its own time
            env={},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Rendered("", f"it was not rendered within {seconds} s")
    if done.returncode != 0:
        return Rendered("", f"rendering it used more than {seconds} s or {CHILD_MEMORY >> 20} MiB")
    answer = json.loads(done.stdout)
    return Rendered(answer["text"], answer["problem"])


class _GenerationTag(jinja2.ext.Extension):
    """``{% generation %}`` marks what the assistant said; here it only lets its content through."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Content of the block, unchanged."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: object) -> None:
    raise jinja2.TemplateError(str(message))


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _render(request: dict[str, Any]) -> str:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime(2000, 1, 1).strftime(form)
    compiled = environment.from_string(request["template"])
    return compiled.render(
        messages=request["messages"],
        tools=None,
        documents=None,
        add_generation_prompt=True,
        **request["tokens"],
    )


def _child() -> None:
    request = json.load(sys.stdin)
    seconds = request["seconds"]
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (CHILD_MEMORY, CHILD_MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    try:
        answer = {"text": _render(request)[:LONGEST_TEXT], "problem": None}
    except Exception as error:
        answer = {"text": "", "problem": f"{type(error).__name__}: {error}"[:300]}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    _child()
