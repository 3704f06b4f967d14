"""Methods, variants, quantisation, packing, validation: what each does to a tiny model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.trainer.tiny_model import TRAINING_SECONDS, build, config

from finetune_trainer.contract import DatasetReport, Progress, Reason, TrainerConfig
from finetune_trainer.errors import TrainerError
from finetune_trainer.progress import ProgressReporter
from finetune_trainer.training.packing import pack

if TYPE_CHECKING:
    from finetune_trainer.data.preparing import PreparedData
    from finetune_trainer.models.model import Loaded

Rows = Mapping[str, Sequence[Any]]


def row(start: int, length: int) -> list[int]:
    return [10 + (start * 7 + each) % 200 for each in range(length)]


PROMPTS = [row(each, 3 + each % 3) for each in range(8)]
GOOD, BAD = [row(50, 4 + each % 4) for each in range(8)], [row(90, 3 + each % 5) for each in range(8)]
ROWS: dict[str, Rows] = {
    "sft": {
        "input_ids": [[*prompt, *answer] for prompt, answer in zip(PROMPTS, GOOD, strict=True)],
        "labels": [[*([-100] * len(prompt)), *answer] for prompt, answer in zip(PROMPTS, GOOD, strict=True)],
    },
    "dpo": {"prompt_ids": PROMPTS, "chosen_ids": GOOD, "rejected_ids": BAD},
    "kto": {
        "prompt_ids": PROMPTS,
        "completion_ids": [*GOOD[:4], *BAD[4:]],
        "label": [True] * 4 + [False] * 4,
    },
}


class Recorder(ProgressReporter):
    def __init__(self) -> None:
        self.seen: list[Progress] = []
        super().__init__()

    def update(self, **fields: Any) -> None:
        super().update(**fields)
        self.seen.append(self.latest())


@dataclass(frozen=True)
class Trained:
    config: TrainerConfig
    loaded: Loaded
    metrics: dict[str, float]
    seen: list[Progress]

    @property
    def losses(self) -> list[float]:
        by_step = {each.step: each.loss for each in self.seen if each.step and each.loss is not None}
        return list(by_step.values())


Run = Callable[..., Trained]


def settings(training: Mapping[str, Any], source: Mapping[str, Any] | None = None) -> TrainerConfig:
    shape = {"batchSize": 4, "gradientAccumulation": 1, "gradientCheckpointing": False, **training}
    made = config(shape)
    return made.model_copy(update={"model": made.model.model_copy(update=source or {})})


def prepared(method: str, validate: bool = False) -> PreparedData:
    import datasets

    from finetune_trainer.data.preparing import PreparedData

    rows = datasets.Dataset.from_dict(dict(ROWS[method]))
    report = DatasetReport(
        rows=len(rows), kept=len(rows), rejected={}, tokens=0, supervised_tokens=0, digest="sha256:0"
    )
    return PreparedData(dataset=rows, report=report, validation=rows if validate else None)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("model"))


@pytest.fixture
def run(model_dir: Path, tmp_path: Path) -> Run:
    from finetune_trainer.models import model
    from finetune_trainer.training import train

    def run(
        source: Mapping[str, Any] | None = None,
        validate: bool = False,
        adapter: Path | None = None,
        **training: Any,
    ) -> Trained:
        how, recorder = settings(training, source), Recorder()
        model.import_backend("transformers")
        words = model.load_tokenizer(model_dir)
        loaded = model.Loaded(model.load_model(how, model_dir, "transformers", adapter), words, "transformers")
        data = prepared(how.training.method, validate)
        metrics = train.train(how, loaded, data, train.Session(recorder), tmp_path)
        return Trained(how, loaded, metrics, recorder.seen)

    return run


@pytest.mark.parametrize("lengths", [[3, 5, 8, 2, 2, 7], [8] * 3, [1] * 20, []], ids=["mixed", "full", "ones", "none"])
def test_packing_takes_every_row_once_and_cuts_none(lengths: list[int]) -> None:
    sequences = pack(lengths, 8)
    assert sorted(row for sequence in sequences for row in sequence) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in sequence) <= 8 for sequence in sequences)
    assert len(sequences) <= math.ceil(sum(lengths) / 8) + 1


@pytest.mark.training
@pytest.mark.timeout(TRAINING_SECONDS)
class TestMethods:
    def test_dpo_prefers_the_chosen_answer(self, run: Run) -> None:
        trained = run(method="dpo", maxSteps=8, validate=True)
        assert trained.losses[0] == pytest.approx(math.log(2), abs=1e-4)  # at first it is the base model
        assert trained.metrics["evalLoss"] < 0.5 * trained.metrics["baseEvalLoss"]
        assert trained.metrics["evalRewardAccuracy"] == 1.0

    def test_kto_learns_good_from_bad(self, run: Run) -> None:
        trained = run(method="kto", maxSteps=12, validate=True)
        assert trained.metrics["baseEvalLoss"] == pytest.approx(0.5, abs=1e-4)
        assert trained.metrics["evalLoss"] < 0.9 * trained.metrics["baseEvalLoss"]
        assert trained.metrics["tokens"] > 0

    @pytest.mark.parametrize("method", ["dpo", "kto"])
    def test_only_one_adapter_is_left(self, run: Run, tmp_path: Path, method: str) -> None:
        from finetune_trainer.output.export import export

        trained = run(method=method, maxSteps=2)
        export(trained.config, trained.loaded, tmp_path / "adapter", "sha256:0")
        assert not [path for path in (tmp_path / "adapter").iterdir() if path.is_dir()]

    def test_validation_is_a_mean_over_tokens_and_changes_nothing(self, run: Run) -> None:
        shape = {"maxSteps": 4, "lora": {"dropout": 0.2}, "evalSteps": 2}
        watched, alone = run(validate=True, **shape), run(**shape)
        assert watched.losses == alone.losses
        assert watched.metrics["evalLoss"] < watched.metrics["baseEvalLoss"]
        by_row = run(validate=True, **{**shape, "batchSize": 1})
        assert by_row.metrics["baseEvalLoss"] == pytest.approx(watched.metrics["baseEvalLoss"], abs=1e-5)
        assert watched.seen[-1].eval_loss == watched.metrics["evalLoss"]

    def test_packed_rows_are_trained_as_unpacked_ones(self, run: Run) -> None:
        # Eight rows fit into one sequence; all of them are one step either way.
        packed = run(packing=True, batchSize=2, maxSteps=3)
        plain = run(batchSize=8, maxSteps=3)
        assert packed.losses == pytest.approx(plain.losses, abs=1e-4)
        assert packed.metrics["tokens"] == plain.metrics["tokens"]

    def test_logits_of_a_packed_row_are_its_own(self, run: Run) -> None:
        import torch

        from finetune_trainer.training.packing import Collator, packed

        loaded, rows = run(maxSteps=1).loaded, prepared("sft").dataset
        sequences = packed(rows, 24)  # several, so that there is padding too
        batch = Collator(rows, 0)(list(sequences))
        del batch["token_count"], batch["labels"]
        model = loaded.model.eval()
        with torch.no_grad():
            together = model(**batch, use_cache=False).logits
            for line, sequence in enumerate(sequences):
                start = 0
                for number in sequence["rows"]:
                    ids = rows[number]["input_ids"]
                    alone = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
                    assert torch.allclose(together[line, start : start + len(ids)], alone, atol=1e-4)
                    start += len(ids)

    @pytest.mark.parametrize(
        ("variant", "quantization"),
        [("rslora", "none"), ("dora", "none"), ("lora", "nf4"), ("dora", "nf4"), ("lora", "int8")],
    )
    def test_learns_and_is_reloaded(self, run: Run, tmp_path: Path, variant: str, quantization: str) -> None:
        from finetune_trainer.output.export import export

        shape = {"maxSteps": 6, "lora": {"variant": variant, "rank": 8}}
        trained = run({"quantization": quantization}, True, **shape)
        assert trained.metrics["evalLoss"] < 0.9 * trained.metrics["baseEvalLoss"]
        export(trained.config, trained.loaded, tmp_path / "adapter", "sha256:0")  # it compares logits
        again = run({"quantization": quantization}, True, tmp_path / "adapter", **shape)
        assert again.metrics["baseEvalLoss"] == pytest.approx(trained.metrics["evalLoss"], abs=1e-4)

    @pytest.mark.parametrize(
        ("lora", "message"),
        [
            ({"rank": 4}, "training.lora.rank is 4, that of the adapter at model.adapterURI is 16"),
            ({"alpha": 8}, "training.lora.alpha is 8"),
            ({"variant": "dora"}, "training.lora.variant is dora, .* is lora"),
            ({"targetModules": ["q_proj"]}, r"training.lora.targetModules is \['q_proj'\], .*'down_proj'"),
        ],
        ids=["rank", "alpha", "variant", "targets"],
    )
    def test_another_adapter_than_the_config_says(
        self, run: Run, tmp_path: Path, lora: dict[str, Any], message: str
    ) -> None:
        trained = run(maxSteps=1)
        trained.loaded.model.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
        with pytest.raises(TrainerError, match=message) as caught:
            run(adapter=tmp_path / "adapter", lora=lora)
        assert caught.value.reason is Reason.CONFIG_INVALID

    def test_the_same_as_trl_itself(self, run: Run, model_dir: Path, tmp_path: Path) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
        from trl import SFTConfig, SFTTrainer

        base = AutoModelForCausalLM.from_pretrained(model_dir)
        set_seed(42)
        lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        arguments = SFTConfig(
            output_dir=str(tmp_path / "direct"),
            per_device_train_batch_size=4,
            max_steps=4,
            learning_rate=1e-2,
            weight_decay=0.01,
            gradient_checkpointing=False,
            max_length=None,
            bf16=False,
            use_cpu=True,
            dataloader_pin_memory=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=42,
        )
        words = AutoTokenizer.from_pretrained(model_dir)
        direct = SFTTrainer(
            model=get_peft_model(base, lora),
            args=arguments,
            train_dataset=prepared("sft").dataset,
            processing_class=words,
        )
        direct.train()
        losses = [each["loss"] for each in direct.state.log_history if "loss" in each]
        assert run(maxSteps=4).losses == pytest.approx(losses, abs=1e-5)


@pytest.mark.training
@pytest.mark.timeout(TRAINING_SECONDS)
def test_chat_template_of_the_config(model_dir: Path) -> None:
    from finetune_trainer.models.model import load_tokenizer

    words = load_tokenizer(model_dir, "{% for m in messages %}{{ m.content }}!{% endfor %}")
    assert words.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "Hi!"
    with pytest.raises(TrainerError, match=r"model.chatTemplate is no Jinja template: .* \(its line 1\)") as caught:
        load_tokenizer(model_dir, "{% for m in %}")
    assert caught.value.reason is Reason.CONFIG_INVALID
