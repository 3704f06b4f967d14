"""Adapters that requests name: what is provided, and that nothing unverified, foreign or too large is."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.support.trainer.champions import build_task, write_key
from tests.support.trainer.run_records import make_manifest

from finetune_serving.adapter_resolver import AdapterResolver
from finetune_serving.settings import ResolverSettings, SettingsError
from finetune_trainer.contract import SIGNING_KEY_FILE_ENV, ResultReference, Servable, Signing
from finetune_trainer.publishing.signing import sign_folder
from finetune_trainer.records.manifest import FileRecord, compute_digest
from finetune_trainer.tasks.promote import promote

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server

    from finetune_trainer.storage import S3

pytestmark = pytest.mark.s3
BASE = "org/base-1b"
SIGNING = {"keySecretRef": {"name": "team-key"}}


class Store:
    """Results of the adapter `bot` in S3, and a resolver that reads them."""

    def __init__(self, s3: S3Server, client: S3, folder: Path) -> None:
        self.s3, self.client, self.folder = s3, client, folder
        self.root = f"s3://results/{folder.name.replace('_', '-')}"
        self.settings = ResolverSettings(f"{self.root}/{{name}}", folder / "cache", endpoint=s3.endpoint)

    def publish(self, run: str, *, is_signed: bool = False, servable: Servable | None = None, **config: Any) -> str:
        """Publish a result of a run, or of the adapter itself if `run` is empty. Returns its prefix."""
        uri = f"{self.root}/bot/{run}".rstrip("/")
        settings = {"base_model_name_or_path": BASE, "r": 16, "peft_type": "LORA", **config}
        contents = {
            "adapter_config.json": json.dumps(settings).encode(),
            "adapter_model.safetensors": f"weights of {run}".encode(),
            "README.md": b"card",
        }
        records = [
            FileRecord(path=name, size=len(content), sha256=hashlib.sha256(content).hexdigest())
            for name, content in contents.items()
        ]
        contents["manifest.json"] = make_manifest(job="team/bot", files=records, servable=servable).to_bytes()
        if is_signed:
            contents["model.sig"] = self._sign(run or "bot", contents)
        for name, content in contents.items():
            self.s3.put(f"{uri}/{name}", content)
        return uri

    def _sign(self, run: str, contents: dict[str, bytes]) -> bytes:
        folder = self.folder / "signed" / run
        folder.mkdir(parents=True)
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        return sign_folder(folder, Signing.model_validate(SIGNING)).read_bytes()

    def promote(self, uri: str, **fields: Any) -> None:
        """Make a result the champion of the alias."""
        digest = compute_digest(self.s3.get(f"{uri}/manifest.json"))
        champion = ResultReference(run="bot-1", adapter_uri=uri, digest=digest)
        promote(self.client, build_task(f"{self.root}/bot", champion, overwrite=True, **fields))

    def resolve(self, request: str, base: str = BASE, **changes: Any) -> Path | None:
        return AdapterResolver(replace(self.settings, **changes), self.client).resolve(base, request)

    def list_cache(self) -> list[str]:
        cache = self.settings.cache_dir
        return sorted(path.name for path in cache.iterdir()) if cache.exists() else []


@pytest.fixture
def store(s3: S3Server, s3_client: S3, tmp_path: Path) -> Store:
    return Store(s3, s3_client, tmp_path)


@pytest.fixture
def explain(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """Return the only line of the log since the last call."""
    caplog.set_level(logging.WARNING, "vllm.finetune_serving")

    def read() -> str:
        (line,) = caplog.messages
        caplog.clear()
        return line

    return read


@pytest.fixture
def public_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    public = write_key(tmp_path / "key.pem", ec.generate_private_key(ec.SECP256R1()))
    monkeypatch.setenv(SIGNING_KEY_FILE_ENV, str(tmp_path / "key.pem"))
    return public


def test_resolver_run_provides_its_verified_files(store: Store) -> None:
    store.publish("bot-1")
    folder = store.resolve("bot@bot-1")
    assert folder
    assert (folder / "adapter_model.safetensors").read_text() == "weights of bot-1"
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    ]


def test_resolver_name_is_the_champion_of_the_alias(store: Store) -> None:
    for run in ("bot-1", "bot-2"):
        store.promote(store.publish(run))
        folder = store.resolve("bot")
        assert folder
        assert (folder / "adapter_model.safetensors").read_text() == f"weights of {run}"
    assert len(store.list_cache()) == 2


def test_resolver_name_without_an_alias_is_the_result_at_its_prefix(store: Store) -> None:
    store.publish("")
    folder = store.resolve("bot")
    assert folder
    assert (folder / "adapter_model.safetensors").read_text() == "weights of "


def test_resolver_cached_adapter_is_not_downloaded_again(store: Store) -> None:
    uri = store.publish("bot-1")
    first = store.resolve("bot@bot-1")
    store.s3.client.delete_object(Bucket="results", Key=f"{uri}/adapter_model.safetensors".partition("results/")[2])
    assert store.resolve("bot@bot-1") == first


def test_resolver_requests_at_once_share_one_folder(store: Store) -> None:
    store.publish("bot-1")
    resolver, found = AdapterResolver(store.settings, store.client), list[Path | None]()
    threads = [threading.Thread(target=lambda: found.append(resolver.resolve(BASE, "bot@bot-1"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert set(found) == {store.settings.cache_dir / name for name in store.list_cache()}


@pytest.mark.parametrize(
    "request_name",
    [
        *("", "../bot", "bot/../bot", "s3://results/bot", "bot@", "@bot-1", "bot@../x", "bot@bot-1/..", "bot@a@b"),
        *(
            ".bot",
            "bot..x",
            "BOT",
            "bot\n",
            "bot@bot-1\n",
            "bot%2f",
            "b" * 300,
            "bot@" + "r" * 300,
            "{name}",
            "\x1b[2J",
        ),
    ],
)
def test_resolver_hostile_name_is_refused(store: Store, request_name: str, explain: Callable[[], str]) -> None:
    assert store.resolve(request_name) is None
    line = explain()
    assert "it is not NAME or NAME@RUN" in line
    assert len(line) < 400
    assert "\n" not in line
    assert "\x1b" not in line


def test_resolver_name_that_is_not_allowed_is_refused(store: Store, explain: Callable[[], str]) -> None:
    store.publish("bot-1")
    assert store.resolve("bot@bot-1", allowed=frozenset(["other"])) is None
    assert "its name is not allowed; add it to FINETUNE_LORA_ALLOWED" in explain()
    assert store.resolve("bot@bot-1", allowed=frozenset(["other", "bot"]))


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_resolver_changed_file_is_refused_and_leaves_nothing(
    store: Store, name: str, explain: Callable[[], str]
) -> None:
    uri = store.publish("bot-1")
    content = store.s3.get(f"{uri}/{name}")
    store.s3.put(f"{uri}/{name}", content[:-1] + b"X")
    assert store.resolve("bot@bot-1") is None
    assert f"{name} does not match manifest.json" in explain()
    assert store.list_cache() == []


def test_resolver_missing_result_is_explained(store: Store, explain: Callable[[], str]) -> None:
    assert store.resolve("bot@bot-9") is None
    assert "bot-9/manifest.json does not exist; publish the result" in explain()


def test_resolver_alias_of_another_place_is_refused(store: Store, explain: Callable[[], str]) -> None:
    store.publish("bot-1")
    other = store.publish("bot-1").replace("/bot/", "/robot/")
    for key in ("manifest.json", "adapter_config.json", "adapter_model.safetensors"):
        store.s3.put(f"{other}/{key}", store.s3.get(f"{store.root}/bot/bot-1/{key}"))
    store.promote(other)
    assert store.resolve("bot") is None
    assert f"its alias names {other}/, which is not below {store.root}/bot/" in explain()


def test_resolver_replaced_champion_is_refused(store: Store, explain: Callable[[], str]) -> None:
    uri = store.publish("bot-1")
    store.promote(uri)
    store.s3.put(f"{uri}/manifest.json", store.s3.get(f"{uri}/manifest.json") + b"\n")
    assert store.resolve("bot") is None
    assert "but the alias names sha256:" in explain()


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"base_model_name_or_path": "org/other"}, "it was trained on org/other, but org/base-1b is served"),
        ({"r": 32}, "its rank 32 is above 16; raise --max-lora-rank and FINETUNE_LORA_MAX_RANK"),
        ({"rank_pattern": {"q_proj": 64}}, "its rank 64 is above 16"),
        ({"r": "many"}, "its adapter_config.json is invalid"),
        ({"rank_pattern": 3}, "its adapter_config.json is invalid"),
    ],
)
def test_resolver_adapter_that_does_not_fit_the_server_is_refused(
    store: Store, config: dict[str, Any], problem: str, explain: Callable[[], str]
) -> None:
    store.publish("bot-1", **config)
    assert store.resolve("bot@bot-1") is None
    assert problem in explain()


def test_resolver_settings_accept_another_base_name_and_rank(store: Store) -> None:
    store.publish("bot-1", r=32)
    assert store.resolve("bot@bot-1", base="/models/base", base_model=BASE, max_rank=32)


def test_resolver_result_that_vllm_does_not_load_is_refused_as_servable_says(
    store: Store, explain: Callable[[], str]
) -> None:
    store.publish("bot-1", servable=Servable(vllm="No: vLLM does not load DoRA.", llama_cpp="No", peft="Yes"))
    assert store.resolve("bot@bot-1") is None
    assert explain().endswith("No: vLLM does not load DoRA.")
    assert store.list_cache() == []


def test_resolver_cache_that_is_full_downloads_nothing(store: Store, explain: Callable[[], str]) -> None:
    for run in ("bot-1", "bot-2"):
        store.publish(run)
    assert store.resolve("bot@bot-1")
    size = sum(path.stat().st_size for path in store.settings.cache_dir.rglob("*.*"))
    assert store.resolve("bot@bot-2", max_cache_bytes=size) is None
    assert "raise FINETUNE_LORA_MAX_CACHE_BYTES" in explain()
    assert len(store.list_cache()) == 1


def test_resolver_signed_result_and_alias_are_accepted_with_their_key(store: Store, public_key: Path) -> None:
    store.promote(store.publish("bot-1", is_signed=True), signing=SIGNING)
    for request in ("bot@bot-1", "bot"):
        folder = store.resolve(request, public_key=public_key)
        assert folder
        assert (folder / "README.md").exists()


@pytest.mark.parametrize("is_signed", [False, True])
def test_resolver_result_without_a_signature_of_the_key_is_refused(
    store: Store, public_key: Path, tmp_path: Path, explain: Callable[[], str], is_signed: bool
) -> None:
    store.publish("bot-1", is_signed=is_signed)
    other = write_key(tmp_path / "other.pem", ec.generate_private_key(ec.SECP256R1()))
    assert store.resolve("bot@bot-1", public_key=other) is None
    assert ("its signature was not made with the key other.public.pem" if is_signed else "is not signed") in explain()
    assert store.list_cache() == []


def test_resolver_unsigned_cache_is_not_used_once_a_key_is_set(
    store: Store, public_key: Path, explain: Callable[[], str]
) -> None:
    uri = store.publish("bot-1")
    store.promote(uri)
    assert store.resolve("bot")
    assert store.resolve("bot", public_key=public_key) is None
    assert "is not used: it is not signed" in explain()
    assert store.resolve("bot@bot-1", public_key=public_key) is None
    assert "is not signed" in explain()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FINETUNE_LORA_PREFIX", "s3://adapters/bot"),
        ("FINETUNE_LORA_PREFIX", "/adapters/{name}"),
        ("FINETUNE_LORA_MAX_RANK", "0"),
        ("FINETUNE_LORA_ENDPOINT", "s3.example"),
    ],
)
def test_resolver_settings_wrong_value_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} is .*; set it to "):
        ResolverSettings.from_environment({"FINETUNE_LORA_PREFIX": "s3://adapters/{name}", name: value})


def test_resolver_is_imported_without_a_model_library() -> None:
    code = "import sys, finetune_serving.adapter_resolver, finetune_serving.vllm_resolver as v; v.register(); "
    code += (
        "print([n for n in ('torch', 'transformers', 'peft', 'datasets', 'kubernetes', 'scipy') if n in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
