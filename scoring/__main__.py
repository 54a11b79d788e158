"""Scores and checks model folders: ``python -m scoring score | check``. Nothing is fetched or sampled.

Exit status 0; 1 for a model that does not work; 2 with one line that names what is wrong; 130 after Ctrl-C.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from scoring.errors import ScoringError, SetInvalid
from scoring.lines import decoded
from scoring.settings import BY_KIND, KINDS, LmEvalSettings

if TYPE_CHECKING:
    from scoring.check_report import Vitals

NO_SETTINGS = "{}"
YAML = (".yaml", ".yml")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m scoring", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    score = commands.add_parser("score", help="what models get on sets, and how they differ from the first")
    score.add_argument("models", nargs="+", type=Path)
    score.add_argument(
        "--set",
        action="append",
        required=True,
        dest="sets",
        metavar="KIND:FILE[:SETTINGS]",
        help=f"may be repeated; kinds are {', '.join(KINDS)}; settings are JSON, or the YAML file of lm_eval",
    )
    score.add_argument("--limit", type=int, help="only the first so many items of every set")
    score.add_argument("--device", default="cpu")
    score.add_argument("--json", action="store_true", help="everything, with the values of every item")
    score.set_defaults(run=run_score)
    check = commands.add_parser("check", help="does a model work, beside its parents?")
    check.add_argument("model", type=Path)
    check.add_argument("--parent", action="append", type=Path, default=[], help="may be repeated")
    check.add_argument("--texts", type=Path, help="a file of lines that models are tried on")
    check.add_argument("--device", default="cpu")
    check.set_defaults(run=run_check)
    return parser


def run_score(options: argparse.Namespace) -> int:
    """``score``: a table, or JSON."""
    from scoring.harness.run import run_harness
    from scoring.harness.task import HarnessTask
    from scoring.runner import base_heads, score_model

    tasks = [read_set(each, place, options.limit) for place, each in enumerate(options.sets)]
    _require_device(options.device)
    own = [each for each in tasks if not isinstance(each, HarnessTask)]
    others = [each for each in tasks if isinstance(each, HarnessTask)]
    heads = base_heads(options.models[0], own, device=options.device)
    found = {}
    for folder in options.models:
        scores = score_model(folder, own, device=options.device, per_example=True, heads=heads) if own else []
        found[str(folder)] = scores + (run_harness(folder, others, device=options.device) if others else [])
    if options.json:
        told = {name: [score.as_dict() for score in scores] for name, scores in found.items()}
        sys.stdout.write(json.dumps(told) + "\n")
        return 0
    Console(markup=False, emoji=False).print(_table(found))  # names of folders as they are
    return 0


def run_check(options: argparse.Namespace) -> int:
    """``check``: the report as JSON."""
    from scoring.check import SAMPLES, check_model
    from scoring.check_report import not_compared
    from scoring.vitals import compare

    texts = _lines(options.texts) if options.texts else list(SAMPLES)
    _require_device(options.device)
    report = check_model(options.model, device=options.device, texts=texts)
    parents = {}
    if report.vitals is not None:
        for folder in options.parent:
            parents[str(folder)] = _vitals_of(folder, options.device, texts)
        report = report.beside(parents, compare(report.vitals, parents))
    elif options.parent:
        report = report.beside({}, [not_compared()])
    sys.stdout.write(json.dumps(report.as_dict(), indent=2, ensure_ascii=False) + "\n")
    return 0 if report.ok else 1


def _vitals_of(parent: Path, device: str, texts: Sequence[str]) -> "Vitals":
    """What a model is held against. Raises ``ScoringError`` where the parent cannot be measured."""
    from scoring.check import check_model

    report = check_model(parent, device=device, texts=texts, only_vitals=True)
    if report.vitals is None:
        why = "; ".join(each.message for each in report.findings) or "no token of the texts can be predicted"
        raise ScoringError(f"nothing can be held against the parent {parent}: {why}")
    return report.vitals


def _lines(file: Path) -> list[str]:
    """The lines of a file that say something. Raises ``SetInvalid`` where none does."""
    lines = [line for line in _text(file).splitlines() if line.strip()]
    if not lines:
        raise SetInvalid(str(file), None, None, "holds no text")
    return lines


def read_set(told: str, place: int, limit: int | None) -> Any:
    """The set that ``kind:file`` or ``kind:file:settings`` names. Raises ``SetInvalid``."""
    from scoring.tasks import parse_task

    kind, _, rest = told.partition(":")
    file, brace, settings = rest.partition(":{")
    settings = brace[1:] + settings or NO_SETTINGS
    if kind == "lm_eval" and file.endswith(YAML):
        file, _, config = file.rpartition(":")
        settings = json.dumps({"config": _text(Path(config))})
    name = f"{Path(file).stem or kind}-{place}" if place else Path(file).stem or kind
    if kind not in BY_KIND:
        raise SetInvalid(told, None, "kind", f"is {kind!r}; it must be one of {', '.join(KINDS)}")
    if not file and kind != "lm_eval":
        raise SetInvalid(told, None, None, "names no file; write KIND:FILE, or KIND:FILE:SETTINGS")
    try:
        asked = BY_KIND[kind].model_validate_json(settings)
        if isinstance(asked, LmEvalSettings):
            asked.check(bool(file))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(["settings", *map(str, first["loc"])])
        raise SetInvalid(told, None, where, first["msg"]) from None
    except ValueError as error:
        raise SetInvalid(told, None, "settings", str(error)) from None
    body = Path(file).read_bytes() if file else b""
    return parse_task(name, kind, body, file=file or name, limit=limit, settings=asked)


def _text(file: Path) -> str:
    return decoded(file.read_bytes(), str(file))


def _require_device(name: str) -> None:
    """Raises ``ScoringError`` where the name is none, or the device is not there."""
    import torch

    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or ["?"])[0][:200]
        raise ScoringError(f"the device {name[:40]!r} cannot be used ({reason}); take cpu or cuda") from None


def _table(found: Mapping[str, Sequence[Any]]) -> Table:
    from scoring.paired import difference

    table = Table("set", "measure", "model", "score", "±", "minus the first (95 %)")
    first = next(iter(found))
    for at, score in enumerate(found[first]):
        for name, scores in found.items():
            own = scores[at]
            gap = None if name == first else difference(own, score)
            said = "" if gap is None else f"{gap.value:+.4g} ({gap.low:+.3g} to {gap.high:+.3g})"
            error = "" if own.stderr is None else f"{own.stderr:.2g}"
            table.add_row(own.task, own.metric, name, f"{own.value:.4g}", error, said)
    return table


def main(arguments: list[str] | None = None) -> int:
    """Runs one command."""
    options = build_parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except ScoringError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except OSError as error:
        said = error.strerror or error
        sys.stderr.write(f"{error.filename}: {said}\n" if error.filename else f"{said}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return 130
    return status


if __name__ == "__main__":
    sys.exit(main())
