"""`tdmpc2 sweep serve`: a sweep as a web page, on this machine alone unless asked otherwise."""

from __future__ import annotations

import argparse
import importlib.util
import ipaddress
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tdmpc2.errors import UserError, require, unknown_name

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

SCRIPT = Path(__file__).parent / "board" / "script.py"
LOOPBACK = "127.0.0.1"
PORT = 8501
PORTS_TRIED = 20
"""How many ports are tried, from the default one on, where none is named."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `serve` to its parser."""
    parser.add_argument(
        "--port", type=int, metavar="N", help=f"port of the page (default: the first free one from {PORT} on)"
    )
    parser.add_argument(
        "--host", default=LOOPBACK, metavar="ADDRESS", help="address to listen on; any other than this machine's "
        f"own, {LOOPBACK}, lets everyone in who reaches it: there is no password",
    )  # fmt: skip


def show_page(args: argparse.Namespace) -> int:
    """`tdmpc2 sweep serve NAME`.

    Raises:
        UserError: there is no such sweep, begun or declared; or as `serve_sweep`.
    """
    from tdmpc2.sweeps.declaration import find_declaration
    from tdmpc2.sweeps.folder import SweepFolder

    folder = SweepFolder(args.results, Path(args.name).stem if args.name.endswith((".yaml", ".yml")) else args.name)
    if not folder.path.is_dir():
        begun = [plan.parent.name for plan in Path(args.results).glob("*/plan.json")]
        try:
            find_declaration(args.name)
        except UserError:
            if begun:
                raise unknown_name("sweep", args.name, begun, args.results) from None
            raise
    return serve_sweep(args.results, folder.name, args.host, args.port)


def serve_sweep(results_dir: str, name: str, host: str, port: int | None) -> int:
    """Show a sweep's page until Ctrl-C or SIGTERM.

    Args:
        results_dir: folder of all results.
        name: the sweep's name; it need not have been started.
        host: address to listen on.
        port: port, 0 for any free one; by default the first free one from `PORT` on.

    Returns:
        the exit code.

    Raises:
        UserError: Streamlit is not installed; the port is taken; there is no such address here.
    """
    require(importlib.util.find_spec("streamlit") is not None, "Streamlit is not installed; `make setup` installs it")
    listening = listen(host, port)
    number = listening.getsockname()[1]
    if not _is_loopback(host):
        print(f"--host {host}: whoever reaches this address can read the sweep; there is no password", file=sys.stderr)
    address = f"http://{_in_url(host)}:{number}"
    with listening:
        _run(listening, results_dir, name, f"{name}: {address} (Ctrl-C ends it)")
    return 0


def listen(host: str, port: int | None) -> socket.socket:
    """A socket that listens.

    Args:
        host: name or address.
        port: port, 0 for any free one; None for the first free one from `PORT` on.

    Raises:
        UserError: the port, or all that were tried, are taken; the address is not this machine's.
    """
    require(port is None or 0 <= port <= 65535, f"--port: {port} is no port; ports go up to 65535")
    fault: OSError | None = None
    for candidate in range(PORT, PORT + PORTS_TRIED) if port is None else (port,):
        try:
            family = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM)[0][0]
            return socket.create_server((host, candidate), family=family)
        except OSError as error:
            fault = error
    assert fault is not None
    tried = f"{PORT} to {PORT + PORTS_TRIED - 1}" if port is None else str(port)
    raise UserError(f"cannot listen on {host}, port {tried} ({fault.strerror}); name another --port, or --host")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _run(listening: socket.socket, results_dir: str, name: str, line: str) -> None:
    """Serve on a socket; prints the line once it does."""
    import uvicorn
    from starlette.middleware import Middleware
    from streamlit.starlette import App
    from streamlit.web import bootstrap

    @asynccontextmanager
    async def announce(app: App) -> AsyncIterator[None]:
        print(line, flush=True)
        yield

    bootstrap.load_config_options(_options(listening.getsockname()[0]))
    sys.argv = [str(SCRIPT), results_dir, name]  # Streamlit's scripts are told so what to show
    app = App(SCRIPT, lifespan=announce, middleware=[Middleware(SameOrigin)])
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, ws="websockets-sansio", timeout_graceful_shutdown=3
    )

    def on_signal(number: int, frame: FrameType | None) -> None:
        """Nothing more to do: the server gives a signal that ended it on to whoever listened before."""

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _options(address: str) -> dict[str, Any]:
    """Settings of Streamlit, above those of a person's own configuration files.

    Args:
        address: what the page listens on.
    """
    options: dict[str, Any] = {
        "browser.gatherUsageStats": False,
        "client.showErrorLinks": False,
        "client.toolbarMode": "minimal",
        "global.developmentMode": False,
        "runner.magicEnabled": False,
        "theme.light.primaryColor": "#0072B2",
        "theme.dark.primaryColor": "#56B4E9",
        "server.enableAgentApi": False,
        "server.enableStaticServing": False,
        "server.fileWatcherType": "none",
        # `SameOrigin` decides that, more strictly. Streamlit's own check asks a server on the internet for this
        # machine's address when a page of another origin knocks.
        "server.enableCORS": False,
        "server.enableXsrfProtection": False,  # nothing can be uploaded, and it turns the other on
    }
    if _is_loopback(address):  # a foreign name that is made to point here must not reach the page
        options["server.allowedHosts"] = ["localhost", LOOPBACK, "::1"]
    return options


class SameOrigin:
    """Refuses requests that pages of other origins make."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        from starlette.responses import PlainTextResponse

        headers = {key: value.decode("latin-1") for key, value in scope.get("headers", ())}
        origin = headers.get(b"origin")
        if origin is not None and urlsplit(origin).netloc != headers.get(b"host"):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            else:
                await PlainTextResponse("another origin", 403)(scope, receive, send)
            return
        await self._app(scope, receive, send)
