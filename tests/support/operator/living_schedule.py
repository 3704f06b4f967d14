"""A FineTuneSchedule with its whole reconciler, in a world that ends runs and tasks, kills operators and edits."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from random import Random
from typing import Any

from aiohttp import web
from tests.support.operator.builders import Body, merge_objects
from tests.support.operator.fault_proxy import Fault, pass_through
from tests.support.operator.namespace_harness import NamespaceHarness
from tests.support.operator.promotion_harness import PromotionHarness
from tests.support.operator.schedule_harness import ListFailedError, ScheduleOperator, ScheduleWorld
from tests.support.operator.schedule_samples import (
    build_change,
    build_comparison,
    build_digest,
    build_result,
    build_schedule_manifest,
)

from finetune_operator.kube.client import KubeClient
from finetune_operator.kube.transport import ApiError
from finetune_operator.observed.objects import is_finished
from finetune_trainer.contract import PromoteTask

_MAX_ROUNDS = 40
_TASK_SECONDS = 2


class LivingSchedule(ScheduleWorld):
    """The schedule `bot`. Each run has a quality, and is better than the champion if its quality is higher."""

    def __init__(self, world: NamespaceHarness, client: KubeClient) -> None:
        super().__init__(world, client)
        self._tasks = PromotionHarness(world, client, "bot")
        self.alias = self._tasks.alias
        self.qualities: dict[str, float] = {}
        self._opponents: dict[str, list[str]] = {}
        """The digests of the champions that each run was compared with."""
        self.created: list[str] = []
        """The names of the FineTuneJobs in the order of their creation, also of those that were deleted."""
        self.deleted: set[str] = set()

    async def create_comparing(self, **spec: Any) -> None:
        """Create a schedule that compares its runs, and promotes them."""
        await self.create(**merge_objects(build_schedule_manifest()["spec"], {"promotion": {"mode": "auto"}, **spec}))

    async def finish_run(self, name: str, quality: float) -> None:
        """End a run with a result that was compared with the champion of its spec."""
        run = await self.read_run(name)
        self.qualities[name] = quality
        baselines = [each for each in run["spec"]["evaluation"]["baselines"] if each["name"] == "champion"]
        self._opponents[name] = [each["digest"] for each in baselines]
        comparisons = [self._compare(name, each["digest"]) for each in baselines]
        await self.end_run(name)
        result = build_result(name, baselines=comparisons or None)
        await self._world.call(
            "PATCH", self._world.path("finetunejobs", name, "status"), {"status": {"result": result}}
        )

    def _compare(self, name: str, digest: str) -> Body:
        (opponent,) = [each for each in self.qualities if build_digest(each) == digest]
        change = self.qualities[name] - self.qualities[opponent]
        measured = build_change(change=change, low=change - 0.01, high=change + 0.01)
        return build_comparison(measured, name=opponent)

    async def read_run(self, name: str) -> Body:
        return await self._world.call("GET", self._world.path("finetunejobs", name))

    async def list_unfinished_runs(self) -> list[str]:
        return [run["metadata"]["name"] for run in await self.list_runs() if not is_finished(run)]

    async def end_tasks(self, **inputs: Any) -> None:
        """Let all tasks end: checks find what `inputs` says, and aliases are written."""
        await self._tasks.end_tasks()
        if any(not is_finished(job) for job in await self.list_checks()):
            await self.end_check(**inputs)

    async def settle_all(self, operator: ScheduleOperator | None = None) -> None:
        """Let an operator work until it waits for a time or for a run. All tasks end at once."""
        operator = operator or self.build_operator()
        for _ in range(_MAX_ROUNDS):
            if await operator.settle() != _TASK_SECONDS:
                await self._note_runs()
                return
            await self.end_tasks(unchanged=False, addedBytes=10)
        raise AssertionError("the schedule never settles")

    async def settle_killed(self, number: int, after_effect: bool) -> None:
        """Let an operator work that is killed at its request of this number."""
        last = len(self.proxy.requests) + number

        async def kill(request: web.Request) -> None:
            if len(self.proxy.requests) == last:
                self.proxy.faults.append(Fault(request.method, request.path, 503, after_effect, {}))

        self.proxy.interceptor = kill
        with suppress(ApiError, ListFailedError):  # the request that fails may be a list
            await self.build_operator().settle()
        self.proxy.interceptor = pass_through
        self.proxy.faults.clear()
        await self._note_runs()

    async def settle_two_leaders(self, rounds: int) -> None:
        """Let two operators work at the same time. One of two equal writes is a conflict."""
        operators = [self.build_operator(), self.build_operator()]
        await asyncio.gather(*(each.refresh() for each in operators))
        for _ in range(rounds):
            results = await asyncio.gather(*(each.reconcile() for each in operators), return_exceptions=True)
            unexpected = [each for each in results if not (each is None or isinstance(each, float | ApiError))]
            assert not unexpected, unexpected
        await self._note_runs()

    async def _note_runs(self) -> None:
        self.created += [name for name in await self.list_run_names() if name not in self.created]

    async def lose_status(self) -> None:
        """Act as a restore from a backup without the status."""
        await self._world.call("PATCH", self.get_status_path(), {"status": None})

    def list_wrong_promotions(self) -> list[PromoteTask]:
        """Return the tasks that wrote a run by the rules that is not better than the champion, or not compared."""
        return [task for task in self.alias.promotions if not task.overwrite and not self._is_better(task)]

    def _is_better(self, task: PromoteTask) -> bool:
        before = task.predecessor
        if before is None or before.digest == task.champion.digest:
            return True
        is_compared = self._opponents[task.champion.run] == [before.digest]
        return is_compared and self.qualities[task.champion.run] > self.qualities[before.run]


class ScheduleChaos:
    """Does one random thing after another to a LivingSchedule."""

    def __init__(self, bot: LivingSchedule, random: Random) -> None:
        self.bot = bot
        self._random = random
        self.log: list[str] = []

    async def act(self) -> None:
        """Do something."""
        common = [self._live, self._live, self._live, self._work, self._be_killed, self._be_killed, self._lead_twice]
        rare = [self._fail_run, self._fail_tasks, self._edit, self._pin, self._delete_run, self._write_alias]
        actions = common if self._random.random() < 0.7 else rare
        action = self._random.choice(actions)
        self.log.append(action.__name__)
        await action()

    async def _live(self) -> None:
        """Let a minute pass in which a run may end, a task may end, and an operator works."""
        self.bot.advance(self._random.choice([30, 60, 3600]))
        if self._random.random() < 0.7:
            await self._finish_runs()
        await self.bot.settle_all()

    async def _work(self) -> None:
        self.bot.advance(20)
        await self.bot.settle_killed(10**6, after_effect=False)
        await self.bot.end_tasks(addedBytes=10)

    async def _be_killed(self) -> None:
        await self.bot.settle_killed(self._random.randint(1, 30), self._random.random() < 0.5)

    async def _lead_twice(self) -> None:
        await self.bot.settle_two_leaders(self._random.randint(1, 6))

    async def _finish_runs(self) -> None:
        for name in await self.bot.list_unfinished_runs():
            await self.bot.finish_run(name, self._random.random() + len(self.bot.created) / 10)

    async def _fail_run(self) -> None:
        for name in (await self.bot.list_unfinished_runs())[:1]:
            await self.bot.end_run(name, "Failed")

    async def _fail_tasks(self) -> None:
        self.bot.alias.failures.append({"reason": "StorageUnreachable", "message": "no response"})
        await self.bot.end_tasks(reason="StorageUnreachable")
        self.bot.alias.failures.clear()

    async def _edit(self) -> None:
        edits: list[Body] = [
            {"promotion": {"mode": self._random.choice(["auto", "auto", "manual"])}},
            {"alias": self._random.choice([None, {"uri": f"s3://bucket/{self._random.randint(1, 3)}.json"}])},
            {"startFrom": self._random.choice(["base", "champion"])},
            {"template": {"spec": {"training": {"epochs": self._random.randint(1, 9)}}}},
            {"suspend": self._random.random() < 0.2},
            {"concurrencyPolicy": self._random.choice(["Allow", "Forbid", "Replace"])},
            {"runAt": self.bot.now.isoformat()},
        ]
        edit = self._random.choice(edits)
        self.log[-1] += f" {edit}"
        await self.bot.patch(edit)

    async def _pin(self) -> None:
        names = [*self.bot.created[-5:], "missing"]
        pin = None if self._random.random() < 0.6 else {"run": self._random.choice(names)}
        self.log[-1] += f" {pin}"
        await self.bot.patch({"champion": pin})

    async def _delete_run(self) -> None:
        if names := await self.bot.list_run_names():
            await self.bot.delete_run(self._random.choice(names))

    async def _write_alias(self) -> None:
        self.bot.alias.objects[f"s3://bucket/{self._random.randint(1, 3)}.json"] = {"run": "foreign", "digest": "x"}
