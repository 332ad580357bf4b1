"""The server of one page: a fixed list of files below a secret token, and two places to post to.

A path is looked up in the list and in nothing else, so none leads out of it. Requests with another
token, host or origin, and other methods, are refused; every answer asks for cross-origin isolation,
without which a browser gives WebAssembly no threads.
"""

from __future__ import annotations

import hmac
import os
import socket
import ssl
import stat
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
}
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; "
    "worker-src 'self' blob:; connect-src 'self'; style-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
MOST_CONNECTIONS = 64
FIRST_SECONDS, IDLE_SECONDS = 5, 30
"""How long a connection may be silent, before and after a request with the token."""
_PIECE = 1 << 20

_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)

Post = Callable[[bytes], HTTPStatus]
"""Takes what was posted; its status is the answer."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """What is served: files or bytes by path below the token; ``posts`` take JSON by path, with
    the most bytes that each may have."""

    token: str
    content: Mapping[str, Path | bytes]
    posts: Mapping[str, tuple[int, Post]] = field(default_factory=dict)
    answered: Callable[[str], None] = lambda path: None
    """Called when a post to this path has its answer."""


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    server: PageServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "mtu-export", ""
    timeout = FIRST_SECONDS

    def do_GET(self) -> None:
        """A file of the list."""
        content = self.server.site.content
        path = self._path()
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self._answer(HTTPStatus.BAD_REQUEST, close=True)
            return
        if path is None or path not in content:
            self._answer(HTTPStatus.NOT_FOUND)
            return
        entry, kind = content[path], TYPES.get(Path(path).suffix, "application/octet-stream")
        if path == "":
            kind = TYPES[".html"]
        if isinstance(entry, bytes):
            self._answer(HTTPStatus.OK, entry, kind)
            return
        self._send_file(entry, kind)

    def do_POST(self) -> None:
        """JSON of the page."""
        posts = self.server.site.posts
        path = self._path()
        if path is None or path not in posts or not self._is_same_origin():
            self._answer(HTTPStatus.NOT_FOUND, close=True)
            return
        most, post = posts[path]
        length = ",".join(self.headers.get_all("Content-Length") or [])
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdigit()):
            self._answer(HTTPStatus.LENGTH_REQUIRED, close=True)
        elif len(length) > 9 or int(length) > most:
            self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, close=True)
        elif kind != "application/json":
            self._answer(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, close=True)
        else:
            data = self.rfile.read(int(length))
            if len(data) == int(length):
                self._answer(post(data))
                self.wfile.flush()
                self.server.site.answered(path)

    def _refuse(self) -> None:
        self._answer(HTTPStatus.METHOD_NOT_ALLOWED, close=True)

    do_HEAD = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = _refuse

    def _path(self) -> str | None:
        """The path below the token; None for another token or host."""
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or hosts[0].lower() not in self.server.hosts:
            return None
        token, slash, path = self.path.removeprefix("/").partition("/")
        secret = self.server.site.token.encode()
        if not slash or not hmac.compare_digest(token.encode("latin-1", "replace"), secret):
            return None
        self.connection.settimeout(IDLE_SECONDS)
        try:
            return unquote(path, errors="strict")
        except UnicodeDecodeError:
            return None

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """An answer to what is no request, without a word of it."""
        self._answer(HTTPStatus(code), close=True)

    def _is_same_origin(self) -> bool:
        scheme = "https" if self.server.context else "http"
        legal = {f"{scheme}://{host}" for host in self.server.hosts}
        return all(origin.lower() in legal for origin in self.headers.get_all("Origin") or [])

    def _answer(
        self, status: HTTPStatus, body: bytes = b"", kind: str = "text/plain", close: bool = False
    ) -> None:
        self.send_response(status)
        if close:
            self.send_header("Connection", "close")
            self.close_connection = True
        self._send_headers(len(body), kind)
        self.wfile.write(body)

    def _send_headers(self, length: int, kind: str) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _send_file(self, path: Path, kind: str) -> None:
        """A plain file, which may have become a link since it was listed."""
        try:
            handle = os.open(path, _FLAGS)
        except OSError:
            self._answer(HTTPStatus.NOT_FOUND)
            return
        with os.fdopen(handle, "rb") as stream:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode) or path.resolve() != path:
                self._answer(HTTPStatus.NOT_FOUND)
                return
            self.send_response(HTTPStatus.OK)
            self._send_headers(status.st_size, kind)
            left = status.st_size  # the file may grow or shrink meanwhile
            while left and (data := stream.read(min(left, _PIECE))):
                self.wfile.write(data)
                left -= len(data)
            self.close_connection = self.close_connection or left > 0

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the page tells what it does."""


class PageServer(ThreadingHTTPServer):
    """Serves a site; ``hosts`` are the legal Host headers; with ``context`` by TLS."""

    daemon_threads = True
    request_queue_size = MOST_CONNECTIONS

    def __init__(
        self,
        address: tuple[str, int],
        site: Site,
        names: tuple[str, ...],
        context: ssl.SSLContext | None = None,
    ) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, Handler)
        self.site, self.context = site, context
        port = self.server_address[1]
        usual = port == (443 if context else 80)
        hosts = [f"{name}:{port}" for name in names] + (list(names) if usual else [])
        self.hosts = frozenset(host.lower() for host in hosts)
        self._connections = threading.BoundedSemaphore(MOST_CONNECTIONS)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread; where too many are open, not at all."""
        if not self._connections.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """One connection. TLS begins here: a client that is silent stops no other."""
        try:
            request.settimeout(FIRST_SECONDS)
            wrapped = request
            if self.context is not None:
                wrapped = self.context.wrap_socket(request, server_side=True)
            super().process_request_thread(wrapped, client_address)
        except OSError:  # of TLS, too
            self.shutdown_request(request)
        finally:
            self._connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: clients go away when they like."""
