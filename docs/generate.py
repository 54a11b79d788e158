"""Writes the reference pages that are made from code: routes.md, methods.md, errors.md.

`make docs` runs it; a test compares the pages with what it would write.
"""

import importlib
import inspect
import json
import pkgutil
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent))

ROOMS = ("merge", "hub", "jobs", "worker", "scoring", "search", "api", "cli")


def error_classes() -> dict[str, type]:
    """Every error class of our rooms that has a code of its own, by code."""
    found: dict[str, type] = {}
    for room in ROOMS:
        package = importlib.import_module(room)
        names = [
            m.name for m in pkgutil.walk_packages(package.__path__, f"{room}.") if m.name.endswith("errors")
        ]
        for name in names:
            module = importlib.import_module(name)
            for thing in vars(module).values():
                if (
                    inspect.isclass(thing)
                    and thing.__module__ == name
                    and isinstance(vars(thing).get("code"), str)
                ):
                    found.setdefault(thing.code, thing)
    return found


def error_codes() -> dict[str, str]:
    """When each code is sent: as its class says, or the API's title of it, or what becomes of a job."""
    from api.errors import KINDS
    from jobs.lifecycle import EXPIRED, WORKER_LOST

    told = {code: f"{kind.title}." for code, kind in KINDS.items()}
    told |= {EXPIRED: "The job was not started before its `expires_at`."}
    told |= {WORKER_LOST: "The worker stopped without a word, as often as the job may be tried."}
    for code, error in error_classes().items():
        told[code] = " ".join((inspect.getdoc(error) or "").split("\n\n")[0].split())
    return told


def errors_page() -> str:
    """`docs/errors.md`."""
    lines = [
        "# Error codes",
        "",
        "A code is stable: programs may rely on it. The sentence beside it names the field, model,",
        "tensor or file and may change. In a problem body `type` leads here; a failed job carries the",
        "code in `error.code`. What a plan or a check finds (`findings`, and `errors` of a refused order)",
        "has codes that name the rule, such as `shape_mismatch`; of these the table has only those that a",
        "failed job or a refused file may carry too.",
        "",
        "| code | when |",
        "|---|---|",
    ]
    lines += [f"| `{code}` | {about.replace('|', '/')} |" for code, about in sorted(error_codes().items())]
    return "\n".join(lines) + "\n"


def setting_row(name: str, schema: dict[str, Any]) -> str:
    """One row of a method's table of settings."""
    allowed = " / ".join(f"`{value}`" for value in schema.get("enum", [])) or schema.get("type", "")
    marks = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = ", ".join(f"{mark} {schema[key]}" for key, mark in marks.items() if key in schema)
    per = [
        word for key, word in (("x-by-depth", "by depth"), ("x-by-source", "by source")) if schema.get(key)
    ]
    about = schema.get("description", "").replace("|", "/")
    return f"| `{name}` | {allowed} {bounds} | `{schema.get('default')}` | {', '.join(per)} | {about} |"


def method_section(name: str, method: dict[str, Any]) -> list[str]:
    """One method: what it is, what it needs, its settings."""
    from merge.guide import advice_on
    from merge.recipe.presets import listing

    needs, advice = method["needs"], advice_on(listing()[name])
    least, most = needs["sources"]
    count = f"{least}" if most == least else f"{least} to {most}" if most else f"{least} or more"
    base = {True: "a base", False: "no base"}.get(needs["base"], "a base if there is one")
    lines = [
        f"## `{name}`",
        "",
        f"**{method['title']}** · {method['kind']} · {method['granularity']}-wise · {count} sources, {base}"
        + (f" · {method['paper']}" if method.get("paper") else ""),
        "",
        method["about"],
        "",
        f"*When*: {advice.use} *Costs*: {advice.costs} *Beside what was published*: {advice.differs}",
        "",
    ]
    if method.get("steps"):
        lines += ["Stands for:", "", "```yaml", "steps:"]
        lines += [f"  - {json.dumps(step).replace(chr(34), '')}" for step in method["steps"]]
        lines += ["```", ""]
    if method["schema"]["properties"]:
        lines += ["| setting | values | default | may vary | meaning |", "|---|---|---|---|---|"]
        lines += [setting_row(key, value) for key, value in method["schema"]["properties"].items()]
        lines.append("")
    return lines + remarks(method)


