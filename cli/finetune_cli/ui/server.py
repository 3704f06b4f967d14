"""Serves the pages at the loopback interface until the user ends the command."""

from __future__ import annotations

import socket
import webbrowser
from collections.abc import Callable

import uvicorn

from finetune_cli.session import CommandError
from finetune_cli.ui.app import build_app
from finetune_cli.ui.security import create_token
from finetune_cli.ui.source import Source

HOST = "127.0.0.1"
_KEEP_ALIVE_SECONDS = 30


def serve(source: Source, port: int, announce: Callable[[str], None], open_browser: bool) -> None:
    """Serve the pages. `announce` gets their address with the token.

    Args:
        source: reads what the pages show.
        port: the port, or 0 for a free one.
        announce: prints the address.
        open_browser: opens the address in the user's browser.
    """
    with _listen(port) as listener:
        port = listener.getsockname()[1]
        token = create_token()
        config = uvicorn.Config(
            build_app(source, token, port),
            log_level="warning",
            access_log=False,  # addresses would be in the log, one of them with the token
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=1,
        )
        url = f"http://{HOST}:{port}/?token={token}"
        announce(url)
        if open_browser:
            webbrowser.open(url)
        uvicorn.Server(config).run(sockets=[listener])


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise CommandError(f"cannot listen at {HOST}:{port}: {error.strerror}; choose another --port") from None
    listener.listen()
    return listener
