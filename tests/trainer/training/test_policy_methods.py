"""Tests of the methods that generate answers: what they learn from, what they refuse, and that they are TRL's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT
from tests.support.trainer.tiny_training import RunTraining, TrainingOutcome, TrainingRequest

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    from finetune_trainer.training.methods.policy_trainer import TokenizedGRPOTrainer

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

ROWS: list[dict[str, Any]] = [{"prompt": f"Say {number}.", "wanted": "e"} for number in range(8)]
LONG: dict[str, Any] = {"name": "long", "length": {"minimum": 14, "unit": "characters"}}
LETTER: dict[str, Any] = {"name": "letter", "stringCheck": {"operation": "contains", "reference": "{{item.wanted}}"}}


def build_settings(**changes: Any) -> dict[str, Any]:
    return {
        "method": "grpo",
        "rows": ROWS,
        "evaluation": {"graders": [LONG, LETTER]},
        "rewards": [{"grader": "long"}],
        "rollout": {"generations": 4, "maxNewTokens": 4},
        "batchSize": 16,
        "gradientAccumulation": 1,
        "maxSteps": 4,
        "learningRate": 2e-2,
        **changes,
    }


def list_rewards(trained: TrainingOutcome) -> list[float]:
    return [progress.reward for progress in trained.progress if progress.reward is not None]


@pytest.fixture(scope="module")
def decided_model_dir(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with logits of the size of a trained model's. An adapter cannot change those of random weights."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(model_dir, tmp_path_factory.mktemp("decided") / "model")
    weights = load_file(folder / "model.safetensors")
    name = "lm_head.weight" if "lm_head.weight" in weights else "model.embed_tokens.weight"
    save_file({**weights, name: weights[name] * 20}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_policy_method_raises_the_reward(run: RunTraining, decided_model_dir: Path, method: str) -> None:
    evaluation = {"graders": [LONG, LETTER], "maxNewTokens": 4}
    settings = build_settings(method=method, maxSteps=20, validate=True, learningRate=5e-3, evaluation=evaluation)
    trained = run(decided_model_dir, **settings)
    rewards = list_rewards(trained)
    assert sum(rewards[-4:]) > sum(rewards[:4]) + 0.4
    last = trained.progress[-1]
    assert last.answer_tokens
    assert last.entropy
    assert last.flat_groups is not None
    report = trained.evaluation
    assert report
    measure = next(measure for measure in report.measures if measure.name == "long")
    assert measure.base
    assert measure.tuned.value > measure.base.value
    assert [point.step for point in report.rewards] == list(range(1, 21))


def train_with_trl(model_dir: Path, folder: Path, method: str) -> tuple[list[float], list[float], dict[str, Any]]:
    """Train with TRL alone. Return losses, rewards and weights."""
    from peft import get_peft_model_state_dict
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    from finetune_trainer.modeling import loading
    from finetune_trainer.modeling.generation import CompletionDecoder, collect_end_token_ids
    from finetune_trainer.training.methods.policy import list_prompts
    from finetune_trainer.training.trl_arguments import build_common_arguments

    settings = build_settings(method=method)
    request = TrainingRequest({key: value for key, value in settings.items() if key not in ("rows", "evaluation")})
    tokenizer = loading.load_tokenizer(model_dir)
    model = loading.load_model(request.config, model_dir, "transformers", None)
    model.generation_config.eos_token_id = collect_end_token_ids(model, tokenizer)
    decoder = CompletionDecoder(tokenizer)
    trainer_class, config_class = (GRPOTrainer, GRPOConfig) if method == "grpo" else (RLOOTrainer, RLOOConfig)

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [min(1.0, len(decoder.decode(ids).final) / 14) for ids in completion_ids]

    arguments = build_common_arguments(request.config, 8, folder)
    prompts = [[{"role": "user", "content": row["prompt"]}] for row in ROWS]
    dataset = list_prompts(ROWS).add_column("text", prompts).remove_columns("prompt").rename_column("text", "prompt")
    trainer = trainer_class(
        model=model,
        processing_class=tokenizer,
        args=config_class(**arguments, num_generations=4, max_completion_length=4, temperature=1.0),
        reward_funcs=reward,
        train_dataset=dataset,
    )
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    return (
        [entry["loss"] for entry in history],
        [entry["reward"] for entry in history],
        get_peft_model_state_dict(trainer.model),
    )


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_policy_method_equals_the_trainer_of_trl(
    run: RunTraining, model_dir: Path, tmp_path: Path, method: str
) -> None:
    import torch

    trained = run(**build_settings(method=method))
    losses, rewards, weights = train_with_trl(model_dir, tmp_path / "trl", method)
    assert len(set(rewards)) > 1
    assert list_rewards(trained) == rewards
    assert trained.losses == losses
    for name, weight in weights.items():
        assert torch.equal(weight, trained.weights[name]), name


@pytest.mark.parametrize("steps", [2, 30])
def test_policy_method_without_signal_ends_with_advice(run: RunTraining, steps: int) -> None:
    never = {"name": "never", "stringCheck": {"reference": "no model says this"}}
    settings = build_settings(evaluation={"graders": [never]}, rewards=[{"grader": "never"}], maxSteps=steps)
    with pytest.raises(TrainerError) as raised:
        run(**settings)
    assert raised.value.reason is Reason.NO_LEARNING_SIGNAL
    assert "100% of the prompts have answers with equal rewards" in raised.value.message
    assert "the mean reward is 0" in raised.value.message


def test_policy_method_whose_grader_fails_ends(run: RunTraining) -> None:
    rows = [{"prompt": row["prompt"]} for row in ROWS]
    settings = build_settings(rows=rows, rewards=[{"grader": "long"}, {"grader": "letter", "weight": 2}])
    with pytest.raises(TrainerError) as raised:
        run(**settings)
    assert raised.value.reason is Reason.GRADER_FAILED
    assert (
        "letter gave no score to 32 of the last 32 answers (the row has no field item.wanted)" in raised.value.message
    )


@pytest.mark.parametrize(
    ("changes", "reason", "message"),
    [
        ({"batchSize": 6}, Reason.CONFIG_INVALID, "a step has 6 answers"),
        ({"batchSize": 64}, Reason.DATASET_EMPTY, "a step of method grpo needs 16 prompts, but there are 8"),
    ],
)
def test_policy_method_with_incomplete_groups_is_refused(
    run: RunTraining, changes: dict[str, Any], reason: Reason, message: str
) -> None:
    with pytest.raises(TrainerError, match=message) as raised:
        run(**build_settings(**changes))
    assert raised.value.reason is reason


def test_policy_method_leaves_out_answers_that_one_reward_cannot_score(run: RunTraining) -> None:
    rows = [row if number % 2 else {"prompt": row["prompt"]} for number, row in enumerate(ROWS)]
    rewards = [{"grader": "long"}, {"grader": "letter"}]
    evaluation = {"graders": [LONG, LETTER], "maxUngradedFraction": 0.9}
    alone = run(**build_settings(rows=rows, rewards=rewards, evaluation=evaluation, maxSteps=1, batchSize=32))
    both = run(**build_settings(rewards=rewards, maxSteps=1, batchSize=32))
    # With the same answers, those without a score do not lower the mean of those that have both.
    assert list_rewards(alone)[0] == pytest.approx(list_rewards(both)[0], rel=0.2)


@pytest.mark.parametrize("loss_type", ["grpo", "drGrpo", "bnpo", "cispo", "sapo", "luspo", "vespo"])
def test_policy_method_of_each_loss_type_changes_the_adapter(run: RunTraining, loss_type: str) -> None:
    trained = run(**build_settings(maxSteps=2, lossType=loss_type))
    changed = [name for name, weight in trained.weights.items() if "lora_B" in name and weight.abs().max() > 1e-3]
    assert changed


def test_policy_method_evaluates_answers_as_long_as_in_the_training() -> None:
    from finetune_trainer.modeling.batch_limits import choose_new_tokens

    settings = build_settings(rollout={"generations": 4, "maxNewTokens": 300})
    request = TrainingRequest({key: value for key, value in settings.items() if key not in ("rows", "evaluation")})
    assert choose_new_tokens(request.config, 0) == 300


def test_policy_method_whose_answers_are_those_of_the_base_model_is_refused(
    run: RunTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune_trainer.training.methods import policy_trainer

    generate = policy_trainer.TokenizedGRPOTrainer.generate_answers

    def generate_without_adapter(trainer: TokenizedGRPOTrainer, prompts: list[list[int]]) -> list[list[int]]:
        with trainer.model.disable_adapter():
            return generate(trainer, prompts)

    monkeypatch.setattr(policy_trainer.TokenizedGRPOTrainer, "generate_answers", generate_without_adapter)
    with pytest.raises(TrainerError, match="rollouts: only ") as raised:
        run(**build_settings())
    assert raised.value.reason is Reason.MODEL_UNSUPPORTED


def test_epoch_sampler_continues_with_the_order_of_each_epoch() -> None:
    from trl.trainer.utils import RepeatSampler

    from finetune_trainer.training.methods.policy_trainer import EpochRepeatSampler

    plain = RepeatSampler(range(10), mini_repeat_count=2, batch_size=2, seed=7)
    expected = [list(plain) for _ in range(3)]
    assert expected[0] != expected[1]
    resumed = EpochRepeatSampler(range(10), mini_repeat_count=2, batch_size=2, seed=7)
    resumed.set_epoch(2)
    assert list(resumed) == expected[2]
