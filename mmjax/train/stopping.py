"""Handles signals: a run saves its state and stops in order."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils

from mmjax.errors import Interrupted, Preempted, UserError

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class StopSignal:
    """Records SIGTERM (from a scheduler), SIGHUP (a closed terminal) and Ctrl-C until the run asks for them.

    No exception interrupts a step or the compiler. A second Ctrl-C ends the process immediately. Signals that the
    process ignored at its start (`nohup`) stay ignored.

    A signal to any process stops all: JAX's preemption service, which listens for SIGTERM, finds a step that no process
    has passed yet.

    Args:
      again: the command that resumes the run, for messages.
    """

    def __init__(self, again: str = "the same command"):
        self._again = again
        self.requested = False  # this process received a signal; `asked` decides for all processes
        self._several = jax.process_count() > 1
        self.failed: UserError | None = None  # an error that must not prevent the final save
        self._interrupts, self._asked, self._stop = 0, 0, False
        self._before, self._wakeup, self._sockets = {}, None, ()

    def __enter__(self) -> "StopSignal":
        return self

    def listen(self) -> None:
        """Starts recording signals, once. Before this call, the caller's handlers apply."""
        if self._sockets or threading.current_thread() is not threading.main_thread():
            return  # signals only reach the main thread; a notebook may use another
        own = SIGNALS[1:] if self._several else SIGNALS
        self._sockets = reader, writer = socket.socketpair()
        writer.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        for number in own:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, lambda *_: None)
        threading.Thread(target=self._read, args=(reader,), name="signals", daemon=True).start()

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._sockets:
            signal.set_wakeup_fd(self._wakeup)
            self._sockets[1].close()  # ends the thread

    def asked(self) -> bool:
        """Whether to stop now, with the same answer in all processes; all must call it equally often."""
        if self._several and not self._stop:
            self._asked += 1
            self._stop = multihost_utils.reached_preemption_sync_point(self._asked)
        return self._stop if self._several else self.requested

    @contextmanager
    def on_error(self) -> Iterator[None]:
        """An error inside requests a stop, so that the state can still be saved; even a full disk may have room for it."""
        try:
            yield
        except UserError as error:
            self.failed = self.failed or error
            self._request()

    def error(self, when: str) -> UserError:
        """The exception to raise after the state has been saved."""
        kind = Interrupted if self._interrupts else Preempted
        return self.failed or kind(f"stopped by a signal {when}, {self._again} resumes from there")

    def _read(self, reader: socket.socket) -> None:
        # Runs in a thread, because Python's handlers run only after the main thread returns from the compiler.
        with reader:
            while received := reader.recv(1):
                if received[0] == signal.SIGINT:
                    self._interrupts += 1
                    if self._interrupts > 1:
                        sys.stderr.write("mmjax: ended by a second Ctrl-C\n")
                        sys.stderr.flush()
                        os._exit(Interrupted.exit_code)
                    print("mmjax: stopping after this step; a second Ctrl-C ends immediately", file=sys.stderr)
                if received[0] in SIGNALS:
                    self._request()

    def _request(self) -> None:
        self.requested = True
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)
