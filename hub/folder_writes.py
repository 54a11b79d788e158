"""What can be written to a folder Hub: repositories, branches, uploads, commits."""

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import yaml
from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hub.folder_access import check_write
from hub.folder_errors import RepoExists, RepoMissing, RequestInvalid
from hub.folder_files import is_large, is_shown
from hub.folder_http import UploadLinks
from hub.folder_reads import Name, Reads, Reply, base_url, items_of, json_body
from hub.folder_upload import parse_commit, receive_file, small_body
from hub.names import KINDS, SHA256, is_branch


@dataclass
class Writes(Reads):
    """The reads, and what changes a repository; each write asks for a write token of its owner."""

    def __post_init__(self) -> None:
        self._links = UploadLinks.load(self.store.home / "link-secret")

    async def validate(self, request: Request) -> Reply:
        content = json_body(await small_body(request)).get("content")
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

    async def create(self, request: Request) -> Reply:
        body = json_body(await small_body(request))

        def work() -> Reply:
            user = self._user(request)
            owner = body.get("organization") or (user.name if user else "")
            kind = body.get("type") or "model"
            if kind not in KINDS:
                raise RequestInvalid("only models and datasets live in a folder Hub")
            check_write(user, str(owner))
            try:
                repo = self.store.repo(kind, str(owner), str(body.get("name")))
            except RepoMissing:
                raise RequestInvalid("this is not a name for a repository") from None
            url = f"{base_url(request)}/{'datasets/' if kind == 'dataset' else ''}{repo.id}"
            private = body.get("visibility") == "private" or body.get("private") is True
            try:
                self.store.create(repo, private=private)
            except RepoExists as error:
                return JSONResponse({"error": str(error), "url": url}, 409, {"X-Error-Message": str(error)})
            return JSONResponse({"url": url, "name": repo.id})

        return await to_thread.run_sync(work)

    def preupload(self, request: Request, name: Name, body: bytes, revision: str) -> Reply:
        repo = self._writable(request, name)
        tree, rows = self.store.resolve(repo, revision).tree, []
        for file in items_of(json_body(body), "files", dict):
            path, size, sample = file.get("path"), file.get("size"), _sample(file.get("sample"))
            if not isinstance(path, str) or not isinstance(size, int):
                raise RequestInvalid("each file needs a path and a size")
            mode = "lfs" if is_large(path, size, sample) else "regular"
            row = {"path": path, "uploadMode": mode, "shouldIgnore": False}
            if path in tree:
                row["oid"] = tree[path].etag
            rows.append(row)
        return JSONResponse({"files": rows})

    def branch(self, request: Request, name: Name, body: bytes, branch: str) -> Reply:
        repo = self._writable(request, name)
        if not is_branch(branch):
            raise RequestInvalid("this is not a name for a branch")
        self.store.create_branch(repo, branch, json_body(body).get("startingPoint") if body else None)
        return JSONResponse({"ok": True})

    def batch(self, request: Request, name: Name, body: bytes) -> Reply:
        asked = json_body(body)
        upload = asked.get("operation") == "upload"
        repo = self._writable(request, name) if upload else self._visible(request, name, files=True)
        if not upload:
            raise RequestInvalid("only uploads go through this route")
        objects = []
        for item in items_of(asked, "objects", dict):
            sha256, size = item.get("oid"), item.get("size")
            if (
                not isinstance(sha256, str)
                or not SHA256.match(sha256)
                or not isinstance(size, int)
                or size < 0
            ):
                raise RequestInvalid("each object needs a sha256 and a size")
            answer: dict[str, Any] = {"oid": sha256, "size": size}
            if not self.store.has_large(repo, sha256):
                query = urlencode(self._links.sign(repo.key, sha256, size))
                href = f"{base_url(request)}/lfs/objects/{sha256}?{query}"
                answer |= {"authenticated": True, "actions": {"upload": {"href": href, "header": {}}}}
            objects.append(answer)
        reply = {"transfer": "basic", "objects": objects}
        return JSONResponse(reply, media_type="application/vnd.git-lfs+json")

    async def put(self, request: Request, sha256: str) -> Reply:
        repo, size = self._links.check(sha256, request.query_params)
        await receive_file(request, self.store, repo, sha256, size, self.stats, self.faults.line)
        return Response(status_code=200)

    def commit(self, request: Request, name: Name, body: bytes, branch: str) -> Reply:
        repo = self._writable(request, name)
        header, changes = parse_commit(body)
        for change in changes:
            if not is_shown(change.path):
                raise RequestInvalid(f"this file name is not allowed: {change.path!r}")
        made = self.store.commit(repo, branch, header.title, header.description, header.parent, changes)
        prefix = "datasets/" if repo.kind == "dataset" else ""
        url = f"{base_url(request)}/{prefix}{repo.id}/commit/{made.id}"
        return JSONResponse({"success": True, "commitOid": made.id, "commitUrl": url, "hookOutput": ""})


def _sample(text: Any) -> bytes:
    try:
        return base64.b64decode(text or "")
    except (TypeError, ValueError, binascii.Error):
        raise RequestInvalid("a sample must be base64") from None
