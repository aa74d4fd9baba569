"""Twins of the controller with one guarantee taken out. The sweep has to find each of them; they exist in forked controllers alone."""

import asyncio

from deployctl import journal
from deployctl.controller import loop


def tells_the_router_first():
    """Acts before it writes down."""
    record, with_event = loop.Controller.record, loop.with_event

    def act_first(self, rollout_id, event, *args, **more):
        before = self.service
        self.service = with_event(self.service, rollout_id, loop.replace(event, seq=self._seq + 1))
        self._tried(self.act, self.monotonic())
        self.service = before
        return record(self, rollout_id, event, *args, **more)

    loop.Controller.record = act_first


def promises_before_it_writes():
    """An append returns at once and is written a moment later."""
    write_line = journal._write_line

    def later(fd, line):
        asyncio.get_running_loop().call_later(0.02, write_line, fd, line)

    journal._write_line = later
    journal.Journal._check_length = lambda _self: None


def keeps_what_it_refused():
    """An append that failed is not taken back."""
    journal.Journal._take_back = lambda _self, _cause: None


def forgets_what_it_has_seen():
    """A controller that takes over counts batches again that were written down and not acknowledged."""
    resume = loop.Controller._resume

    def forget(self, rollout):
        resume(self, rollout)
        self._seen_batches = {}

    loop.Controller._resume = forget


TWINS = {
    "tells the router first": tells_the_router_first,
    "promises before it writes": promises_before_it_writes,
    "keeps what it refused": keeps_what_it_refused,
    "forgets what it has seen": forgets_what_it_has_seen,
}
