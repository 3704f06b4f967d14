"""Successive halving: whatever happens, limits hold, and a restart at any point changes no decision."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.operator.sweeps import SimulatedSweep

from finetune_operator.status.sweeps.sweep_status import is_terminal
from finetune_operator.status.sweeps.trials import read_child

LEARNING_RATES = [1e-5 * number for number in range(1, 7)]
SPEC = {
    "parameters": {"learningRate": {"values": LEARNING_RATES}},
    "halving": {"atSteps": [200, 100], "keepFraction": 0.5},
    "maxParallel": 2,
    "maxFailed": 100,
}
LOSS_BY_TRIAL = {f"lr-{number}": float(number) for number in range(1, 7)}


def _run_trainers(sweep: SimulatedSweep) -> bool:
    """Let all active trials reach their step or their end. Return whether one did."""
    active = sweep.list_active()
    for name in active:
        step = read_child(sweep.children[name]).suspend_at_step
        if step:
            sweep.reach_step(name, step, LOSS_BY_TRIAL[name])
        else:
            sweep.complete(name, LOSS_BY_TRIAL[name])
    return bool(active)


def _act_as_controller(sweep: SimulatedSweep) -> None:
    """Cancel what is to be cancelled."""
    for name, body in sweep.children.items():
        child = read_child(body)
        if child.cancel and not child.is_ended:
            sweep.report(name, "Cancelled", reason="Cancelled")


def test_halving_two_steps_keeps_the_best_and_ranks_complete_ones_alone() -> None:
    sweep = SimulatedSweep(SPEC)
    for _ in range(30):
        sweep.reconcile()
        _act_as_controller(sweep)
        _run_trainers(sweep)
    cut = {row.name: row.cut_at_step for row in sweep.status.trials}
    assert cut == {"lr-1": None, "lr-2": None, "lr-3": 200, "lr-4": 100, "lr-5": 100, "lr-6": 100}
    counts = sweep.status.counts
    assert (counts.complete, counts.cut, counts.failed, counts.finished) == (2, 4, 0, "6/6")
    assert sweep.status.best
    assert sweep.status.best.name == "lr-1"
    assert [result.step for result in sweep.get_row("lr-3").steps] == [100, 200]


def test_halving_of_several_seeds_ranks_configurations_by_their_mean() -> None:
    sweep = SimulatedSweep(
        {
            "parameters": {"learningRate": {"values": LEARNING_RATES[:2]}},
            "seeds": 2,
            "maxParallel": 4,
            "halving": {"atSteps": [100]},
        }
    )
    sweep.reconcile()
    sweep.reconcile()
    for name, loss in {"lr-1": 1.0, "lr-2": 2.0, "lr-3": 9.0, "lr-4": 2.5}.items():
        sweep.reach_step(name, 100, loss)
    sweep.reconcile()
    assert [row.cut_at_step for row in sweep.status.trials] == [100, None, 100, None]


def test_halving_trial_with_fewer_steps_is_ranked_by_its_value_and_not_cut() -> None:
    sweep = SimulatedSweep({**SPEC, "maxParallel": 6, "parameters": {"learningRate": {"values": LEARNING_RATES[:4]}}})
    sweep.reconcile()
    sweep.reconcile()
    sweep.complete("lr-1", 0.5)
    sweep.complete("lr-4", 9.0)
    sweep.reach_step("lr-2", 100, 1.0)
    sweep.reach_step("lr-3", 100, 2.0)
    sweep.reconcile()
    assert {row.name: row.cut_at_step for row in sweep.status.trials if row.cut_at_step} == {"lr-3": 100}
    assert sweep.children["lr-2"]["spec"]["suspendAtStep"] == 200


def test_halving_trial_without_a_loss_is_last() -> None:
    sweep = SimulatedSweep({**SPEC, "maxParallel": 6, "parameters": {"learningRate": {"values": LEARNING_RATES[:2]}}})
    sweep.reconcile()
    sweep.reconcile()
    sweep.complete("lr-1", None)
    sweep.reach_step("lr-2", 100, 100.0)
    sweep.reconcile()
    assert sweep.get_row("lr-2").cut_at_step is None


def test_halving_decision_is_stored_before_a_trial_is_cancelled() -> None:
    sweep = SimulatedSweep({**SPEC, "maxParallel": 6})
    sweep.reconcile()
    sweep.reconcile()
    for name, loss in LOSS_BY_TRIAL.items():
        sweep.reach_step(name, 100, loss)
    sweep.reconcile(writes=1)
    assert not any(read_child(body).cancel for body in sweep.children.values())
    sweep.report("lr-1", "Failed", reason="OOMKilled")  # which would leave a place for lr-4
    sweep.reconcile()
    assert {name for name, body in sweep.children.items() if read_child(body).cancel} == {"lr-4", "lr-5", "lr-6"}


def test_halving_failed_trial_takes_no_place() -> None:
    sweep = SimulatedSweep({**SPEC, "maxParallel": 6, "parameters": {"learningRate": {"values": LEARNING_RATES[:4]}}})
    sweep.reconcile()
    sweep.reconcile()
    for name in ("lr-1", "lr-2", "lr-3"):
        sweep.reach_step(name, 100, LOSS_BY_TRIAL[name])
    sweep.reconcile()
    sweep.report("lr-1", "Failed", reason="OOMKilled")
    sweep.reach_step("lr-4", 100, 4.0)
    sweep.reconcile()
    assert [row.name for row in sweep.status.trials if row.cut_at_step] == ["lr-4"]
    assert (sweep.status.counts.failed, sweep.status.counts.cut) == (1, 1)
    sweep.report("lr-4", "Failed", reason="Unknown")
    assert (sweep.reconcile().counts.failed, sweep.status.counts.cut) == (1, 1)


def test_halving_trial_that_was_resumed_by_hand_is_stopped_and_takes_a_place() -> None:
    sweep = SimulatedSweep({**SPEC, "maxParallel": 1})
    sweep.reconcile()
    sweep.reconcile()
    sweep.reach_step("lr-1", 100, 1.0)
    sweep.children["lr-1"]["spec"]["suspendAtStep"] = None
    sweep.reconcile()
    assert (list(sweep.children), sweep.children["lr-1"]["spec"]["suspendAtStep"]) == (["lr-1"], 100)
    sweep.reconcile()
    assert list(sweep.children) == ["lr-1", "lr-2"]


def test_halving_decision_without_a_cut_is_not_made_again_after_a_failure() -> None:
    sweep = SimulatedSweep(
        {**SPEC, "maxParallel": 4, "seeds": 2, "parameters": {"learningRate": {"values": LEARNING_RATES[:2]}}}
    )
    sweep.reconcile()
    sweep.reconcile()
    sweep.complete("lr-2", 3.0)  # it has fewer steps, so it is not cut
    sweep.complete("lr-4", 3.0)
    sweep.reach_step("lr-1", 100, 1.0)
    sweep.reach_step("lr-3", 100, 4.0)
    sweep.reconcile()
    sweep.reach_step("lr-3", 200, 4.0)
    sweep.reconcile()
    sweep.report("lr-1", "Failed", reason="OOMKilled")
    sweep.reconcile()
    assert sweep.get_row("lr-3").cut_at_step == 200


def test_halving_decision_without_a_cut_is_not_made_again_before_the_next_step() -> None:
    sweep = SimulatedSweep(
        {**SPEC, "maxParallel": 4, "seeds": 2, "parameters": {"learningRate": {"values": LEARNING_RATES[:2]}}}
    )
    sweep.reconcile()
    sweep.reconcile()
    sweep.complete("lr-2", 3.0)  # it has fewer steps, so it is not cut
    sweep.complete("lr-4", 3.0)
    sweep.reach_step("lr-1", 100, 1.0)
    sweep.reach_step("lr-3", 100, 4.0)
    assert sweep.reconcile().compared_at_step == 100
    sweep.report("lr-1", "Failed", reason="OOMKilled")  # its configuration has the mean 4 now
    sweep.reconcile()
    assert (sweep.get_row("lr-3").cut_at_step, sweep.status.compared_at_step) == (None, 100)


def test_halving_steps_changed_by_hand_do_not_keep_a_trial_from_its_step() -> None:
    sweep = SimulatedSweep({**SPEC, "maxParallel": 2, "parameters": {"learningRate": {"values": LEARNING_RATES[:2]}}})
    sweep.reconcile()
    sweep.reconcile()
    for step in range(11, 21):
        sweep.children["lr-1"]["spec"]["suspendAtStep"] = step
        sweep.reach_step("lr-1", step, 1.0)
        sweep.reconcile()
    sweep.reach_step("lr-1", 100, 1.0)
    sweep.reach_step("lr-2", 100, 2.0)
    assert sweep.reconcile().compared_at_step == 100


def test_halving_of_a_cancelled_sweep_cuts_nothing() -> None:
    sweep = SimulatedSweep({**SPEC, "maxParallel": 6})
    sweep.reconcile()
    sweep.reconcile()
    for name, loss in LOSS_BY_TRIAL.items():
        sweep.reach_step(name, 100, loss)
    sweep.edit(cancel=True)
    assert sweep.reconcile().counts.cut == 0


ACTION = st.sampled_from(["reach", "complete", "fail", "delete", "resume", "suspendAll", "resumeAll", "cancelled"])


@settings(max_examples=60, deadline=None)
@given(
    actions=st.lists(st.tuples(ACTION, st.integers(0, 5), st.integers(0, 4) | st.none()), max_size=40),
    losses=st.lists(st.floats(0, 10), min_size=6, max_size=6),
    max_parallel=st.integers(1, 6),
    keep=st.floats(0.05, 0.95),
)
def test_halving_whatever_happens_limits_hold_and_all_trials_end(
    actions: list[tuple[str, int, int | None]], losses: list[float], max_parallel: int, keep: float
) -> None:
    halving = {"atSteps": [100, 200], "keepFraction": keep}
    sweep = SimulatedSweep({**SPEC, "maxParallel": max_parallel, "halving": halving})
    by_trial = {f"lr-{index + 1}": loss for index, loss in enumerate(losses)}
    for action, index, writes in actions:
        _disturb(sweep, action, f"lr-{index + 1}", by_trial)
        sweep.reconcile(writes)
        first_cuts = {row.name: row.cut_at_step for row in sweep.status.trials if row.cut_at_step}
        sweep.reconcile()
        cuts = {row.name: row.cut_at_step for row in sweep.status.trials if row.cut_at_step}
        assert first_cuts.items() <= cuts.items()
        _act_as_controller(sweep)
        assert len(sweep.list_active()) <= max_parallel
        assert not (sweep.sweep.spec.suspend and any(_may_run(sweep)))
    sweep.edit(suspend=False)
    for _ in range(40):
        sweep.reconcile()
        _act_as_controller(sweep)
        _finish_active(sweep, by_trial)
    assert is_terminal(sweep.status)
    assert all(row.phase in ("Complete", "Failed", "Cancelled", "Deleted") for row in sweep.status.trials)
    final = sweep.status
    assert sweep.reconcile() == final


def _may_run(sweep: SimulatedSweep) -> list[str]:
    return [name for name in sweep.list_active() if not sweep.children[name]["spec"].get("suspend")]


def _disturb(sweep: SimulatedSweep, action: str, name: str, losses: dict[str, float]) -> None:
    """Let something happen to the sweep or to one of its trials."""
    if action in ("suspendAll", "resumeAll"):
        sweep.edit(suspend=action == "suspendAll")
    if name not in sweep.children or read_child(sweep.children[name]).is_ended:
        return
    body, is_active = sweep.children[name], name in sweep.list_active()
    step = read_child(body).suspend_at_step
    if action == "reach" and is_active and step:
        sweep.reach_step(name, step, losses[name])
    elif action == "complete" and is_active:
        sweep.complete(name, losses[name])
    elif action in ("fail", "cancelled"):
        sweep.report(name, "Failed" if action == "fail" else "Cancelled", reason="OOMKilled")
    elif action == "delete":
        del sweep.children[name]
    elif action == "resume":
        sweep.children[name] = {**body, "spec": {**body["spec"], "suspend": False, "suspendAtStep": None}}


def _finish_active(sweep: SimulatedSweep, losses: dict[str, float]) -> None:
    for name in sweep.list_active():
        child = read_child(sweep.children[name])
        if child.suspend:
            sweep.report(name, "Suspended", reason="Suspended")
        elif child.suspend_at_step:
            sweep.reach_step(name, child.suspend_at_step, losses[name])
        else:
            sweep.complete(name, losses[name])
