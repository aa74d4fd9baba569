"""Several routers that share the callers of one service: one split for all of them, counts that add up, no caller lost with one."""

import http.client
import json
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from service_rig import NAME, Box, alive, wait_for
from traffic_maker import BODIES

from deployctl.records import Intake, rows_of
from deployctl.records import read as read_records

ROUTERS = 3
HALF = {"steps": [{"setWeight": 50}], "minDwell": "60s", "stepTimeout": "120s"}


@pytest.fixture
def shared(tmp_path):
    box = Box(tmp_path, {"routers": ROUTERS})
    yield box.up()
    box.close()


class Kept:
    """Callers on connections that stay, so many that every router has some."""

    def __init__(self, url, count=60):
        where = urlsplit(url)
        self.callers = [http.client.HTTPConnection(where.hostname, where.port, 20) for _ in range(count)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for caller in self.callers:
            caller.close()

    def versions(self, **headers):
        """Who answered each of them."""
        said = []
        for caller in self.callers:
            caller.request("POST", f"/v2/models/{NAME}/infer", BODIES[0], headers)
            answer = caller.getresponse()
            body = json.loads(answer.read())
            assert answer.status == 200, body
            said.append(body["model_version"])
        return Counter(said)


def callers_of(pid, url):
    """How many connections of callers a router has."""
    port = f":{urlsplit(url).port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(port) and row[3] == "01"}
    return sum(str(fd.readlink()) in ours for fd in Path(f"/proc/{pid}/fd").iterdir())


def test_each_takes_some_of_the_callers_and_all_do_what_is_ordered(shared):
    pids = shared.status()["pids"]["routers"]
    assert len(set(pids)) == ROUTERS
    with Kept(shared.url) as kept:
        assert kept.versions() == {"1": 60}
        assert sum(callers_of(pid, shared.url) for pid in pids) == 60
        with (
            ExitStack() as more
        ):  # who gets how many is the kernel's affair; on a busy machine one may come round late

            def all_have_some():
                more.enter_context(Kept(shared.url)).versions()
                return min(callers_of(pid, shared.url) for pid in pids) > 0

            wait_for(all_have_some, what="a caller for each router")
        with shared.traffic(200) as traffic:  # something to learn from
            assert shared.run("canary", "ramp", shared.manifest(canary=HALF), "--detach").code == 0
            traffic.wait_for_answers(50, of="2")
        assert kept.versions()["2"] > 10
        stuck = [kept.versions(**{"x-request-id": f"key {number}"}) for number in range(5)]
        assert all(len(versions) == 1 for versions in stuck), (
            "a key has one version, whichever router it meets"
        )
        assert shared.run("rollback", NAME).code == 0
        assert kept.versions() == {"1": 60}, "none of them sends anybody there when the rollback is confirmed"


def test_what_they_count_adds_up(shared):
    with shared.traffic(300, keep_answers=True, fresh=True) as traffic:
        traffic.wait_for_answers(50)
        copied = {"steps": [{"mirror": {"percentage": 100}}, {"setWeight": 50}]}  # with copies ids are kept
        ran = shared.ramp(shared.manifest(canary=copied))
        assert ran.code == 0, ran
    assert not traffic.failures
    rollout = shared.status()["rollout"]
    entries = [e for e in read_records(shared.home.records / f"{rollout}.records") if isinstance(e, Intake)]
    assert len({entry.router for entry in entries}) == ROUTERS
    ids = Counter(
        request
        for entry in entries
        for request, mirrored in zip(entry.batch.id, rows_of(entry.batch).columns["mirrored"], strict=True)
        if not mirrored
    )
    sent = {answer.id: answer.sent for answer in traffic.answers}
    first, last = min(map(sent.get, ids)), max(map(sent.get, ids))
    assert set(ids.values()) == {1}
    between = {one for one, at in sent.items() if first + 0.1 < at < last - 0.1}
    assert len(between) > 50
    assert between <= set(ids) <= set(sent), "each request that came meanwhile, once"


def test_one_that_is_killed_comes_back_and_the_others_serve_on(shared):
    with shared.traffic(300) as kept, shared.traffic(100, fresh=True) as fresh:
        kept.wait_for_answers(100)
        gone, *others = shared.status()["pids"]["routers"]
        in_flight = kept.in_flight + fresh.in_flight
        shared.kill(gone)
        wait_for(lambda: len(shared.status()["pids"]["routers"]) == ROUTERS, what="another router")
        wait_for(lambda: gone not in shared.status()["pids"]["routers"], what="another router")
        kept.wait_for_answers(200)
        fresh.wait_for_answers(50)
    assert set(others) < set(shared.status()["pids"]["routers"])
    # A caller may have just written on a connection of it that was idle.
    assert len(kept.failures) + len(fresh.failures) <= in_flight + 5


def test_all_end_with_the_service(shared):
    pids = shared.status()["pids"]["routers"]
    with shared.traffic(200) as traffic:
        traffic.wait_for_answers(50)
    assert shared.run("down", NAME).code == 0
    assert not any(alive(pid) for pid in pids)
    assert not list(shared.home.path.rglob("heir*"))
    assert shared.up().status()["live"] == "1"
    assert len(shared.status()["pids"]["routers"]) == ROUTERS


def test_another_number_of_them_is_another_service(shared):
    shared.service = {"routers": 1}
    shared.run("up", shared.manifest(), "--detach").refused(7, "routers")
