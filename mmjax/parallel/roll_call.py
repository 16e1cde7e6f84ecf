"""The roll call of a launch: each process says its number to process 0, where JAX's own service listens next.

JAX waits for all processes too, but when its time is up it aborts the process and does not say who is missing.
"""

import re
import socket
import time

from mmjax.errors import UserError


def call_roll(address: str, count: int, number: int, timeout: float) -> dict[int, socket.socket]:
    """Waits until processes 0 to `count` - 1 are there.

    Args:
      address: HOST:PORT of process 0.
      number: of this process.
      timeout: in seconds.

    Returns:
      The open links by number: of process 0 to all others, of any other to process 0.

    Raises:
      UserError: they are not all there in time. It names those that are missing, or why process 0 is not reached.
    """
    return _receive(address, count, timeout) if number == 0 else {0: _report(address, count, number, timeout)}


def _receive(address: str, count: int, timeout: float) -> dict[int, socket.socket]:
    deadline = time.monotonic() + timeout
    links: dict[int, socket.socket] = {}
    with _server(address, count) as server:
        while len(links) < count - 1 and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            try:
                link, _ = server.accept()
            except TimeoutError:
                break
            said = _number_said(link, count)
            if said is not None:  # one that was started again takes its place again
                links[said] = link
    missing = [str(number) for number in range(1, count) if number not in links]
    told = f"missing {', '.join(missing[:20])}{' ...' if len(missing) > 20 else ''}" if missing else "go"
    for link in links.values():
        try:
            link.sendall(f"{told}\n".encode())
        except OSError:  # it went away; whoever reads from the link finds out
            pass
    if missing:
        for link in links.values():
            link.close()
        raise _incomplete(address, count, timeout, told)
    return links


def _server(address: str, count: int) -> socket.socket:
    port, both = int(address.rsplit(":", 1)[1]), socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both, backlog=count
        )
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen at port {port}: {error.strerror or error}; choose another for all processes: "
            "MMJAX_COORDINATOR=HOST:PORT"
        ) from None


def _number_said(link: socket.socket, count: int) -> int | None:
    """The number of the process at the other end, or None if it is none of this launch (a port scanner, say)."""
    link.settimeout(5)
    try:
        said = re.fullmatch(rb"mmjax (\d+) of (\d+)\n", link.makefile("rb").readline(100))
    except OSError:
        said = None
    if said is None or int(said[2]) != count or not 0 < int(said[1]) < count:
        link.close()
        return None
    return int(said[1])


def _report(address: str, count: int, number: int, timeout: float) -> socket.socket:
    host, port = address.rsplit(":", 1)
    deadline, trouble = time.monotonic() + timeout, ""
    while (left := deadline - time.monotonic()) > 0:
        said = ""
        try:
            link = socket.create_connection((host.strip("[]"), int(port)), timeout=min(left, 10))
            link.sendall(f"mmjax {number} of {count}\n".encode())
            trouble = "something is there, but it does not answer as process 0 of this launch"
            link.settimeout(left + 10)  # its own time may have begun a little later
            said = link.makefile("rb", buffering=0).readline(1000).decode(errors="replace").strip()
            if said == "go":
                return link
            link.close()
        except TimeoutError:
            trouble = trouble or "it does not answer"
        except OSError as error:  # not there yet, or its name is not known yet
            trouble = error.strerror or str(error)
        if said.startswith("missing"):
            raise _incomplete(address, count, timeout, said)
        time.sleep(min(1, max(0, deadline - time.monotonic())))
    raise UserError(
        f"process {number} of {count} waited {timeout:g} s for process 0 at {address}: {trouble}; is it running, and "
        "is the address right? (MMJAX_INIT_TIMEOUT: the seconds to wait)"
    )


def _incomplete(address: str, count: int, timeout: float, told: str) -> UserError:
    return UserError(
        f"not all of the {count} processes came to {address} in {timeout:g} s: {told}; look at what these say "
        "(MMJAX_INIT_TIMEOUT: the seconds to wait)"
    )
