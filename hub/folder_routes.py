"""The Hub's protocol over a folder: an ASGI application that tells routes apart by method and path."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from anyio import sleep, to_thread
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from hub.folder_errors import FolderError, RepoMissing, RequestInvalid, RouteMissing
from hub.folder_faults import Fault
from hub.folder_http import FileResponse, error_response, fault_response
from hub.folder_reads import Name, Reply
from hub.folder_upload import small_body
from hub.folder_writes import Writes

KINDS = {"models": "model", "datasets": "dataset"}
Work = Callable[[], Awaitable[Reply]]


@dataclass(frozen=True)
class Match:
    """A request understood: its route (as counted and as faults name it), what answers it, its file."""

    route: str
    work: Work
    file: str | None = None


class FolderApp:
    """An ASGI application that hands every request to the method of ``routes`` that answers it."""

    def __init__(self, routes: Writes) -> None:
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        try:
            reply = await self._answer(request)
        except FolderError as error:
            reply = error_response(error)
        except UnicodeEncodeError:
            reply = error_response(RequestInvalid("a text holds half of a surrogate pair"))
        except ClientDisconnect:
            return
        await reply(scope, receive, send)

    async def _answer(self, request: Request) -> Reply:
        raw: bytes = request.scope.get("raw_path") or request.url.path.encode()
        segments = [unquote(part) for part in raw.decode("ascii", "replace").strip("/").split("/")]
        match = self._match(request, segments)
        self._routes.stats.count_request(match.route)
        fault = self._routes.faults.take(match.route, match.file)
        if fault is not None:
            await sleep(fault.delay)
            if fault.status is not None and not fault.after:
                return fault_response(fault)
        reply = await match.work()
        if isinstance(reply, FileResponse):
            reply.line = self._routes.faults.line
        return _marred(reply, fault)

    def _match(self, request: Request, segments: list[str]) -> Match:
        routes = self._routes
        match [request.method, *segments]:
            case ["GET", "api", "whoami-v2"]:
                return Match("whoami", _in_thread(routes.whoami, request))
            case ["POST", "api", "validate-yaml"]:
                return Match("validate", lambda: routes.validate(request))
            case ["POST", "api", "repos", "create"]:
                return Match("create", lambda: routes.create(request))
            case [_, "api", "models" | "datasets" as kind, owner, name, *rest]:
                return self._match_api(request, (KINDS[kind], owner, name), rest)
            case [_, "api", "models" | "datasets", _]:
                raise RepoMissing
            case ["PUT", "lfs", "objects", sha256]:
                return Match("put", lambda: routes.put(request, sha256), sha256)
            case [_, "datasets", owner, name, *rest]:
                return self._match_files(request, ("dataset", owner, name), rest)
            case [_, owner, name, *rest]:
                return self._match_files(request, ("model", owner, name), rest)
        raise RouteMissing("a folder Hub does not serve this route")

    def _match_api(self, request: Request, repo: Name, rest: list[str]) -> Match:
        routes = self._routes
        match [request.method, *rest]:
            case ["GET"]:
                return Match("info", _in_thread(routes.info, request, repo, "main"))
            case ["GET", "revision", revision]:
                return Match("info", _in_thread(routes.info, request, repo, revision))
            case ["GET", "auth-check", *write] if write in ([], ["write"]):
                return Match("auth", _in_thread(routes.auth_check, request, repo, bool(write)))
            case ["GET", "refs"]:
                return Match("refs", _in_thread(routes.refs, request, repo))
            case ["GET", "tree", revision, *below]:
                return Match("tree", _in_thread(routes.tree, request, repo, revision, "/".join(below)))
            case ["GET", "xet-read-token" | "xet-write-token" as kind, *_]:
                return Match("xet-token", _in_thread(routes.xet_token, request, repo, "write" in kind))
            case ["POST", "paths-info", revision]:
                return Match("paths", _with_body(routes.paths, request, repo, revision))
            case ["POST", "preupload", revision]:
                return Match("preupload", _with_body(routes.preupload, request, repo, revision))
            case ["POST", "branch", revision]:
                return Match("branch", _with_body(routes.branch, request, repo, revision))
            case ["POST", "commit", revision]:
                return Match("commit", _with_body(routes.commit, request, repo, revision))
        raise RouteMissing("a folder Hub does not serve this route")

    def _match_files(self, request: Request, repo: Name, rest: list[str]) -> Match:
        match [request.method, *rest]:
            case ["GET" | "HEAD" as method, "resolve", revision, *parts] if parts:
                path = "/".join(parts)
                work = _in_thread(self._routes.resolve, request, repo, revision, path)
                return Match("get" if method == "GET" else "head", work, path)
            case ["POST", "info", "lfs", "objects", "batch"] if repo[2].endswith(".git"):
                plain = (repo[0], repo[1], repo[2].removesuffix(".git"))
                return Match("batch", _with_body(self._routes.batch, request, plain))
        raise RouteMissing("a folder Hub does not serve this route")


def _in_thread(work: Callable[..., Reply], *args: Any) -> Work:
    async def answer() -> Reply:
        return await to_thread.run_sync(lambda: work(*args))

    return answer


def _with_body(work: Callable[..., Reply], request: Request, repo: Name, *args: Any) -> Work:
    async def answer() -> Reply:
        body = await small_body(request)
        return await to_thread.run_sync(lambda: work(request, repo, body, *args))

    return answer


def _marred(reply: Reply, fault: Fault | None) -> Reply:
    if fault is None:
        return reply
    if fault.status is not None:
        return fault_response(fault)
    if isinstance(reply, FileResponse):
        reply.fault = fault
    return reply
