"""Notices when another process of a launch has gone, and ends this one, which would wait for it for ever.

JAX's own heartbeats take longer, end the process with SIGABRT, and do not say in one line who is missing (its callback
for a missed heartbeat cannot be written in Python: jaxlib 0.10 aborts with std::bad_cast). So the links of the roll
call stay open: every process is linked with process 0, and says every BEAT seconds that it is there.
"""

import atexit
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable

from mmjax.errors import Preempted

BEAT = 2.0  # seconds
SILENCE = 60.0  # seconds without a word, after which a process counts as lost
PATIENCE = 300.0  # seconds that this process has to end by itself, when another has ended in good order
ORDERLY = (0, Preempted.exit_code, 130)  # exit codes with which all processes end, each when it is done


def _end(code: int, message: str) -> None:
    sys.stderr.write(f"mmjax: error: {message}\n")
    sys.stderr.flush()
    os._exit(code)  # the main thread waits for the lost process, in code that nothing interrupts


class Watch:
    """Watches in a thread.

    Args:
      number, count: of this process, and of all.
      links: to the others by number: of process 0 to all, of any other to process 0.
      silence: seconds without a word, after which a process counts as lost.
      end: what to do then, given an exit code and a message.
    """

    def __init__(
        self,
        number: int,
        count: int,
        links: dict[int, socket.socket],
        silence: float = SILENCE,
        end: Callable[[int, str], None] = _end,
    ):
        self._number, self._count, self._links, self._silence, self._end = number, count, dict(links), silence, end
        self._heard = dict.fromkeys(links, time.monotonic())
        self._unread = dict.fromkeys(links, b"")
        self._verdict: tuple[float, int, str] | None = None  # when to end, with which code and message
        self._left = threading.Event()
        for link in links.values():
            link.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()
        atexit.register(self._leave_at_exit)

    def _leave_at_exit(self) -> None:
        failed = getattr(sys, "last_value", None)  # what Python has just shown the traceback of
        self.leave(1 if failed else 0, str(failed or ""))

    def leave(self, code: int, message: str = "") -> None:
        """Says goodbye: the others need not look for this process. Of an error, they end as well."""
        if self._left.is_set():
            return
        self._left.set()
        self._thread.join()
        self._tell(f"end {code} {' '.join(message.split())[:500]}")
        for link in self._links.values():
            link.close()

    def settle(self, seconds: float = BEAT) -> None:
        """Waits a little, before an error is believed to be this process's own: another's may be its cause."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self._verdict and self._verdict[0] < time.monotonic() + PATIENCE / 2:
                return self._end(*self._verdict[1:])
            time.sleep(0.05)

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for number, link in self._links.items():
                selector.register(link, selectors.EVENT_READ, number)
            spoke = 0.0
            while not self._left.is_set():
                for key, _ in selector.select(BEAT / 10 if self._verdict else BEAT / 4):
                    if not self._listen(key.data):
                        selector.unregister(key.fileobj)
                        self._links.pop(key.data).close()
                now = time.monotonic()
                if now - spoke > BEAT:
                    self._tell("")
                    spoke = now
                for number in self._links:
                    if now - self._heard[number] > self._silence:
                        self._lost(number, f"has not answered for {self._silence:g} s")
                if self._verdict and now > self._verdict[0]:
                    return self._end(*self._verdict[1:])

    def _listen(self, number: int) -> bool:
        """Whether there is more to come from that process."""
        try:
            data = self._links[number].recv(4096)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        if not data:
            self._lost(number, "has gone without a word (killed, out of memory, or its host is down)")
            return False
        self._heard[number] = time.monotonic()
        *said, self._unread[number] = (self._unread[number] + data).split(b"\n")
        for line in said:
            word, _, rest = line.decode(errors="replace").partition(" ")
            code, _, message = rest.partition(" ")
            if word == "end":
                if int(code):
                    grace = PATIENCE if int(code) in ORDERLY else 10  # this one may be about to end as well
                    self._decide(grace, int(code), f"process {number} of {self._count} has ended: {message}")
                return False
            if word == "all":  # process 0 passes on what it knows
                self._decide(0, int(code), message)
        return True

    def _lost(self, number: int, what: str) -> None:
        again = "the same command goes on from the last checkpoint"
        self._decide(0, Preempted.exit_code, f"process {number} of {self._count} {what}; {again}")

    def _decide(self, grace: float, code: int, message: str) -> None:
        when = time.monotonic() + grace
        if self._verdict is None or when < self._verdict[0]:
            self._verdict = when, code, message
            if (self._number == 0 and code not in ORDERLY) or grace == 0:
                self._tell(f"all {code} {message}")

    def _tell(self, words: str) -> None:
        for link in list(self._links.values()):
            try:
                link.send(f"{words}\n".encode())
            except OSError:  # gone, or not listening: that is found out by reading
                pass
