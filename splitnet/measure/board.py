"""TensorBoard with torch-tb-profiler on 127.0.0.1 alone, complete without internet.

The plugin is no longer maintained. Its pages fetch Google Charts and a polyfill from the net; here they load
static/charts.js instead, and its Trace view hands over to Perfetto. It reads traces in this process, not in
processes of its own: what is stopped leaves nothing behind.
"""

import logging
import threading
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

from tensorboard import default, program
from torch_tb_profiler import plugin
from torch_tb_profiler.profiler import loader
from werkzeug import Request, Response
from werkzeug.serving import WSGIRequestHandler, make_server

from splitnet.measure.perfetto import HOST, POLICY, listen

STATIC = files("splitnet.measure") / "static"

CHARTS = "https://www.gstatic.com/charts/loader.js"
"""What the plugin's page loads its charts from."""


class Cache:
    """The plugin's cache of files, without a process to share it: all who read it are threads here."""

    def __init__(self, cache_dir: str) -> None:
        self.cache_dir = cache_dir
        self._local: dict[str, str] = {}

    def get_remote_cache(self, filename: str) -> str:
        return self._local.get(filename, filename)

    def add_file(self, source_file: str, local_file: str) -> None:
        self._local[source_file] = local_file

    def read(self, filename: str) -> Any:
        return plugin.io.read(self.get_remote_cache(filename))


class Quiet(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        """Say nothing: the terminal shows the address."""


class OfflinePlugin(plugin.TorchProfilerPlugin):  # type: ignore[misc]
    """torch-tb-profiler with charts of our own, and Perfetto for its Trace view."""

    perfetto = ""
    """The address that the Trace view shows."""

    def get_plugin_apps(self) -> dict[str, Any]:
        apps = super().get_plugin_apps()
        del apps["/trace_viewer_full.html"]
        pages = {
            "/charts.js": self._charts,
            "/index.html": self._index,
            "/trace": lambda: ("{}", "application/json"),  # Perfetto has a server of its own
            "/trace_embedding.html": self._trace,
        }
        return apps | {path: Request.application(partial(_answer, answer)) for path, answer in pages.items()}

    def _charts(self) -> tuple[str, str]:
        return (STATIC / "charts.js").read_text("utf-8"), "text/javascript"

    def _index(self) -> tuple[str, str]:
        page = Path(plugin.__file__).parent / "static" / "index.html"
        return page.read_text("utf-8").replace(CHARTS, "charts.js"), "text/html"

    def _trace(self) -> tuple[str, str]:
        page = (STATIC / "trace.html").read_text("utf-8")
        return page.replace("PERFETTO", self.perfetto.replace("&", "&amp;").replace('"', "&quot;")), "text/html"


def _answer(answer: Callable[[], tuple[str, str]], _: Request) -> Response:
    text, kind = answer()
    policy = f"{POLICY}; frame-src 'self' http://{HOST}:*"
    headers = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": policy}
    return Response(text, content_type=f"{kind}; charset=utf-8", headers=headers)


class Board:
    """TensorBoard on a folder of logs. The address is in `url`; `close` ends it.

    `home` is an empty folder for the plugin's own files; whoever gave it removes it.
    """

    def __init__(self, logs: Path, home: Path, port: int, perfetto: str) -> None:
        _in_this_process(home)
        OfflinePlugin.perfetto = perfetto
        board = program.TensorBoard(plugins=plugins(), server_class=self._server)
        self.socket = listen(port)
        board.configure(("tensorboard", "--logdir", str(logs), "--load_fast", "false", "--reload_interval", "30"))
        self.url = board.launch()

    def _server(self, app: Any, _: Any) -> "Board":
        """What TensorBoard serves with; it calls the two methods below."""
        port = self.socket.getsockname()[1]
        self.port = port
        self._http = make_server(HOST, port, app, threaded=True, request_handler=Quiet, fd=self.socket.fileno())
        return self

    def serve_forever(self) -> None:
        self._http.serve_forever()

    def get_url(self) -> str:
        return f"http://{HOST}:{self.port}/"

    def close(self) -> None:
        logging.disable()  # what is still being read fails from here on
        self._http.shutdown()
        self._http.server_close()
        self.socket.close()


def plugins() -> list[Any]:
    """TensorBoard's own, and the one plugin of ours in place of what is installed under its name."""
    return [*default.get_static_plugins(), OfflinePlugin]


def _in_this_process(home: Path) -> None:
    """Keep the plugin from starting processes and from files elsewhere, and TensorBoard from warning of the plugin."""
    loader.Process = partial(threading.Thread, daemon=True)
    loader.Queue = SimpleQueue
    plugin.io.Cache = Cache
    plugin.tempfile = SimpleNamespace(mkdtemp=lambda: str(home))
    plugin.atexit = SimpleNamespace(register=lambda _: None)  # it would remove the folder while a thread writes to it
    for name in ("tensorboard", "werkzeug", "pytorch_profiler"):
        logging.getLogger(name).setLevel(logging.ERROR)
