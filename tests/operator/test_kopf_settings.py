"""What the operator changes in kopf and asyncio."""

from __future__ import annotations

import asyncio
import ssl
import tracemalloc
from asyncio import sslproto
from pathlib import Path

import pytest
from tests.support.operator.tls import create_certificate

from finetune_operator.kopf_settings import limit_tls_buffers

CONNECTIONS = 10


async def test_tls_connections_idle_take_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 200 namespaces, 600 watches are idle."""
    monkeypatch.setattr(sslproto.SSLProtocol, "max_size", sslproto.SSLProtocol.max_size)
    limit_tls_buffers()
    server_context = create_certificate(tmp_path)
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
    server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0, ssl=server_context)
    port = server.sockets[0].getsockname()[1]
    tracemalloc.start()
    try:
        writers = [(await asyncio.open_connection("127.0.0.1", port, ssl=context))[1] for _ in range(CONNECTIONS)]
        used_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    for writer in writers:
        writer.close()
    server.close()
    assert used_bytes / CONNECTIONS < 2 * 128 * 1024  # both ends
