"""`finetune ui`: local, read-only pages in the browser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from finetune_cli.session import CommandError, Session

if TYPE_CHECKING:
    from finetune_operator.client import Client


def show_pages(
    session: Session,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port at 127.0.0.1; 0 is a free one.")] = 0,
    history: Annotated[
        list[str] | None,
        typer.Option(metavar="S3_PREFIX", help="Also list results below s3://bucket/prefix; can be repeated."),
    ] = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="Print the address without opening a browser.")] = False,
) -> None:
    """Show runs, schedules, sweeps and results in the browser. The pages are read-only and for this user alone."""
    prefixes = history or []
    for prefix in prefixes:
        if not prefix.removeprefix("s3://").strip("/") or not prefix.startswith("s3://"):
            raise CommandError(f"--history {prefix}: must be s3://bucket/prefix", exit_status=2)
    from finetune_cli.ui.server import serve
    from finetune_cli.ui.source import Source

    def connect(namespace: str | None) -> Client:
        from finetune_operator.client import Client

        options = session.options
        return Client(namespace, context=options.context, kubeconfig=options.kubeconfig, endpoint=options.endpoint)

    source = Source(connect, session.options.namespace, prefixes, session.options.endpoint)
    serve(source, port, lambda url: _announce(session, url), open_browser=not no_open)


def _announce(session: Session, url: str) -> None:
    session.terminal.print_line(url)
    session.terminal.print_note("Ctrl-C ends the server. The address has a token: do not share it.")