def remarks(method: dict[str, Any]) -> list[str]:
    """What else is to be known of a method, if anything: what it demands, what a plan warns of."""
    from merge.contract.limits import Caution, Limit

    needs, lines = method["needs"], list[str]()
    if needs.get("factors"):
        lines += [
            "Merges factors: every source is a [LoRA adapter](recipe.md#a-lora-adapter) over the base.",
            "",
        ]
    if method.get("continues"):
        lines += ["[One more model can join](recipe.md#one-more-model) its result later.", ""]
    if needs.get("statistics"):
        asked = dict.fromkeys((s["kind"], s["of"].replace("base", "the base")) for s in needs["statistics"])
        told = ", ".join(f"`{kind}` of {of}" for kind, of in asked)
        lines += [f"[Measured on data](informed.md): {told.replace('of sources', 'of every source')}.", ""]
    for limit in needs.get("limits", []):
        lines += [f"{Limit(**limit).rule()}.", ""]
    for caution in (Caution(**each) for each in needs.get("cautions", [])):
        lines += [f"The plan warns{' ' if caution.rule() else ''}{caution.rule()}: {caution.about}.", ""]
    for law, why in method.get("breaks", {}).items():
        lines += [f"Breaks the law of *{law}*: {why}", ""]
    return lines


def evidence_table() -> list[str]:
    """What the quality bench measured of every method, best on bench A first."""
    from merge.catalog import catalogue
    from merge.evidence import evidence

    told = evidence()
    if not told["methods"]:
        return []
    made, benches = told["made"], told["benches"]
    titles = [f"{b['title'].partition(':')[0]}: {b['unit']}" for b in benches.values()]
    lines = [
        "# Measured on our bench",
        "",
        f"Written by `{made['command']}` on {made['date']}; [quality.md](quality.md) says how,",
        "and has every task's scores. ± is one standard error over test items. Every coefficient was chosen",
        "on validation items, all alike. *Over averaging* is the distance to `linear` on bench A.",
        "",
        f"| method | {' | '.join(titles)} | over averaging | remark |",
        "|---|" + "---|" * (len(titles) + 2),
    ]
    for name in sorted(catalogue(), key=lambda name: _rank(told["methods"].get(name, {}))):
        lines.append(evidence_row(name, told["methods"].get(name, {}), list(benches)))
    for bound in ("experts", "average", "base"):
        values = " | ".join(f"{bench[bound]:.1f}" for bench in benches.values())
        lines.append(f"| *{bound}* | {values} | | |")
    return [*lines, ""]


def _rank(found: dict[str, Any]) -> float:
    return -float(found.get("a", {}).get("value", -1e9))


def evidence_row(name: str, found: dict[str, Any], benches: list[str]) -> str:
    """One row of the table: values, the distance to plain averaging, and what is to be said."""
    first = found.get("a", {})
    cells = [
        f"{each['value']:.1f} ± {each['stderr']:.1f}" if "value" in each else ""
        for each in (found.get(bench, {}) for bench in benches)
    ]
    over = f"{first['over_average']:+.1f} ± {first['over_average_stderr']:.1f}" if "value" in first else ""
    why = found.get("reason", "") or first.get("why_not", "" if found else "not run yet")
    return f"| [`{name}`](#{name}) | {' | '.join(cells)} | {over} | {why} |"


def methods_page() -> str:
    """`docs/methods.md`."""
    from merge.recipe.presets import PRESETS, listing

    lines = [
        "# Methods",
        "",
        "Made from the catalogue (`make docs`). *May vary*: a setting may be a list interpolated over",
        "the layers (by depth), or differ between sources (by source). [The recipe](recipe.md) says how",
        "methods chain; [which method?](which-method.md) helps to choose.",
        "",
    ]
    for name, entry in listing().items():
        if name not in PRESETS:
            lines += method_section(name, entry.as_dict())
    lines += evidence_table()
    lines += [
        "# Presets",
        "",
        "Chains with a name: `steps: [dare_ties]`. A setting beside a preset goes to the first method of the",
        "chain that has it, `method.setting` to that method.",
        "",
    ]
    for name in sorted(PRESETS):
        lines += method_section(name, listing()[name].as_dict())
    return "\n".join(lines).rstrip() + "\n"


def routes_page() -> str:
    """`docs/routes.md`."""
    paths = json.loads((FOLDER / "openapi.json").read_text())["paths"]
    lines = ["# Routes", "", "Made from [openapi.json](openapi.json) (`make docs`).", ""]
    lines += ["| route | what it does |", "|---|---|"]
    for path, routes in paths.items():
        for verb, route in routes.items():
            about = " ".join(route.get("description", route.get("summary", "")).split()).replace("|", "/")
            lines.append(f"| `{verb.upper()} {path}` | {about} |")
    return "\n".join(lines) + "\n"


PAGES = {"routes.md": routes_page, "errors.md": errors_page, "methods.md": methods_page}

if __name__ == "__main__":
    for page, write in PAGES.items():
        (FOLDER / page).write_text(write())
