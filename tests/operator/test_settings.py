"""Settings from the environment variables that the chart sets."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from finetune_operator.__main__ import main
from finetune_operator.settings import Settings


def test_settings_chart_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "TRAINER_IMAGE": "registry/trainer:2", "WATCH_NAMESPACES": '["a","b"]', "PROGRESS_INTERVAL": "5",
        "RESYNC_INTERVAL": "600", "WORKERS": "4", "LOG_LEVEL": "debug", "TRAINER_IMAGE_PULL_POLICY": "Never",
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(f"FINETUNE_OPERATOR_{name}", value)
    settings = Settings()
    assert settings.trainer_image == "registry/trainer:2"
    assert settings.watch_namespaces == ["a", "b"]
    assert (settings.progress_interval, settings.resync_interval, settings.workers) == (5, 600, 4)


@pytest.mark.parametrize(("name", "value"), [("WORKERS", "0"), ("RESYNC_INTERVAL", "-1"), ("LOG_LEVEL", "loud")])
def test_settings_invalid_value_raises(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"FINETUNE_OPERATOR_{name}", value)
    with pytest.raises(ValidationError):
        Settings()


def test_settings_namespaces_by_list_and_label_raises() -> None:
    with pytest.raises(ValidationError, match="either watch_namespaces or watch_namespace_selector"):
        Settings(watch_namespaces=["a"], watch_namespace_selector="team=a")


WRONG: dict[str, tuple[str, str, str]] = {
    "malformed JSON": ("BOUNDS", "{", "bounds"),
    "misspelled limit": ("BOUNDS", '{"allowedImage": []}', "bounds.allowedImage"),
    "image of any registry": ("BOUNDS", '{"allowedImages": ["*/trainer:1"]}', "bounds.allowedImages.0"),
    "selector without a value": ("WATCH_NAMESPACE_SELECTOR", "team in ()x", "watch_namespace_selector"),
    "default of the wrong type": ("DEFAULTS", '{"nodeSelector": "gpu"}', "defaults.nodeSelector"),
}


@pytest.mark.parametrize(("name", "value", "place"), WRONG.values(), ids=WRONG)
def test_main_invalid_settings_exits_naming_field(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, place: str
) -> None:
    monkeypatch.setenv(f"FINETUNE_OPERATOR_{name}", value)
    with pytest.raises(SystemExit) as exit_:
        main()
    assert place in str(exit_.value)
