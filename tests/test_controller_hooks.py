"""Who is asked and who is told, beside a real controller on a fake clock; the calls are answered by the test."""

import asyncio
import json
from dataclasses import replace

import pytest
from fakes import BY, Behaviour, FakeService

from deployctl.controller.hooks import Hooks
from deployctl.core.plan import Hook, HookType
from deployctl.webhooks import Answer

YES, NO = Answer(agreed=True, refused=False, words="yes"), Answer(agreed=False, refused=False, words="no")


class Calls:
    """Answers each call when the test says so; `made` are the events that came, by webhook."""

    def __init__(self, answer=YES, wait=0.0):
        self.answer, self.wait, self.made = answer, wait, []

    async def call(self, hook, event):
        self.made.append((hook["name"], json.loads(event)))
        await asyncio.sleep(self.wait)
        return self.answer


def target(name, kind):
    empty = {"url": "http://127.0.0.1:1", "urlFile": None, "tokenFile": None, "metadata": {}}
    return {"name": name, "type": kind.value, "timeout": 1.0, "retries": 0, "interval": 0.01, **empty}


@pytest.fixture
def service(tmp_path):
    with FakeService(tmp_path, {label: Behaviour(errors=0.01) for label in ("1", "2")}) as service:
        service.up()
        service.watch(1)
        service.ramp(canary={"minDwell": "1s", "metrics": [{"name": "error-rate", "margin": "20%"}]})
        yield service


def run(service, calls, seconds, *steps):
    """Ask and tell for so long; each step is done when the ones before have had their time."""

    async def beside():
        hooks = Hooks(service.controller, calls)
        task = asyncio.create_task(hooks.run())
        for step in steps:
            await asyncio.sleep(seconds)
            await step()
        await asyncio.sleep(seconds)
        task.cancel()
        return hooks

    return asyncio.run(beside())


async def a_moment():
    """Nothing happens."""


def kinds(calls, name):
    return [event["type"].split(".")[-2] for one, event in calls.made if one == name]


def test_after_a_recovery_that_made_the_journal_shorter_news_is_told_again(service):
    service.home.webhooks.write_text(json.dumps({"news": 10_000}))
    service.controller.webhooks = [target("news", HookType.EVENT)]
    hooks = Hooks(service.controller, Calls())
    assert hooks._told_until == {"news": service.controller.last_seq}


def test_a_webhook_that_changes_its_type_is_told_what_the_new_one_says(service):
    async def becomes_post_rollout():
        service.controller.webhooks = [target("news", HookType.POST_ROLLOUT)]
        await service.commands.rollback(BY, "by hand", None)

    service.controller.webhooks = [target("news", HookType.EVENT)]
    calls = Calls()
    run(service, calls, 0.2, becomes_post_rollout)
    assert kinds(calls, "news")[-1] == "rolled_back"
    assert "started" in kinds(calls, "news")
    before = len(calls.made)
    run(service, calls, 0.2)
    assert len(calls.made) == before, "what it was told is kept"


def test_what_nobody_is_told_any_more_is_said(service, capfd):
    async def dropped():
        service.controller.webhooks = []
        await service.commands.rollback(BY, "by hand", None)

    service.controller.webhooks = [target("news", HookType.EVENT)]
    run(service, Calls(NO), 0.1, dropped)
    assert "webhook news was not told of" in capfd.readouterr().err


def test_a_yes_that_takes_longer_than_a_step_still_rolls_back(service):
    hook = Hook("guard", HookType.ROLLBACK)
    controller = service.controller
    plan = replace(controller.last.plan, hooks=(hook,))
    rollouts = (*controller.service.rollouts[:-1], replace(controller.last, plan=plan))
    controller.service = replace(controller.service, rollouts=rollouts)
    controller.course.rollout = controller.last
    controller.webhooks = [target("guard", HookType.ROLLBACK)]

    async def climb():
        assert controller.last.step == before, "it was asked at this step"
        while controller.last.step == before:
            service.watch(0.5)
        assert not controller.last.ended

    before = controller.last.step
    calls = Calls(YES, wait=0.4)
    run(service, calls, 0.2, climb, a_moment, a_moment)
    assert controller.last.phase.value == "rolled_back"
    assert controller.last.ended_by.by == "webhook:guard"
    assert len(calls.made) == 1
