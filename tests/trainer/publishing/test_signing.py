"""Tests that the OpenSSF verifier accepts a signed result and rejects a changed one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from tests.support.trainer.untrained_runs import build_config, prefix, publish

from finetune_trainer.contract import SIGNING_KEY_FILE_ENV, Outcome, Reason, Signing, TrainerConfig
from finetune_trainer.errors import TrainerError
from finetune_trainer.pipeline import run
from finetune_trainer.publishing import signing
from finetune_trainer.publishing.publish import OutputPrefix
from finetune_trainer.run_setup import resolve_run
from finetune_trainer.storage import S3
from finetune_trainer.telemetry.progress import ProgressReporter
from finetune_trainer.telemetry.termination_message import OutcomeRecorder

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server
    from tests.trainer.faulty_proxy import FaultyProxy

__all__ = ["prefix"]
SIGNING_FIELDS = {"keySecretRef": {"name": "team-key"}}
SIGNING = Signing.model_validate(SIGNING_FIELDS)


def to_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, password: bytes | None = None) -> bytes:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


@pytest.fixture
def public_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The private one is where a pod finds it."""
    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "key.pem").write_bytes(to_pem(key))
    monkeypatch.setenv(SIGNING_KEY_FILE_ENV, str(tmp_path / "key.pem"))
    public = tmp_path / "public.pem"
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return public


def build_signed_config(s3: S3Server, output: str) -> TrainerConfig:
    config = build_config(s3, output)
    return config.model_copy(update={"output": config.output.model_copy(update={"signing": SIGNING})})


def download_result(s3: S3Server, output: str, folder: Path) -> Path:
    for key in s3.list_keys(output):
        path = folder / key.removeprefix(output.removeprefix("s3://results/") + "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(s3.get(f"s3://results/{key}"))
    return folder


def verify_signature(folder: Path, public: Path) -> subprocess.CompletedProcess[str]:
    """Verify the result with the command in docs/how-to/signing.md."""
    program = Path(sys.executable).with_name("model_signing")
    line = [program, "verify", "key", folder, "--signature", folder / "model.sig", "--public_key", public]
    return subprocess.run(line, capture_output=True, text=True, check=False)


@pytest.mark.s3
def test_signing_changed_download_fails_verification(
    s3: S3Server, prefix: str, tmp_path: Path, proxy: FaultyProxy, public_key: Path
) -> None:
    assert publish(build_signed_config(s3, prefix), tmp_path).reason is Reason.COMPLETED
    assert [path.rpartition("/")[2] for path in proxy.written_paths][-2:] == ["model.sig", "manifest.json"]
    folder = download_result(s3, prefix, tmp_path / "downloaded")
    answer = verify_signature(folder, public_key)
    assert (answer.returncode, answer.stdout) == (0, "Verification succeeded\n"), answer.stderr
    for name in ("adapter_model.safetensors", "manifest.json"):
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(bytes([before[0] ^ 1]) + before[1:])
        answer = verify_signature(folder, public_key)
        assert answer.returncode == 1
        assert name in answer.stderr
        (folder / name).write_bytes(before)
    (folder / "code.py").write_text("print('mine')")
    assert "Extra files found" in verify_signature(folder, public_key).stderr


@pytest.mark.s3
def test_signing_merged_model_is_signed_separately(s3: S3Server, prefix: str, tmp_path: Path, public_key: Path) -> None:
    config = build_signed_config(s3, prefix)
    result = publish(config, tmp_path).result
    assert result
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged/config.json").write_text("{}")
    OutputPrefix(S3(config.storage), config).merged_output(result.digest).publish(tmp_path / "merged", "fp32", {})
    folder = download_result(s3, f"{prefix}/merged", tmp_path / "downloaded")
    assert {path.name for path in folder.iterdir()} == {"config.json", "manifest.json", "model.sig"}
    assert verify_signature(folder, public_key).returncode == 0
    (folder / "config.json").write_text("{ }")
    assert "config.json" in verify_signature(folder, public_key).stderr


@pytest.mark.s3
def test_signing_unsigned_result_is_refused(s3: S3Server, prefix: str, tmp_path: Path, public_key: Path) -> None:
    publish(build_config(s3, prefix), tmp_path)
    with pytest.raises(TrainerError, match="an unsigned result") as error:
        run(resolve_run(build_signed_config(s3, prefix)), tmp_path, OutcomeRecorder(ProgressReporter()))
    assert error.value.reason is Reason.OUTPUT_EXISTS
    assert verify_signature(download_result(s3, prefix, tmp_path / "downloaded"), public_key).returncode != 0


@pytest.mark.s3
def test_signing_signed_result_is_already_complete(s3: S3Server, prefix: str, tmp_path: Path, public_key: Path) -> None:
    outcome: Outcome = publish(build_signed_config(s3, prefix), tmp_path)
    again = run(resolve_run(build_signed_config(s3, prefix)), tmp_path, OutcomeRecorder(ProgressReporter()))
    assert (again.reason, again.result) == (Reason.ALREADY_COMPLETE, outcome.result)


REFUSED: dict[str, tuple[Callable[[], bytes] | None, str]] = {
    "no file": (None, "cannot be read: No such file or directory"),
    "no key": (lambda: b"secret-canary", "cannot sign: "),
    "a public key": (
        lambda: (
            ec.generate_private_key(ec.SECP256R1())
            .public_key()
            .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        ),
        "cannot sign: ",
    ),
    "an RSA key": (lambda: to_pem(rsa.generate_private_key(65537, 2048)), "it contains a key of another kind"),
    "another curve": (lambda: to_pem(ec.generate_private_key(ec.SECP256K1())), "Unsupported key for curve 'secp256k1'"),
    "an encrypted key": (lambda: to_pem(ec.generate_private_key(ec.SECP256R1()), b"word"), "it is encrypted"),
}


@pytest.mark.parametrize(("content", "words"), REFUSED.values(), ids=REFUSED)
def test_signing_unusable_key_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Callable[[], bytes] | None, words: str
) -> None:
    monkeypatch.setenv(SIGNING_KEY_FILE_ENV, str(tmp_path / "key.pem"))
    if content:
        (tmp_path / "key.pem").write_bytes(content())
    with pytest.raises(TrainerError) as error:
        signing.check_signing_key(SIGNING)
    assert error.value.reason is Reason.AUTH_FAILED
    assert error.value.message.startswith("output.signing: key signing-key.pem of Secret team-key cannot sign: ")
    assert words in error.value.message
    assert "canary" not in error.value.message


def test_signing_missing_key_fails_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SIGNING_KEY_FILE_ENV, raising=False)
    content = {
        "model": {"uri": "s3://models/tiny"},
        "dataset": {"sources": [{"uri": "s3://data/rows/"}]},
        "training": {"maxSteps": 1},
        "output": {"uri": "s3://results/x", "signing": SIGNING_FIELDS},
        "storage": {"endpoint": "http://127.0.0.1:9"},
    }
    with pytest.raises(TrainerError, match="FINETUNE_SIGNING_KEY_FILE is not set") as error:
        run(resolve_run(TrainerConfig.model_validate(content)), tmp_path, OutcomeRecorder(ProgressReporter()))
    assert error.value.reason is Reason.AUTH_FAILED
