"""The Hub's protocol over a folder: one class, one small method a route, told apart by method and path."""

import json
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode

import yaml
from anyio import sleep, to_thread
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from hub.folder_access import Tokens, User, check_files, check_visible, check_write
from hub.folder_card import read_card, tags_of
from hub.folder_errors import EntryMissing, FolderError, RepoExists, RepoMissing, RequestInvalid, RouteMissing
from hub.folder_faults import Fault, FaultPlan, Stats
from hub.folder_files import Entry, is_large, is_shown
from hub.folder_http import FileResponse, UploadLinks, error_response, fault_response, parse_range
from hub.folder_store import FolderStore, Repo
from hub.folder_upload import parse_commit, receive_file, small_body
from hub.folder_xet import TOKEN_SECONDS
from hub.names import SHA256

Reply = Response | FileResponse
LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
KINDS = {"models": "model", "datasets": "dataset"}


class FolderApp:
    """An ASGI application. ``xet`` offers the chunk store, and only to clients on this machine, who can reach it."""

    def __init__(
        self,
        store: FolderStore,
        tokens: Tokens,
        *,
        stats: Stats,
        faults: FaultPlan,
        xet: bool,
        page_size: int,
    ) -> None:
        self._store, self._tokens, self._stats, self._faults = store, tokens, stats, faults
        self._xet, self._page_size = xet, page_size
        self._links = UploadLinks.load(store.home / "link-secret")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        try:
            reply = await self._answer(request)
        except FolderError as error:
            reply = error_response(error)
        except ClientDisconnect:
            return
        await reply(scope, receive, send)

    async def _answer(self, request: Request) -> Reply:
        raw: bytes = request.scope.get("raw_path") or request.url.path.encode()
        segments = [unquote(part) for part in raw.decode("ascii", "replace").strip("/").split("/")]
        route, file, work = self._match(request, segments)
        self._stats.count_request(route)
        fault = self._faults.take(route, file)
        if fault is not None:
            await sleep(fault.delay)
            if fault.status is not None and not fault.after:
                return fault_response(fault)
        return _marred(await work(), fault)

    def _match(
        self, request: Request, segments: list[str]
    ) -> tuple[str, str | None, Callable[[], Awaitable[Reply]]]:
        method = request.method
        match segments:
            case ["api", "whoami-v2"] if method == "GET":
                return "whoami", None, lambda: self._in_thread(self._whoami, request)
            case ["api", "validate-yaml"] if method == "POST":
                return "validate", None, lambda: self._validate(request)
            case ["api", "repos", "create"] if method == "POST":
                return "create", None, lambda: self._create(request)
            case ["api", ("models" | "datasets") as kind, owner, name, *rest]:
                return self._match_api(request, (KINDS[kind], owner, name), rest)
            case ["lfs", "objects", sha256] if method == "PUT":
                return "put", sha256, lambda: self._put(request, sha256)
            case ["datasets", owner, name, *rest]:
                return self._match_files(request, ("dataset", owner, name), rest)
            case [owner, name, *rest]:
                return self._match_files(request, ("model", owner, name), rest)
        return "unknown", None, _no_route

    def _match_api(
        self, request: Request, repo: tuple[str, str, str], rest: list[str]
    ) -> tuple[str, str | None, Callable[[], Awaitable[Reply]]]:
        def thread(work: Callable[..., Reply], *args: Any) -> Callable[[], Awaitable[Reply]]:
            return lambda: self._in_thread(work, request, repo, *args)

        match [request.method, *rest]:
            case ["GET"]:
                return "info", None, thread(self._info, "main")
            case ["GET", "revision", revision]:
                return "info", None, thread(self._info, revision)
            case ["GET", "auth-check", *write] if write in ([], ["write"]):
                return "auth", None, thread(self._auth_check, bool(write))
            case ["GET", "refs"]:
                return "refs", None, thread(self._refs)
            case ["GET", "tree", revision, *below]:
                return "tree", None, thread(self._tree, revision, "/".join(below))
            case ["GET", ("xet-read-token" | "xet-write-token") as token, *_]:
                return "xet-token", None, thread(self._xet_token, token == "xet-write-token")  # noqa: S105
            case ["POST", "paths-info", revision]:
                return "paths", None, lambda: self._with_body(request, repo, self._paths, revision)
            case ["POST", "preupload", revision]:
                return "preupload", None, lambda: self._with_body(request, repo, self._preupload, revision)
            case ["POST", "branch", revision]:
                return "branch", None, lambda: self._with_body(request, repo, self._branch, revision)
            case ["POST", "commit", revision]:
                return "commit", None, lambda: self._with_body(request, repo, self._commit, revision)
        return "unknown", None, _no_route

    def _match_files(
        self, request: Request, repo: tuple[str, str, str], rest: list[str]
    ) -> tuple[str, str | None, Callable[[], Awaitable[Reply]]]:
        match [request.method, *rest]:
            case [("GET" | "HEAD") as method, "resolve", revision, *parts] if parts:
                path = "/".join(parts)
                route = "get" if method == "GET" else "head"
                return route, path, lambda: self._in_thread(self._resolve, request, repo, revision, path)
            case ["POST", "info", "lfs", "objects", "batch"] if repo[2].endswith(".git"):
                plain = (repo[0], repo[1], repo[2].removesuffix(".git"))
                return "batch", None, lambda: self._with_body(request, plain, self._batch)
        return "unknown", None, _no_route

    async def _in_thread(self, work: Callable[..., Reply], *args: Any) -> Reply:
        return await to_thread.run_sync(lambda: work(*args))

    async def _with_body(
        self, request: Request, repo: tuple[str, str, str], work: Callable[..., Reply], *args: Any
    ) -> Reply:
        body = await small_body(request)
        return await self._in_thread(work, request, repo, body, *args)

    def _user(self, request: Request) -> User | None:
        return self._tokens.identify(request.headers.get("authorization"))

    def _visible(self, request: Request, name: tuple[str, str, str], *, files: bool = False) -> Repo:
        user, repo = self._user(request), self._store.repo(*name)
        if not self._store.exists(repo):
            raise RepoMissing(anonymous=user is None)
        (check_files if files else check_visible)(user, repo.owner, self._store.marks(repo))
        return repo

    def _writable(self, request: Request, name: tuple[str, str, str]) -> Repo:
        repo = self._visible(request, name)
        check_write(self._user(request), repo.owner)
        return repo

    def _whoami(self, request: Request) -> Reply:
        user = self._user(request)
        if user is None:
            return JSONResponse({"error": "Invalid username or password."}, 401)
        orgs = [{"type": "org", "name": org, "fullname": org} for org in user.orgs]
        auth = {"type": "access_token", "accessToken": {"displayName": "token", "role": user.role}}
        return JSONResponse(
            {"type": "user", "name": user.name, "fullname": user.name, "orgs": orgs, "auth": auth}
        )

    def _auth_check(self, request: Request, name: tuple[str, str, str], write: bool) -> Reply:
        repo = self._visible(request, name, files=True)
        if write:
            check_write(self._user(request), repo.owner)
        return JSONResponse({"ok": True})

    def _info(self, request: Request, name: tuple[str, str, str], revision: str) -> Reply:
        repo = self._visible(request, name)
        found, marks = self._store.resolve(repo, revision), self._store.marks(repo)
        card: dict[str, Any] = {}
        if "README.md" in found.tree:
            card = read_card(self._store.locate(repo, found, "README.md")[1])
        blobs = "blobs" in request.query_params
        created = datetime.fromtimestamp(found.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"
        body = {
            "_id": found.id[:24],
            "id": repo.id,
            "author": repo.owner,
            "sha": found.id,
            "private": marks.private,
            "gated": "manual" if marks.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "lastModified": created,
            "createdAt": created,
            "tags": tags_of(card),
            "cardData": json.loads(json.dumps(card, default=str)),
            "siblings": [_sibling(path, entry, blobs) for path, entry in found.tree.items()],
        }
        if repo.kind == "model":
            body["modelId"] = repo.id
            body |= {
                key: card[key] for key in ("library_name", "pipeline_tag") if isinstance(card.get(key), str)
            }
        return JSONResponse(body)

    def _refs(self, request: Request, name: tuple[str, str, str]) -> Reply:
        repo = self._visible(request, name)
        branches = [
            {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": head}
            for branch, head in self._store.branches(repo).items()
        ]
        return JSONResponse({"branches": branches, "converts": [], "tags": []})

    def _tree(self, request: Request, name: tuple[str, str, str], revision: str, below: str) -> Reply:
        repo = self._visible(request, name)
        found = self._store.resolve(repo, revision)
        recursive = request.query_params.get("recursive", "").lower() in ("1", "true")
        entries = list_tree(found.tree, below, recursive, partial(self._entry_row, self._offers_xet(request)))
        if below and not entries:
            raise EntryMissing(f"{below} does not exist", found.id)
        entries += self._faults.tree_extra
        cursor = request.query_params.get("cursor", "0")
        begin = int(cursor) if cursor.isascii() and cursor.isdigit() and len(cursor) < 10 else 0
        headers = {}
        if begin + self._page_size < len(entries):
            query = {**request.query_params, "cursor": str(begin + self._page_size)}
            raw = request.scope["raw_path"].decode("ascii")
            headers["Link"] = f'<{_base(request)}{raw}?{urlencode(query)}>; rel="next"'
        return JSONResponse(entries[begin : begin + self._page_size], headers=headers)

    def _entry_row(self, xet: bool, path: str, entry: Entry) -> dict[str, Any]:
        row: dict[str, Any] = {"type": "file", "path": path, "oid": entry.oid, "size": entry.size}
        if entry.sha256:
            row["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": 134}
            if xet and (hash := self._store.xet_hash(entry)):
                row["xetHash"] = hash
        return row

    def _paths(self, request: Request, name: tuple[str, str, str], body: bytes, revision: str) -> Reply:
        repo = self._visible(request, name)
        found = self._store.resolve(repo, revision)
        if "json" in request.headers.get("content-type", ""):
            wanted = _json(body).get("paths", [])
        else:
            wanted = parse_qs(body.decode("utf-8", "replace")).get("paths", [])
        xet = self._offers_xet(request)
        rows = [self._entry_row(xet, path, found.tree[path]) for path in wanted if path in found.tree]
        return JSONResponse(rows)

    def _resolve(self, request: Request, name: tuple[str, str, str], revision: str, path: str) -> Reply:
        repo = self._visible(request, name, files=True)
        found = self._store.resolve(repo, revision)
        entry, place = self._store.locate(repo, found, path)
        headers = {
            "X-Repo-Commit": found.id,
            "ETag": f'"{entry.etag}"',
            "X-Content-Type-Options": "nosniff",
            "Content-Disposition": "attachment",
        }
        if entry.sha256:
            headers |= {"X-Linked-Etag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
            hash = self._store.xet_hash(entry) if self._offers_xet(request) else None
            if hash:
                url = f"{_base(request)}/api/{repo.kind}s/{repo.id}/xet-read-token/{found.id}"
                headers |= {"X-Xet-Hash": hash, "Link": f'<{url}>; rel="xet-auth"'}
        if request.method == "HEAD":
            headers |= {"Content-Length": str(entry.size), "Accept-Ranges": "bytes"}
            return Response(status_code=200, headers=headers, media_type="application/octet-stream")
        span = parse_range(request.headers.get("range"), entry.size)
        return FileResponse(place, path, span, headers, self._stats)

    def _offers_xet(self, request: Request) -> bool:
        return self._xet and request.client is not None and request.client.host in LOOPBACK

    def _xet_token(self, request: Request, name: tuple[str, str, str], write: bool) -> Reply:
        repo = self._writable(request, name) if write else self._visible(request, name, files=True)
        if not self._offers_xet(request):
            raise RouteMissing(f"{repo.id} is served without xet: set HF_HUB_DISABLE_XET=1")
        url, token = self._store.xet.url, "local"
        expiry = int(datetime.now(UTC).timestamp()) + TOKEN_SECONDS
        headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(expiry)}
        return JSONResponse({"casUrl": url, "accessToken": token, "exp": expiry}, headers=headers)

    async def _validate(self, request: Request) -> Reply:
        content = _json(await small_body(request)).get("content")
        match = (
            re.match(r"\ufeff?---\r?\n(.*?)\r?\n---", content, re.DOTALL)
            if isinstance(content, str)
            else None
        )
        try:
            if match and not isinstance(yaml.safe_load(match[1]), dict | None):
                raise ValueError
        except (yaml.YAMLError, ValueError, RecursionError):
            return JSONResponse({"errors": [{"message": "the front matter is not a YAML mapping"}]}, 400)
        return JSONResponse({"errors": [], "warnings": []})

    async def _create(self, request: Request) -> Reply:
        body = _json(await small_body(request))

        def work() -> Reply:
            user = self._user(request)
            owner = body.get("organization") or (user.name if user else "")
            kind = body.get("type") or "model"
            if kind not in KINDS.values():
                raise RequestInvalid("only models and datasets live in a folder Hub")
            check_write(user, str(owner))
            try:
                repo = self._store.repo(kind, str(owner), str(body.get("name")))
            except RepoMissing:
                raise RequestInvalid("this is not a name for a repository") from None
            url = f"{_base(request)}/{'datasets/' if kind == 'dataset' else ''}{repo.id}"
            private = body.get("visibility") == "private" or body.get("private") is True
            try:
                self._store.create(repo, private=private)
            except RepoExists as error:
                return JSONResponse({"error": str(error), "url": url}, 409, {"X-Error-Message": str(error)})
            return JSONResponse({"url": url, "name": repo.id})

        return await self._in_thread(work)

    def _preupload(self, request: Request, name: tuple[str, str, str], body: bytes, revision: str) -> Reply:
        repo = self._writable(request, name)
        tree, rows = self._store.resolve(repo, revision).tree, []
        for file in _json(body).get("files", []):
            path, size, sample = file.get("path"), file.get("size"), _sample(file.get("sample"))
            if not isinstance(path, str) or not isinstance(size, int):
                raise RequestInvalid("each file needs a path and a size")
            mode = "lfs" if is_large(path, size, sample) else "regular"
            row = {"path": path, "uploadMode": mode, "shouldIgnore": False}
            if path in tree:
                row["oid"] = tree[path].etag
            rows.append(row)
        return JSONResponse({"files": rows})

    def _branch(self, request: Request, name: tuple[str, str, str], body: bytes, branch: str) -> Reply:
        repo = self._writable(request, name)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}", branch) or ".." in branch:
            raise RequestInvalid("this is not a name for a branch")
        self._store.create_branch(repo, branch, _json(body).get("startingPoint") if body else None)
        return JSONResponse({"ok": True})

    def _batch(self, request: Request, name: tuple[str, str, str], body: bytes) -> Reply:
        asked = _json(body)
        upload = asked.get("operation") == "upload"
        repo = self._writable(request, name) if upload else self._visible(request, name, files=True)
        if not upload:
            raise RequestInvalid("only uploads go through this route")
        objects = []
        for item in asked.get("objects", []):
            sha256, size = item.get("oid"), item.get("size")
            if (
                not isinstance(sha256, str)
                or not SHA256.match(sha256)
                or not isinstance(size, int)
                or size < 0
            ):
                raise RequestInvalid("each object needs a sha256 and a size")
            answer: dict[str, Any] = {"oid": sha256, "size": size}
            if not self._store.has_large(repo, sha256):
                href = f"{_base(request)}/lfs/objects/{sha256}?{urlencode(self._links.sign(repo.key, sha256, size))}"
                answer |= {"authenticated": True, "actions": {"upload": {"href": href, "header": {}}}}
            objects.append(answer)
        reply = {"transfer": "basic", "objects": objects}
        return JSONResponse(reply, media_type="application/vnd.git-lfs+json")

    async def _put(self, request: Request, sha256: str) -> Reply:
        repo, size = self._links.check(sha256, request.query_params)
        await receive_file(request, self._store, repo, sha256, size, self._stats)
        return Response(status_code=200)

    def _commit(self, request: Request, name: tuple[str, str, str], body: bytes, branch: str) -> Reply:
        repo = self._writable(request, name)
        header, changes = parse_commit(body)
        for change in changes:
            if not is_shown(change.path):
                raise RequestInvalid(f"this file name is not allowed: {change.path!r}")
        made = self._store.commit(repo, branch, header.title, header.description, header.parent, changes)
        prefix = "datasets/" if repo.kind == "dataset" else ""
        url = f"{_base(request)}/{prefix}{repo.id}/commit/{made.id}"
        return JSONResponse({"success": True, "commitOid": made.id, "commitUrl": url, "hookOutput": ""})


def list_tree(
    tree: dict[str, Entry], below: str, recursive: bool, row: Callable[[str, Entry], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Files and folders under ``below``, sorted by path; only its direct children unless ``recursive``."""
    prefix = below.strip("/") + "/" if below else ""
    rows: dict[str, dict[str, Any]] = {}
    for path, entry in tree.items():
        if not path.startswith(prefix):
            continue
        parts = path[len(prefix) :].split("/")
        for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
            folder = prefix + "/".join(parts[:depth])
            rows.setdefault(folder, {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0})
        if recursive or len(parts) == 1:
            rows[path] = row(path, entry)
    return [rows[path] for path in sorted(rows)]


def _sibling(path: str, entry: Entry, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": path}
    large = {"lfs": {"sha256": entry.sha256, "size": entry.size, "pointerSize": 134}} if entry.sha256 else {}
    return {"rfilename": path, "size": entry.size, "blobId": entry.oid, **large}


def _sample(text: Any) -> bytes:
    import base64
    import binascii

    try:
        return base64.b64decode(text or "")
    except (TypeError, ValueError, binascii.Error):
        raise RequestInvalid("a sample must be base64") from None


def _json(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise RequestInvalid("the body must be a JSON object")
    return document


def _base(request: Request) -> str:
    host = request.headers.get("host", "")
    return f"{request.url.scheme}://{quote(host, safe=':[]')}"


def _marred(reply: Reply, fault: Fault | None) -> Reply:
    if fault is None:
        return reply
    if fault.status is not None:
        return fault_response(fault)
    if isinstance(reply, FileResponse):
        reply.fault = fault
    return reply


async def _no_route() -> Reply:
    raise RouteMissing("a folder Hub does not serve this route")
