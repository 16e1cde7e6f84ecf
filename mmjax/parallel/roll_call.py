"""The roll call of a launch: each process reports its number to process 0, before `jax.distributed` starts there.

JAX also waits for all processes, but after its timeout it aborts without naming the missing ones.
"""

import re
import socket
import time

from mmjax.errors import UserError


def call_roll(address: str, count: int, number: int, timeout: float) -> dict[int, socket.socket]:
    """Waits until all `count` processes have connected.

    Args:
      address: HOST:PORT of process 0.
      number: of this process.
      timeout: in seconds.

    Returns:
      The open sockets by process number: process 0 has one to each other process, any other has one to process 0.

    Raises:
      UserError: processes are missing after the timeout, which the message names, or process 0 cannot be reached.
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
            if said is not None:  # a restarted process replaces its earlier link
                links[said] = link
    missing = [str(number) for number in range(1, count) if number not in links]
    told = f"missing {', '.join(missing[:20])}{' ...' if len(missing) > 20 else ''}" if missing else "go"
    for link in links.values():
        try:
            link.sendall(f"{told}\n".encode())
        except OSError:  # the process has gone; the reader of the link detects it
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
            f"process 0 cannot listen on port {port}: {error.strerror or error}; set another address in all processes: "
            "MMJAX_COORDINATOR=HOST:PORT"
        ) from None


def _number_said(link: socket.socket, count: int) -> int | None:
    """The number of the connected process; None if it does not belong to this launch (such as a port scanner)."""
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
            trouble = "the address is in use, but not by process 0 of this launch"
            link.settimeout(left + 10)  # process 0 may have started its timeout later
            said = link.makefile("rb", buffering=0).readline(1000).decode(errors="replace").strip()
            if said == "go":
                return link
            link.close()
        except TimeoutError:
            trouble = trouble or "it does not answer"
        except OSError as error:  # process 0 does not listen yet, or its name does not resolve yet
            trouble = error.strerror or str(error)
        if said.startswith("missing"):
            raise _incomplete(address, count, timeout, said)
        time.sleep(min(1, max(0, deadline - time.monotonic())))
    raise UserError(
        f"process {number} of {count} waited {timeout:g} s for process 0 at {address}: {trouble}; check that process 0 "
        "runs and that the address is right (MMJAX_INIT_TIMEOUT: the seconds to wait)"
    )


def _incomplete(address: str, count: int, timeout: float, told: str) -> UserError:
    return UserError(
        f"not all of the {count} processes came to {address} in {timeout:g} s: {told}; look at their output "
        "(MMJAX_INIT_TIMEOUT: the seconds to wait)"
    )
