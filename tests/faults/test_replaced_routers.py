"""A router that ends while a successor serves is noticed by nobody, whatever its callers are just doing."""

import random
import threading
import time

from rig import PATIENCE


class Idlers:
    """Callers that keep one connection each for ever and send now and then; none of them ever connects again."""

    def __init__(self, street, count, pause):
        self.answered, self.errors, self.said_close = 0, [], 0
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._ask, args=(street, pause, random.Random(number)), daemon=True)
            for number in range(count)
        ]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def _ask(self, street, pause, chance):
        with street.connect() as client:
            while not self._over.wait(chance.uniform(0, pause)):
                try:
                    answer = client.ask("POST", "/v2/models/m/infer", b"{}")
                except (OSError, EOFError) as error:
                    self.errors.append(error)
                    return
                with self._lock:
                    self.answered += 1
                    self.said_close += answer.headers.get("connection") == "close"
                if answer.status != 200:
                    self.errors.append(answer)


def test_callers_that_send_at_random_times_never_notice_that_routers_are_replaced(street, long, tally):
    replaced = 100 if long else 4
    with Idlers(street, 12, 0.02) as idlers:
        for _ in range(replaced):
            before = idlers.answered
            old = street.succeed()
            assert old.wait(PATIENCE) == 0
            while idlers.answered < before + 100 and not idlers.errors:
                time.sleep(0.01)
    tally.count(
        "router replaced under kept-alive callers",
        replaced,
        len(idlers.errors),
        f"{idlers.answered} requests",
    )
    assert not idlers.errors
    assert not idlers.said_close, "every connection lived through it"


def test_the_same_callers_notice_a_router_that_passes_nothing_on(street):
    """The twin without the guarantee is caught by what the test above asserts."""
    street.heir = None
    with Idlers(street, 12, 0.02) as idlers:
        assert street.succeed().wait(PATIENCE) == 0
    assert idlers.said_close or idlers.errors
