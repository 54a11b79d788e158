"""The `mergery` command: starts the parts of the service, or all of them at once."""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from settings import Settings

Command = Callable[[argparse.Namespace, Settings], int]
MOST_PORT = 65535
MOST_AT_ONCE = 1024


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; ``command`` names the chosen command, ``run`` carries it out."""
    parser = argparse.ArgumentParser(prog="mergery", description="Merge-as-a-service.")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_service_commands(commands)
    _add_key_commands(commands)
    _add_model_commands(commands)
    return parser


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, run: Command, about: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=about, description=about)
    command.set_defaults(run=run)
    return command


def _add_service_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    up = _add(
        commands, "up", run_up, "start everything on this machine, with embedded servers where no URL is set"
    )
    up.add_argument("--data-dir", type=Path, help="where data is kept (default: the user's data folder)")
    up.add_argument("--host")
    up.add_argument("--port", type=_between(1, MOST_PORT))
    up.add_argument("--workers", type=_between(1, MOST_AT_ONCE), default=1, help="jobs at a time (default 1)")
    about = "GPU workers to start, one a device (default 0)"
    up.add_argument("--gpus", type=_between(0, MOST_AT_ONCE), default=0, help=about)
    api = _add(commands, "api", run_api, "serve REST, event streams and the dashboard")
    api.add_argument("--shared", action="store_true", help=argparse.SUPPRESS)
    _add(commands, "dispatcher", run_dispatcher, "announce jobs, find lost ones, deliver webhooks")
    worker = _add(commands, "worker", run_worker, "run jobs")
    worker.add_argument("--queues", type=_queues, default="cpu", help="cpu or gpu, or both with a comma")
    about = "jobs at a time (default 1)"
    worker.add_argument("--concurrency", type=_between(1, MOST_AT_ONCE), default=1, help=about)
    worker.add_argument("--device", help="cpu, cuda or cuda:N (default: by queue)")
    worker.add_argument(
        "--health", action="store_true", help="say whether the worker of this machine is alive"
    )
    _add(commands, "migrate", run_migrate, "bring the database to the newest schema")


def _add_key_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    keys = commands.add_parser("keys", help="API keys").add_subparsers(dest="action", required=True)
    create = _add(keys, "create", run_keys_create, "make an API key and print it once")
    create.add_argument("--name", default="key")
    create.add_argument("--tenant", default="default")
    create.add_argument("--scopes", default="admin", help="comma separated")


def _add_model_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    hub = commands.add_parser("hub", help="the folder Hub").add_subparsers(dest="action", required=True)
    serve = _add(hub, "serve", run_hub_serve, "serve a folder of models over the Hub's protocol")
    serve.add_argument("folder", type=Path)
    serve.add_argument("--host", default="127.0.0.1")
    about = "0 takes a free one (default 8080)"
    serve.add_argument("--port", type=_between(0, MOST_PORT), default=8080, help=about)
    serve.add_argument(
        "--tokens", type=Path, help="YAML or JSON file of tokens; without it all may read and none push"
    )
    methods = _add(commands, "methods", run_methods, "list the merge methods, or show one")
    methods.add_argument("name", nargs="?")
    convert = _add(commands, "convert", run_convert, "make safetensors of a folder's pickles, behind a guard")
    convert.add_argument("folder", type=Path)
    convert.add_argument("out", type=Path)
    search = _add(
        commands, "search", run_search, "find the best settings of a recipe over folders, without a service"
    )
    search.add_argument(
        "file", type=Path, help="YAML or JSON: recipe, search, evaluate; its folder is the root"
    )
    search.add_argument("--out", type=Path, help="where trials and result are kept (default: FILE.search)")
    search.add_argument("--memory", type=_size, default=1 << 30, help="for the merge (default 1GiB)")
    search.add_argument("--threads", type=_count, default=1)
    search.add_argument("--device", default="cpu")
    front = _add(
        commands, "front", run_front, "show the front that a search found, or the recipe of one of its points"
    )
    front.add_argument("folder", type=Path, help="the --out of the search")
    point = front.add_mutually_exclusive_group()
    point.add_argument("--preference", help="one number an objective, such as 2,1: the point that suits")
    point.add_argument("--place", type=int, help="the point in this place")
    front.add_argument("--among", choices=("measured", "predicted"), default="measured")
    translate = _add(commands, "translate", run_translate, "show a mergekit configuration in our form")
    translate.add_argument("config", type=Path)
    translate.add_argument("--json", action="store_true", help="as JSON, with every default")


def run_up(options: argparse.Namespace, settings: Settings) -> int:
    """`mergery up`"""
    from cli.up import up

    return up(settings, options)


def run_api(options: argparse.Namespace, settings: Settings) -> int:
    """`mergery api`"""
    from cli.serve import serve, serve_alone

    return serve_alone(settings, shared=True) if options.shared else serve(settings)


def run_dispatcher(_options: argparse.Namespace, settings: Settings) -> int:
    """`mergery dispatcher`"""
    from worker.dispatcher import run_dispatcher as dispatch

    dispatch(settings)
    return 0


def run_worker(options: argparse.Namespace, settings: Settings) -> int:
    """`mergery worker`"""
    from worker import app

    if options.health:
        return app.check_health(settings)
    return app.run_worker(settings, options.queues, options.concurrency, options.device)


def run_migrate(_options: argparse.Namespace, settings: Settings) -> int:
    """`mergery migrate`"""
    from migrations.run import upgrade

    upgrade(_database(settings))
    return 0


def run_keys_create(options: argparse.Namespace, settings: Settings) -> int:
    """`mergery keys create`"""
    from cli.up import create_key

    scopes = [scope.strip() for scope in options.scopes.split(",")]
    print(create_key(_database(settings), options.tenant, options.name, scopes))
    return 0


def run_hub_serve(options: argparse.Namespace, _settings: Settings) -> int:
    """`mergery hub serve`"""
    from cli.errors import CliError
    from hub.folder_errors import ConfigInvalid
    from hub.folder_server import serve

    try:
        serve(options.folder, host=options.host, port=options.port, tokens=options.tokens)
    except ConfigInvalid as error:
        raise CliError(str(error)) from None
    return 0


def run_methods(options: argparse.Namespace, _settings: Settings) -> int:
    """`mergery methods`"""
    from merge.recipe.presets import entry, listing

    if options.name is None:
        for name, method in listing().items():
            print(f"{name:18} {method.kind:9} {method.title}")
    else:
        print(json.dumps(entry(options.name).as_dict(), indent=2))
    return 0


def run_convert(options: argparse.Namespace, _settings: Settings) -> int:
    """`mergery convert`"""
    from merge.convert import convert
    from merge.errors import MergeError

    try:
        print(convert(options.folder, options.out))
    except (MergeError, OSError) as error:
        print(f"mergery: {error}", file=sys.stderr)
        return 2
    return 0


def run_search(options: argparse.Namespace, settings: Settings) -> int:
    """`mergery search`"""
    from cli.search import run

    return run(options, settings.hub_endpoint)


def run_front(options: argparse.Namespace, _settings: Settings) -> int:
    """`mergery front`"""
    from cli.front import run

    return run(options)


def _size(text: str) -> int:
    from merge.__main__ import bytes_of

    return bytes_of(text)


def _count(text: str) -> int:
    from merge.__main__ import count_of

    return count_of(text)


def _queues(text: str) -> list[str]:
    from worker.app import QUEUES

    queues = [queue.strip() for queue in text.split(",")]
    for queue in queues:
        if queue not in QUEUES:
            raise argparse.ArgumentTypeError(
                f"there is no queue {queue[:40]!r}; there are {', '.join(QUEUES)}"
            )
    return queues


def _between(least: int, most: int) -> Callable[[str], int]:
    """A type of argument: a whole number from ``least`` to ``most``."""

    def read(text: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number from {least} to {most}")
        return int(text)

    return read


def run_translate(options: argparse.Namespace, _settings: Settings) -> int:
    """`mergery translate`"""
    from merge.errors import FindingsError
    from merge.mergekit.translate import read_file

    try:
        read = read_file(options.config)
    except FindingsError as error:
        for finding in error.findings:
            where = f" ({finding.pointer})" if finding.pointer else ""
            print(f"mergery: {finding.message}{where}", file=sys.stderr)
        return 2
    print(json.dumps(read.as_json(), indent=2) if options.json else read.as_yaml().rstrip())
    return 0


def _database(settings: Settings) -> str:
    """The database's URL: the one that is set, or the embedded server of a running `mergery up`."""
    from cli.up import running_database

    return settings.database_url or running_database(settings.data_dir)


def _settings() -> Settings:
    """The settings in the environment. Raises ``CliError`` with every variable that is wrong."""
    from cli.errors import CliError

    try:
        return Settings()
    except ValidationError as error:
        wrong = [
            f"{_variable(str(each['loc'][0]))}: {each['msg'].removeprefix('Value error, ')}"
            for each in error.errors(include_url=False, include_input=False)
        ]
        raise CliError(f"the environment is wrong: {'; '.join(wrong)}") from None


def _variable(name: str) -> str:
    """What a setting is called in the environment; one with names of its own comes with one of these."""
    return name if name.isupper() else f"MERGERY_{name.upper()}"


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; an error of ours is one line on standard error and exit code 2, Ctrl-C is 130."""
    options = build_parser().parse_args(arguments)
    run: Command = options.run
    try:
        status = run(options, _settings())
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        from merge.__main__ import reader_left

        return reader_left()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except Exception as error:
        from cli.errors import one_line

        told = one_line(error)
        if told is None:
            raise
        print(f"mergery: {told}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
