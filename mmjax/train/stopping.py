"""How a run is asked to stop: signals end it in good order, whatever it is doing."""

import os
import signal
import socket
import sys
import threading

import jax
from jax.experimental import multihost_utils

from mmjax.errors import Interrupted, Preempted, UserError

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class StopSignal:
    """SIGTERM (a scheduler that takes the machine back), SIGHUP (a terminal that closes) or Ctrl-C, noted until asked for.

    No exception is raised in the middle of something, least of all in the compiler. A second Ctrl-C ends the process
    at once. Signals that the process was started to ignore (`nohup`) stay ignored.

    Of several processes, one that is asked asks all: JAX's preemption service, which listens for SIGTERM, finds a
    point that none has passed yet.

    Args:
      again: which command goes on from the state that is saved.
    """

    def __init__(self, again: str = "the same command"):
        self._again = again
        self.requested = False  # in this process; `asked` says whether it is time to stop
        self._several = jax.process_count() > 1
        self.failed: UserError | None = None  # what went wrong that a saved state outlives
        self._interrupts, self._asked, self._stop = 0, 0, False
        self._before, self._wakeup, self._sockets = {}, None, ()

    def __enter__(self) -> "StopSignal":
        return self

    def listen(self) -> None:
        """From now on, signals are noted. Until then they end the process as the caller arranged it."""
        if threading.current_thread() is not threading.main_thread():  # a notebook's: nobody to ask
            return
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
        """Whether to stop now; the same answer in every process, which all ask equally often."""
        if self._several and not self._stop:
            self._asked += 1
            self._stop = multihost_utils.reached_preemption_sync_point(self._asked)
        return self._stop if self._several else self.requested

    def because(self, error: UserError) -> None:
        """Asks to stop, since something went wrong that a saved state outlives."""
        self.failed = self.failed or error
        self._request()

    def error(self, when: str) -> UserError:
        """What to raise at the end, when all is saved."""
        kind = Interrupted if self._interrupts else Preempted
        return self.failed or kind(f"stopped by a signal {when}, {self._again} goes on from there")

    def _read(self, reader: socket.socket) -> None:
        # In a thread, since Python's own handlers wait until the main thread is back from the compiler.
        with reader:
            while received := reader.recv(1):
                if received[0] == signal.SIGINT:
                    self._interrupts += 1
                    if self._interrupts > 1:
                        sys.stderr.write("mmjax: ended at once\n")
                        sys.stderr.flush()
                        os._exit(Interrupted.exit_code)
                    print("mmjax: stopping after this step; Ctrl-C again ends at once", file=sys.stderr)
                if received[0] in SIGNALS:
                    self._request()

    def _request(self) -> None:
        self.requested = True
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)
