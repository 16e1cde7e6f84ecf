"""Detects a lost process of a launch and ends this one, which would otherwise wait for ever in a collective.

JAX's own heartbeats are slower, end the process with SIGABRT, and do not name the missing process in one line (its
callback for a missed heartbeat cannot be written in Python: jaxlib 0.10 aborts with std::bad_cast). So the sockets of
the roll call stay open: every process is connected to process 0 and sends a heartbeat every BEAT seconds.
"""

import atexit
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from mmjax.errors import Preempted

BEAT = 2.0  # seconds between heartbeats
SILENCE = 60.0  # seconds without a heartbeat after which a process counts as lost
PATIENCE = 300.0  # seconds that this process has to end by itself after another one has ended in order
ORDERLY = (0, Preempted.exit_code, 130)  # exit codes of an ordinary end, which all processes reach by themselves


def _end(code: int, message: str) -> None:
    sys.stderr.write(f"mmjax: error: {message}\n")
    sys.stderr.flush()
    os._exit(code)  # the main thread waits for the lost process in native code, so an exception would not end it


class Watch:
    """A thread that watches the other processes.

    Args:
      number: of this process; count: of all processes.
      links: sockets by process number, as `call_roll` returns them.
      silence: seconds without a heartbeat after which a process counts as lost.
      end: called with an exit code and a message to end this process.
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
        failed = getattr(sys, "last_value", None)  # the uncaught exception, if any
        self.leave(1 if failed else 0, str(failed or ""))

    def leave(self, code: int, message: str = "") -> None:
        """Tells the others that this process ends; they end as well if the code is an error."""
        if self._left.is_set():
            return
        self._left.set()
        self._thread.join()
        self._tell(f"end {code} {' '.join(message.split())[:500]}")
        self._close()

    def _close(self, seconds: float = 1.0) -> None:
        """Closes the links after the others have read the last message.

        A socket that is closed with unread heartbeats resets the connection, and the message is lost.
        """
        until = time.monotonic() + seconds
        for link in self._links.values():
            with suppress(OSError):
                link.shutdown(socket.SHUT_WR)
        for link in self._links.values():
            with suppress(OSError), link:
                link.settimeout(max(until - time.monotonic(), 0.01))
                while link.recv(4096):
                    pass

    def settle(self, seconds: float = BEAT) -> None:
        """Waits before an error is reported: its cause may be the loss of another process, whose message comes first."""
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
        """Reads from a process; returns False when its link has ended."""
        try:
            data = self._links[number].recv(4096)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        if not data:
            self._lost(number, "has gone without a message (killed, out of memory, or its host is down)")
            return False
        self._heard[number] = time.monotonic()
        *said, self._unread[number] = (self._unread[number] + data).split(b"\n")
        for line in said:
            word, _, rest = line.decode(errors="replace").partition(" ")
            code, _, message = rest.partition(" ")
            if word == "end":
                if int(code):
                    grace = PATIENCE if int(code) in ORDERLY else 10  # this process may be about to end by itself
                    self._decide(grace, int(code), f"process {number} of {self._count} has ended: {message}")
                return False
            if word == "all":  # process 0 forwards the message to all
                self._decide(0, int(code), message)
        return True

    def _lost(self, number: int, what: str) -> None:
        again = "the same command resumes from the last checkpoint"
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
            except OSError:  # the process has gone; `_listen` detects it
                pass
