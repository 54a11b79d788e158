"""Chat templates are programs of strangers: they render what is theirs to render and reach nothing else."""

import time

import pytest

from scoring.template import render_chat

CHAT = [{"role": "user", "content": "Hi <b>"}]


def render(template: str, seconds: int = 5) -> str:
    done = render_chat(template, CHAT, {"bos_token": "<s>"}, seconds=seconds)
    assert done.problem is None, done.problem
    return done.text


def problem(template: str, seconds: int = 5) -> str:
    done = render_chat(template, CHAT, {}, seconds=seconds)
    assert done.problem is not None and done.text == ""
    return done.problem


def test_messages_tokens_and_the_usual_extras_are_there() -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}{% if loop.first %}{{ m | tojson }}{% endif %}{% break %}"
        "{% endfor %}{% generation %} ok{% endgeneration %}{% if add_generation_prompt %} go{% endif %}"
    )
    assert render(template) == '<s>{"role": "user", "content": "Hi <b>"} ok go'


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.environ }}",
        "{% include '/etc/passwd' %}",
        "{{ raise_exception('mine') }}",
        "{% if %}",
    ],
)
def test_what_the_sandbox_forbids_is_a_problem_and_not_a_crash(template: str) -> None:
    assert "Error" in problem(template)


def test_a_template_that_never_ends_is_stopped() -> None:
    began = time.monotonic()
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    assert "1 s" in problem(endless, seconds=1)
    assert time.monotonic() - began < 20


def test_a_template_that_eats_memory_is_stopped() -> None:
    assert "Memory" in problem("{{ messages[0].content * 4000000000 }}")
