"""A folder that follows an alias: what readers see while it changes, and that nothing unverified becomes current."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.support.trainer.champions import FILES, build_task, put_result, read_alias, write_key
from tests.support.trainer.faulty_proxy import FaultyProxy
from tests.support.trainer.task_packages import block_missing_packages

from finetune_trainer.cli import app, sync_alias
from finetune_trainer.contract import SIGNING_KEY_FILE_ENV, Reason, ResultReference
from finetune_trainer.errors import TrainerError
from finetune_trainer.publishing.alias_signature import load_public_key
from finetune_trainer.records.manifest import compute_digest
from finetune_trainer.storage import S3, Location
from finetune_trainer.tasks.alias_follower import AliasFollower
from finetune_trainer.tasks.promote import promote
from finetune_trainer.tasks.vllm_server import VllmServer

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server

pytestmark = pytest.mark.s3


class Serving:
    """A schedule that promotes results, and a folder that follows its alias."""

    def __init__(self, s3: S3Server, client: S3, folder: Path) -> None:
        self.s3, self.client, self.prefix = s3, client, f"s3://results/{folder.name}"
        self.folder = folder / "adapters"
        self.follower = AliasFollower(client, Location.parse(f"{self.prefix}/champion.json"), self.folder)

    def promote(self, run: str, is_signed: bool = False) -> ResultReference:
        champion = put_result(self.s3, self.prefix, run)
        signing = {"signing": {"keySecretRef": {"name": "team-key"}}} if is_signed else {}
        promote(self.client, build_task(self.prefix, champion, overwrite=True, **signing))
        return champion

    def delete_alias(self) -> None:
        self.s3.client.delete_object(Bucket="results", Key=f"{self.follower.alias.key}")

    @property
    def current(self) -> Path:
        return self.folder / "current"

    def read_card(self) -> str:
        return (self.current / "README.md").read_text()


@pytest.fixture
def serving(s3: S3Server, s3_client: S3, tmp_path: Path) -> Serving:
    return Serving(s3, s3_client, tmp_path)


def get_folder_name(result: ResultReference) -> str:
    return result.digest.removeprefix("sha256:")[:16]


def list_names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_alias_follower_provides_the_verified_files_of_the_champion(serving: Serving) -> None:
    champion = serving.promote("bot-1")
    serving.s3.put(f"{serving.prefix}/bot-1/.checkpoints/x/optimizer.pt", b"not in the manifest")
    assert serving.follower.update()
    assert os.readlink(serving.current) == get_folder_name(champion)
    files = {path.relative_to(serving.current).as_posix() for path in serving.current.rglob("*") if path.is_file()}
    assert files == {*FILES, "README.md", "manifest.json"}
    assert (serving.current / "templates/tool.jinja").read_bytes() == FILES["templates/tool.jinja"]
    assert list_names(serving.folder) == {"current", get_folder_name(champion)}


def test_alias_follower_unchanged_alias_costs_one_request(serving: Serving, s3: S3Server, proxy: FaultyProxy) -> None:
    serving.promote("bot-1")
    follower = AliasFollower(S3(s3.storage), serving.follower.alias, serving.folder)
    assert follower.update()
    proxy.read_paths.clear()
    assert not follower.update()
    assert [path.rpartition("/")[2] for path in proxy.read_paths] == ["champion.json"]


def test_alias_follower_reader_of_the_previous_adapter_is_not_disturbed(serving: Serving) -> None:
    first = serving.promote("bot-1")
    serving.follower.update()
    held_folder = serving.current.resolve()
    with (held_folder / "README.md").open() as held_file:
        second = serving.promote("bot-2")
        assert serving.follower.update()
        assert serving.read_card() == "card of bot-2"
        assert held_file.read() == "card of bot-1"
        assert (held_folder / "adapter_model.safetensors").is_file()
    third = serving.promote("bot-3")
    serving.follower.update()
    assert list_names(serving.folder) == {"current", get_folder_name(second), get_folder_name(third)}
    assert get_folder_name(first) not in list_names(serving.folder)


def test_alias_follower_link_exists_at_every_moment(serving: Serving) -> None:
    """A server that starts at any moment finds one adapter or the other."""
    aliases = []
    for run in ("bot-1", "bot-2"):
        serving.promote(run)
        serving.follower.update()
        aliases.append(serving.s3.get(str(serving.follower.alias)))
    program = f"while [ ! -e {serving.folder}/stop ]; do [ -e {serving.current}/README.md ] || echo missing; done"
    with subprocess.Popen(["sh", "-c", program], stdout=subprocess.PIPE, text=True) as reader:
        for content in aliases * 20:
            serving.s3.put(str(serving.follower.alias), content)
            assert serving.follower.update()
        (serving.folder / "stop").touch()
        assert reader.communicate()[0] == ""


def test_alias_follower_rollback_downloads_nothing(serving: Serving, s3: S3Server, proxy: FaultyProxy) -> None:
    for run in ("bot-1", "bot-2", "bot-1"):
        champion = serving.promote(run)
        proxy.read_paths.clear()
        AliasFollower(S3(s3.storage), serving.follower.alias, serving.folder).update()
    assert serving.read_card() == "card of bot-1"
    assert os.readlink(serving.current) == get_folder_name(champion)
    assert len(proxy.read_paths) == 1


def damage(name: str) -> Callable[[Serving], None]:
    return lambda serving: serving.s3.put(f"{serving.prefix}/bot-2/{name}", FILES.get(name, b"x")[::-1])


def replace_alias(content: bytes) -> Callable[[Serving], None]:
    return lambda serving: serving.s3.put(f"{serving.prefix}/champion.json", content)


def edit_alias(**fields: object) -> Callable[[Serving], None]:
    def edit(serving: Serving) -> None:
        alias = {**read_alias(serving.s3, serving.prefix), **fields}
        serving.s3.put(f"{serving.prefix}/champion.json", json.dumps(alias).encode())

    return edit


FAULTS: dict[str, tuple[Callable[[Serving], None], Reason, str]] = {
    "a corrupted file": (damage("adapter_model.safetensors"), Reason.STORAGE_CORRUPT, "safetensors does not match"),
    "a truncated file": (damage("README.md"), Reason.STORAGE_CORRUPT, "expected 13 bytes, received"),
    "another manifest": (damage("manifest.json"), Reason.STORAGE_CORRUPT, "bot-2/manifest.json has the digest"),
    "a deleted alias": (Serving.delete_alias, Reason.MODEL_NOT_FOUND, "champion.json does not exist"),
    "no JSON": (replace_alias(b"hello"), Reason.ALIAS_CONFLICT, "contains no JSON object with a kind"),
    "an empty object": (replace_alias(b""), Reason.ALIAS_CONFLICT, "contains no JSON object with a kind"),
    "another kind": (replace_alias(b'{"kind": "Pod"}'), Reason.ALIAS_CONFLICT, "an object of kind 'Pod'"),
    "an unknown result": (edit_alias(adapterURI="s3://results/none"), Reason.MODEL_NOT_FOUND, "s3://results/none/man"),
    "a local path": (edit_alias(adapterURI="file:///etc"), Reason.ALIAS_CONFLICT, "no valid ChampionAlias"),
    "a path as digest": (edit_alias(digest="../../etc"), Reason.ALIAS_CONFLICT, "no valid ChampionAlias"),
}


@pytest.mark.parametrize(("break_it", "reason", "words"), FAULTS.values(), ids=FAULTS)
def test_alias_follower_fault_leaves_the_current_adapter(
    serving: Serving, break_it: Callable[[Serving], None], reason: Reason, words: str
) -> None:
    serving.promote("bot-1")
    serving.follower.update()
    serving.promote("bot-2")
    break_it(serving)
    with pytest.raises(TrainerError) as error:
        serving.follower.update()
    assert error.value.reason is reason
    assert words in error.value.message
    assert serving.read_card() == "card of bot-1"
    serving.promote("bot-3")
    assert serving.follower.update()
    assert serving.read_card() == "card of bot-3"


def test_alias_follower_name_of_a_file_never_leaves_the_folder(serving: Serving) -> None:
    champion = put_result(serving.s3, serving.prefix, "bot-1")
    manifest = serving.s3.get(f"{champion.adapter_uri}/manifest.json").replace(
        b"templates/tool.jinja", b"../../escaped"
    )
    serving.s3.put(f"{champion.adapter_uri}/manifest.json", manifest)
    champion = champion.model_copy(update={"digest": compute_digest(manifest)})
    promote(serving.client, build_task(serving.prefix, champion))
    with pytest.raises(TrainerError, match="cannot be stored as a file") as error:
        serving.follower.update()
    assert error.value.reason is Reason.MODEL_INVALID
    assert not serving.current.exists()


@pytest.mark.parametrize("moment", ["partial folder", "link", "old folders"])
def test_alias_follower_killed_process_is_continued(serving: Serving, moment: str) -> None:
    """An interruption leaves half a download, a link that is not in place, or folders that are not removed."""
    serving.promote("bot-1")
    serving.follower.update()
    serving.promote("bot-2")
    if moment == "partial folder":
        (serving.folder / ".partial").mkdir()
        (serving.folder / ".partial/adapter_model.safetensors").write_bytes(b"half")
    elif moment == "link":
        (serving.folder / ".current").symlink_to("0" * 16)
    else:
        (serving.folder / ("0" * 16)).mkdir()
    assert serving.follower.update()
    assert serving.read_card() == "card of bot-2"
    assert len(list_names(serving.folder)) == 3


def test_alias_follower_folder_that_cannot_be_written_is_named(serving: Serving) -> None:
    serving.promote("bot-1")
    serving.folder.write_text("a file")
    with pytest.raises(TrainerError, match=f"{serving.folder} cannot be written: File exists; check its volume"):
        serving.follower.update()


def test_alias_follower_with_a_key_uses_signed_aliases_only(
    serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SIGNING_KEY_FILE_ENV, str(tmp_path / "key.pem"))
    public_key = write_key(tmp_path / "key.pem", ec.generate_private_key(ec.SECP256R1()))
    follower = AliasFollower(serving.client, serving.follower.alias, serving.folder, load_public_key(public_key))
    serving.promote("bot-1", is_signed=True)
    assert follower.update()
    write_key(tmp_path / "key.pem", ec.generate_private_key(ec.SECP256R1()))
    steps: dict[str, Callable[[], object]] = {
        "it is not signed": lambda: serving.promote("bot-2"),
        "its signature was not made with this key": lambda: serving.promote("bot-2", is_signed=True),
    }
    for words, step in steps.items():
        step()
        with pytest.raises(TrainerError, match=f"for the run bot-2 is not used: {words}") as error:
            follower.update()
        assert error.value.reason is Reason.ALIAS_CONFLICT
        assert serving.read_card() == "card of bot-1"


TAMPERED = {
    "another digest": {"digest": "sha256:" + "1" * 64},
    "another adapter": {"adapterURI": "s3://results/mine"},
    "an unknown field": {"note": "mine"},
}


@pytest.mark.parametrize("fields", TAMPERED.values(), ids=TAMPERED)
def test_alias_follower_field_that_was_changed_after_the_signature_is_refused(
    serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, str]
) -> None:
    monkeypatch.setenv(SIGNING_KEY_FILE_ENV, str(tmp_path / "key.pem"))
    public_key = write_key(tmp_path / "key.pem", ec.generate_private_key(ec.SECP384R1()))
    serving.promote("bot-1", is_signed=True)
    edit_alias(**fields)(serving)
    follower = AliasFollower(serving.client, serving.follower.alias, serving.folder, load_public_key(public_key))
    with pytest.raises(TrainerError, match="it was changed after it was signed"):
        follower.update()
    assert not serving.current.exists()


def test_alias_follower_signature_that_is_no_base64_is_refused(
    serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SIGNING_KEY_FILE_ENV, str(tmp_path / "key.pem"))
    public_key = write_key(tmp_path / "key.pem", ec.generate_private_key(ec.SECP256R1()))
    serving.promote("bot-1", is_signed=True)
    signature = read_alias(serving.s3, serving.prefix)["signature"]
    follower = AliasFollower(serving.client, serving.follower.alias, serving.folder, load_public_key(public_key))
    for changes in ({"payload": "?"}, {"signatures": [{"keyid": "x", "sig": "ä"}]}):
        edit_alias(signature={**signature, **changes})(serving)
        with pytest.raises(TrainerError, match="its signature was not made with this key"):
            follower.update()


def test_load_public_key_other_files_are_refused(tmp_path: Path) -> None:
    rsa_key = rsa.generate_private_key(65537, 2048).public_key()
    (tmp_path / "rsa.pem").write_bytes(rsa_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    write_key(tmp_path / "private.pem", ec.generate_private_key(ec.SECP256R1()))
    (tmp_path / "text.pem").write_text("hello")
    for name in ("rsa.pem", "private.pem", "text.pem", "missing.pem"):
        with pytest.raises(TrainerError, match=f"{name}: .*expected the PEM of a public key on the curve") as error:
            load_public_key(tmp_path / name)
        assert error.value.reason is Reason.CONFIG_INVALID


def parse_arguments(serving: Serving, *options: str) -> list[str]:
    alias = str(serving.follower.alias)
    return ["sync-alias", alias, str(serving.folder), "--endpoint", serving.s3.endpoint, *options]


def test_sync_alias_command_follows_until_it_is_stopped(serving: Serving) -> None:
    line = [sys.executable, "-m", "finetune_trainer", *parse_arguments(serving, "--interval", "1")]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: "champion.json does not exist" in read_line(process))
        serving.promote("bot-1")
        wait_until(serving.current.exists)
        serving.promote("bot-2")
        wait_until(lambda: serving.read_card() == "card of bot-2")
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=10)[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert "of the run bot-1, promoted 2026-03-04T05:06:07Z" in rest
    assert "does not exist" not in rest  # a problem is logged once
    assert rest.splitlines()[-1] == "Preempted: stopped by SIGTERM"


def test_sync_alias_command_needs_only_the_packages_of_a_task(serving: Serving, tmp_path: Path) -> None:
    public_key = write_key(tmp_path / "key.pem", ec.generate_private_key(ec.SECP256R1()))
    serving.promote("bot-1")
    program = block_missing_packages("import finetune_trainer.__main__ as main\nmain.main()")
    line = [sys.executable, "-c", program, *parse_arguments(serving, "--once")]
    assert subprocess.run(line, capture_output=True).returncode == 0
    assert serving.read_card() == "card of bot-1"
    process = subprocess.run([*line, "--key", str(public_key)], capture_output=True, text=True)
    assert "AliasConflict: " in process.stderr
    assert "it is not signed" in process.stderr


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stderr
    return process.stderr.readline()


def wait_until(is_done: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not is_done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_sync_alias_command_once_raises_what_is_wrong(serving: Serving) -> None:
    args = app.build_parser().parse_args(parse_arguments(serving, "--once"))
    with pytest.raises(TrainerError, match=r"champion\.json does not exist") as error:
        sync_alias.follow_alias(args)
    assert error.value.reason is Reason.MODEL_NOT_FOUND
    serving.promote("bot-1")
    expected = f"{serving.current} is the adapter that {serving.follower.alias} names"
    assert [sync_alias.follow_alias(args), sync_alias.follow_alias(args)] == [expected, expected]
    assert serving.read_card() == "card of bot-1"


@pytest.mark.parametrize("uri", ["champion.json", "s3://bucket", "https://host/x"])
def test_sync_alias_command_wrong_uri_is_refused(uri: str, tmp_path: Path) -> None:
    args = app.build_parser().parse_args(["sync-alias", uri, str(tmp_path), "--once"])
    with pytest.raises(TrainerError, match=f"{uri}: must be the alias of a schedule"):
        sync_alias.follow_alias(args)


@pytest.mark.parametrize("options", [["--interval", "0"], ["--interval", "1m"], ["--once", "--interval", "5"]])
def test_sync_alias_command_wrong_options_are_refused(options: list[str]) -> None:
    with pytest.raises(SystemExit):
        app.build_parser().parse_args(["sync-alias", "s3://bucket/x.json", "adapters", *options])


class RecordingServer:
    """An HTTP server in place of vLLM's API, which records the requests. Its status is the one of the next answers."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, Any]] = []
        self.status = 200
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                recorder.requests.append((self.path, json.loads(content)))
                self.send_response(recorder.status)
                self.end_headers()
                self.wfile.write(b"no such route")

            def log_message(self, *args: object) -> None:
                """Write nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def vllm_api() -> Iterator[RecordingServer]:
    recorder = RecordingServer()
    thread = threading.Thread(target=recorder.server.serve_forever)
    thread.start()
    yield recorder
    recorder.server.shutdown()
    thread.join()
    recorder.server.server_close()


def test_alias_follower_of_a_result_provides_its_files(serving: Serving) -> None:
    result = put_result(serving.s3, serving.prefix, "bot-1")
    follower = AliasFollower(serving.client, Location.parse(f"{result.adapter_uri}/"), serving.folder)
    assert follower.update()
    assert os.readlink(serving.current) == get_folder_name(result)
    assert serving.read_card() == "card of bot-1"
    assert not follower.update()


def test_alias_follower_of_an_incomplete_result_names_the_manifest(serving: Serving) -> None:
    follower = AliasFollower(serving.client, Location.parse(f"{serving.prefix}/bot-1/"), serving.folder)
    with pytest.raises(TrainerError, match=r"bot-1/manifest\.json does not exist: the result is not complete"):
        follower.update()


def test_vllm_server_is_asked_once_for_each_adapter(tmp_path: Path, vllm_api: RecordingServer) -> None:
    server = VllmServer(vllm_api.url, "bot")
    for folder in ("a", "a", "b"):
        server.load(tmp_path / folder)
    bodies = [{"lora_name": "bot", "lora_path": str(tmp_path / name), "load_inplace": True} for name in ("a", "b")]
    assert vllm_api.requests == [("/v1/load_lora_adapter", body) for body in bodies]


def test_vllm_server_refusal_is_repeated_and_names_the_setting(tmp_path: Path, vllm_api: RecordingServer) -> None:
    server, vllm_api.status = VllmServer(vllm_api.url, "bot"), 404
    with pytest.raises(TrainerError, match="404 no such route; set VLLM_ALLOW_RUNTIME_LORA_UPDATING=true"):
        server.load(tmp_path)
    vllm_api.status = 200
    server.load(tmp_path)
    assert len(vllm_api.requests) == 2


def test_vllm_server_that_is_not_up_is_a_transient_error(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="does not respond") as caught:
        VllmServer("http://127.0.0.1:9", "bot").load(tmp_path)
    assert caught.value.reason is Reason.STORAGE_UNREACHABLE
