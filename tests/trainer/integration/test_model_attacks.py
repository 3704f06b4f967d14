"""Tests that attacks by a malicious model folder have no effect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.trainer.tiny_model import CHATML, TRAINING_TIMEOUT, build, chat, config, tokenizer, write_rows

from finetune_trainer.contract import Reason
from finetune_trainer.data.preparation import DataFiles, prepare_dataset
from finetune_trainer.data.row_schema import RowEncoding
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs.model_files import check_model_dir
from finetune_trainer.modeling.loading import load_model, load_tokenizer
from finetune_trainer.training.methods import get_method

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

BOMB = (2**60).to_bytes(8, "little") + b"{}"
BROKEN = {
    "header bomb": ("model.safetensors", BOMB),
    "offsets beyond the end": (
        "model.safetensors",
        (63).to_bytes(8, "little") + b'{"x":{"dtype":"F32","shape":[9000],"data_offsets":[0,36000]}}  ',
    ),
    "config of an unknown kind": ("config.json", b'{"model_type": "__import__"}'),
    "layers without end": ("config.json", b'{"model_type": "llama", "num_hidden_layers": "x"}'),
}


@pytest.mark.parametrize(("name", "content"), BROKEN.values(), ids=BROKEN)
def test_load_model_malicious_file_is_model_invalid(tmp_path: Path, name: str, content: bytes) -> None:
    folder = build(tmp_path / "model")
    (folder / name).write_bytes(content)
    with pytest.raises(TrainerError) as caught:
        load_model(config(), folder, "transformers")
    assert caught.value.reason is Reason.MODEL_INVALID


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("location", ["top", "nested"])
def test_code_beside_known_model_is_never_run(tmp_path: Path, file: str, location: str) -> None:
    folder, canary = build(tmp_path / "model"), tmp_path / "canary"
    names = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")
    auto_map: dict[str, object] = {"auto_map": dict.fromkeys(names, "evil.Evil")}
    settings = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(settings | (auto_map if location == "top" else {"nested": auto_map})))
    code = f"open({str(canary)!r}, 'w')\nclass Evil: pass\n"
    for name in ("evil.py", "modeling_llama.py", "configuration_llama.py", "__init__.py"):
        (folder / name).write_text(code)
    check_model_dir(folder)
    load_tokenizer(folder)
    model = load_model(config(), folder, "transformers")
    assert type(model.get_base_model()).__module__ == "transformers.models.llama.modeling_llama"
    assert not canary.exists()


def test_code_of_unknown_model_is_refused_and_never_run(tmp_path: Path) -> None:
    folder, canary = build(tmp_path / "model"), tmp_path / "canary"
    settings = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    (folder / "config.json").write_text(json.dumps(settings | {"model_type": "evil", "auto_map": auto_map}))
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass Evil: pass\n")
    for load in (check_model_dir, lambda path: load_model(config(), path, "transformers")):
        with pytest.raises(TrainerError) as caught:
            load(folder)
        assert caught.value.reason is Reason.MODEL_INVALID
    assert not canary.exists()


@pytest.mark.parametrize(
    "escape",
    [
        "cycler.__init__.__globals__.os.system('touch {canary}')",
        "lipsum.__globals__['os'].popen('touch {canary}').read()",
        "self.__init__.__globals__.__builtins__.open('{canary}', 'w')",
        "''.__class__.__mro__[1].__subclasses__()",
        "(''|attr('__class__')).__base__.__subclasses__()",
        "raise_exception.__globals__['__builtins__']['open']('{canary}', 'w')",
        "range(10 ** 12)|list",
    ],
)
def test_chat_template_cannot_escape_sandbox(tmp_path: Path, escape: str) -> None:
    canary = tmp_path / "canary"
    template = "{{ " + escape.replace("{canary}", str(canary)) + " }}" + CHATML
    settings, file = config(), write_rows(tmp_path / "rows", [chat("a", "b")])
    with pytest.raises(TrainerError) as caught:
        prepare_dataset(
            settings,
            DataFiles([(settings.dataset.sources[0], [file])], "sha256:0"),
            RowEncoding(tokenizer(template), get_method(settings)),
            tmp_path,
        )
    assert caught.value.reason in (Reason.MODEL_INVALID, Reason.DATA_INVALID)
    assert not canary.exists()
