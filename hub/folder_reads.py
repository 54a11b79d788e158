"""What can be read from a folder Hub: one small method a route, from a request and a repository's name to a
reply.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar
from urllib.parse import parse_qs, quote, urlencode

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hub.folder_access import Tokens, User, check_files, check_visible, check_write
from hub.folder_card import read_card, tags_of
from hub.folder_errors import EntryMissing, RepoMissing, RequestInvalid, RouteMissing
from hub.folder_faults import FaultPlan, Stats
from hub.folder_files import Entry
from hub.folder_http import FileResponse, parse_range
from hub.folder_store import FolderStore, Repo
from hub.folder_xet import TOKEN_SECONDS

Reply = Response | FileResponse
Name = tuple[str, str, str]
Item = TypeVar("Item")
JSON_NAMES: Mapping[type, str] = {str: "string", dict: "object"}
LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


@dataclass
class Reads:
    """Who may see what is decided here, for every route, before anything of the repository is looked at.

    ``xet`` offers the chunk store to clients on this machine, who alone reach it.
    """

    store: FolderStore
    tokens: Tokens
    stats: Stats
    faults: FaultPlan
    xet: bool
    page_size: int

    def _user(self, request: Request) -> User | None:
        return self.tokens.identify(request.headers.get("authorization"))

    def _visible(self, request: Request, name: Name, *, files: bool = False) -> Repo:
        user, repo = self._user(request), self.store.repo(*name)
        if not self.store.exists(repo):
            raise RepoMissing(anonymous=user is None)
        (check_files if files else check_visible)(user, repo.owner, self.store.marks(repo))
        return repo

    def _writable(self, request: Request, name: Name) -> Repo:
        repo = self._visible(request, name)
        check_write(self._user(request), repo.owner)
        return repo

    def whoami(self, request: Request) -> Reply:
        user = self._user(request)
        if user is None:
            return JSONResponse({"error": "Invalid username or password."}, 401)
        orgs = [{"type": "org", "name": org, "fullname": org} for org in user.orgs]
        auth = {"type": "access_token", "accessToken": {"displayName": "token", "role": user.role}}
        return JSONResponse(
            {"type": "user", "name": user.name, "fullname": user.name, "orgs": orgs, "auth": auth}
        )

    def auth_check(self, request: Request, name: Name, write: bool) -> Reply:
        repo = self._visible(request, name, files=True)
        if write:
            check_write(self._user(request), repo.owner)
        return JSONResponse({"ok": True})

    def info(self, request: Request, name: Name, revision: str) -> Reply:
        repo = self._visible(request, name)
        found, marks = self.store.resolve(repo, revision), self.store.marks(repo)
        card: dict[str, Any] = {}
        if "README.md" in found.tree:
            card = read_card(self.store.locate(repo, found, "README.md")[1])
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

    def refs(self, request: Request, name: Name) -> Reply:
        repo = self._visible(request, name)
        branches = [
            {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": head}
            for branch, head in self.store.branches(repo).items()
        ]
        return JSONResponse({"branches": branches, "converts": [], "tags": []})

    def tree(self, request: Request, name: Name, revision: str, below: str) -> Reply:
        repo = self._visible(request, name)
        found = self.store.resolve(repo, revision)
        recursive = request.query_params.get("recursive", "").lower() in ("1", "true")
        entries = list_tree(found.tree, below, recursive, partial(self._entry_row, self._offers_xet(request)))
        if below and not entries:
            raise EntryMissing(f"{below} does not exist", found.id)
        entries += self.faults.tree_extra
        cursor = request.query_params.get("cursor", "0")
        begin = int(cursor) if cursor.isascii() and cursor.isdigit() and len(cursor) < 10 else 0
        headers = {}
        if begin + self.page_size < len(entries):
            query = {**request.query_params, "cursor": str(begin + self.page_size)}
            raw = request.scope["raw_path"].decode("ascii")
            headers["Link"] = f'<{base_url(request)}{raw}?{urlencode(query)}>; rel="next"'
        return JSONResponse(entries[begin : begin + self.page_size], headers=headers)

    def _entry_row(self, xet: bool, path: str, entry: Entry) -> dict[str, Any]:
        row: dict[str, Any] = {"type": "file", "path": path, "oid": entry.oid, "size": entry.size}
        if entry.sha256:
            row["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": 134}
            if xet and (hash := self.store.xet_hash(entry)):
                row["xetHash"] = hash
        return row

    def paths(self, request: Request, name: Name, body: bytes, revision: str) -> Reply:
        repo = self._visible(request, name)
        found = self.store.resolve(repo, revision)
        if "json" in request.headers.get("content-type", ""):
            wanted = items_of(json_body(body), "paths", str)
        else:
            wanted = parse_qs(body.decode("utf-8", "replace")).get("paths", [])
        xet = self._offers_xet(request)
        rows = [self._entry_row(xet, path, found.tree[path]) for path in wanted if path in found.tree]
        return JSONResponse(rows)

    def resolve(self, request: Request, name: Name, revision: str, path: str) -> Reply:
        repo = self._visible(request, name, files=True)
        found = self.store.resolve(repo, revision)
        entry, place = self.store.locate(repo, found, path)
        headers = {
            "X-Repo-Commit": found.id,
            "ETag": f'"{entry.etag}"',
            "X-Content-Type-Options": "nosniff",
            "Content-Disposition": "attachment",
        }
        if entry.sha256:
            headers |= {"X-Linked-Etag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
            hash = self.store.xet_hash(entry) if self._offers_xet(request) else None
            if hash:
                url = f"{base_url(request)}/api/{repo.kind}s/{repo.id}/xet-read-token/{found.id}"
                headers |= {"X-Xet-Hash": hash, "Link": f'<{url}>; rel="xet-auth"'}
        if request.method == "HEAD":
            headers |= {"Content-Length": str(entry.size), "Accept-Ranges": "bytes"}
            return Response(status_code=200, headers=headers, media_type="application/octet-stream")
        span = parse_range(request.headers.get("range"), entry.size)
        return FileResponse(place, path, span, headers, self.stats)

    def _offers_xet(self, request: Request) -> bool:
        return self.xet and request.client is not None and request.client.host in LOOPBACK

    def xet_token(self, request: Request, name: Name, write: bool) -> Reply:
        repo = self._writable(request, name) if write else self._visible(request, name, files=True)
        if not self._offers_xet(request):
            raise RouteMissing(f"{repo.id} is served without xet: set HF_HUB_DISABLE_XET=1")
        url, token = self.store.xet.url, "local"
        expiry = int(datetime.now(UTC).timestamp()) + TOKEN_SECONDS
        headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(expiry)}
        return JSONResponse({"casUrl": url, "accessToken": token, "exp": expiry}, headers=headers)


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


def json_body(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise RequestInvalid("the body must be a JSON object")
    return document


def items_of(document: dict[str, Any], key: str, kind: type[Item]) -> list[Item]:
    """The list under ``key``, each of whose items is of this kind."""
    items = document.get(key, [])
    if not isinstance(items, list) or not all(isinstance(item, kind) for item in items):
        raise RequestInvalid(f"`{key}` must be a list, each item of it a JSON {JSON_NAMES[kind]}")
    return items


def base_url(request: Request) -> str:
    host = request.headers.get("host", "")
    return f"{request.url.scheme}://{quote(host, safe=':[]')}"
