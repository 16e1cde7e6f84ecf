"""Distributed start: detects the launcher and the rank of this process, and initialises `jax.distributed`.

| launcher | detected by |
|---|---|
| ours, or by hand | MMJAX_PROCESSES, MMJAX_PROCESS (0 is the lead) and MMJAX_COORDINATOR (HOST:PORT, on the lead's host) |
| Open MPI | the variables of `mpirun`; checked before Slurm, because `srun` may have started `mpirun` |
| Slurm | a job step of several tasks, started by `srun`; the shell of an allocation is a step of one task |
| Cloud TPU | JAX's own detection, if JAX's platform is TPU: on GKE, also over several slices, and on TPU VMs |

Otherwise there is one process. MMJAX_PROCESSES=1 overrides every launcher. MMJAX_COORDINATOR alone replaces the address
that Open MPI or Slurm gives. A launch waits for its processes for MMJAX_INIT_TIMEOUT seconds (1800).
"""

import dataclasses
import os
import re
import sys
from collections.abc import Mapping
from glob import glob

from mmjax.errors import UserError
from mmjax.parallel.roll_call import call_roll
from mmjax.parallel.watch import Watch

FIRST_PORT, PORTS = 61440, 4096  # the coordinator's port is chosen by job number, from the same range as in JAX


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """The rank of this process among all, and among those on this host; `address` is HOST:PORT of process 0."""

    launcher: str
    address: str
    count: int
    number: int
    local_count: int = 1
    local_number: int = 0


def join() -> Watch | None:
    """Joins the processes of this launch, if there are several; call it before JAX is used.

    Returns:
      The watch on the other processes; None for a single process, or if only JAX watches them (Cloud TPU).

    Raises:
      UserError: processes are missing after the timeout (the message names them), or the launcher's variables are invalid.
    """
    import jax

    place, timeout = find(os.environ), _timeout(os.environ)
    if place is not None:
        if place.number == 0:
            told = f"waiting at {place.address} for {place.count} processes (started by {place.launcher})"
            print(f"mmjax: {told}, for at most {timeout / 60:.3g} min", file=sys.stderr)
        links = call_roll(place.address, place.count, place.number, timeout)
        devices = devices_of(place, os.environ)
        watch = Watch(place.number, place.count, links)  # before JAX, which would wait for a lost process
        try:
            jax.distributed.initialize(
                place.address,
                place.count,
                place.number,
                local_device_ids=devices,
                cluster_detection_method="deactivate",  # the launcher is already known
                initialization_timeout=max(60, int(timeout)),
            )
        except BaseException as error:
            watch.leave(error.code if isinstance(error, SystemExit) else 1, str(error))  # SystemExit: a signal
            raise
        return watch
    if (jax.config.jax_platforms or "").startswith("tpu") and (kind := cloud_tpu(os.environ)):
        try:
            jax.distributed.initialize(cluster_detection_method=kind, initialization_timeout=int(timeout))
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(
                f"cannot join the hosts of this Cloud TPU: {error}; MMJAX_PROCESSES=1 trains on this host alone"
            ) from error
    return None


def find(environment: Mapping[str, str]) -> Place | None:
    """The place of this process among several; None for a single process, or on a Cloud TPU, where JAX finds the others."""
    if environment.get("MMJAX_PROCESSES") == "1":
        return None
    address = environment.get("MMJAX_COORDINATOR")
    if address is not None and not re.fullmatch(r"\S+:\d+", address):
        raise UserError(f"MMJAX_COORDINATOR should be HOST:PORT, not '{address}'")
    place = _given(environment, address) or _open_mpi(environment, address) or _slurm(environment, address)
    if place is None and address is not None:
        raise UserError("MMJAX_COORDINATOR is set; also set MMJAX_PROCESSES and MMJAX_PROCESS")
    if place is not None and not 0 <= place.number < place.count:
        raise UserError(f"{place.launcher} says that this is process {place.number}, counted from 0, of {place.count}")
    return place


def _given(environment: Mapping[str, str], address: str | None) -> Place | None:
    if "MMJAX_PROCESSES" not in environment and "MMJAX_PROCESS" not in environment:
        return None
    count, number = _number(environment, "MMJAX_PROCESSES"), _number(environment, "MMJAX_PROCESS")
    if address is None:
        raise UserError("MMJAX_PROCESSES is set; also set MMJAX_COORDINATOR=HOST:PORT")
    here = address.startswith(("localhost:", "127."))  # then all processes are on this host
    local = {"local_count": count, "local_number": number} if here else {}
    return Place(launcher="MMJAX_COORDINATOR", address=address, count=count, number=number, **local)


def _open_mpi(environment: Mapping[str, str], address: str | None) -> Place | None:
    if environment.get("OMPI_COMM_WORLD_SIZE", "1") == "1":
        return None
    if address is None:
        # Open MPI 4 sets "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911", or "1531576320.0;tcp6://[fe80::1]:43370".
        uri = environment.get("OMPI_MCA_orte_hnp_uri", "")
        said = re.match(r"(\d+)\.\d+;(?:tcp://([^,:]+)|tcp6://\[([^,\]]+))", uri)
        if said is None:
            raise UserError(
                "this Open MPI does not say where process 0 runs; add to mpirun: -x MMJAX_COORDINATOR=HOST:PORT, "
                "where HOST is its first host"
            )
        host = said[2] or f"[{said[3]}]"
        address = f"{host}:{FIRST_PORT + int(said[1]) // PORTS % PORTS}"  # said[1] is the job number x 4096
    return Place(
        launcher="Open MPI",
        address=address,
        count=_number(environment, "OMPI_COMM_WORLD_SIZE"),
        number=_number(environment, "OMPI_COMM_WORLD_RANK"),
        local_count=_number(environment, "OMPI_COMM_WORLD_LOCAL_SIZE"),
        local_number=_number(environment, "OMPI_COMM_WORLD_LOCAL_RANK"),
    )


def _slurm(environment: Mapping[str, str], address: str | None) -> Place | None:
    # Not SLURM_NTASKS, which counts the tasks of the allocation and is also set in its shell.
    if environment.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        return None
    # "rack[0-1]node[03-17],other": the first host is rack0node03. Tasks are numbered from there on.
    first = re.sub(r"\[(\w+)[^\]]*\]", r"\1", environment["SLURM_STEP_NODELIST"]).split(",")[0]
    # "8(x2),4": eight on each of two hosts, four on the next.
    runs = re.findall(r"(\d+)(?:\(x(\d+)\))?", environment["SLURM_STEP_TASKS_PER_NODE"])
    on_hosts = [int(tasks) for tasks, times in runs for _ in range(int(times or 1))]
    return Place(
        launcher="Slurm",
        address=address or f"{first}:{FIRST_PORT + _number(environment, 'SLURM_JOB_ID') % PORTS}",
        count=_number(environment, "SLURM_STEP_NUM_TASKS"),
        number=_number(environment, "SLURM_PROCID"),
        local_count=on_hosts[_number(environment, "SLURM_NODEID")],
        local_number=_number(environment, "SLURM_LOCALID"),
    )


def cloud_tpu(environment: Mapping[str, str]) -> str | None:
    """The name of JAX's cluster detection for this Cloud TPU; None for a single host.

    GKE, and notebooks with one host, list the hosts of a slice in the environment. A TPU VM asks the metadata server,
    unless TPU_SKIP_MDS_QUERY is set.
    """
    if environment.get("MMJAX_PROCESSES") == "1":
        return None
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if hosts:
        several = "," in hosts or int(environment.get("MEGASCALE_NUM_SLICES") or 1) > 1
        return "gketpu" if several else None
    return None if "TPU_SKIP_MDS_QUERY" in environment else "gcetpu"


def devices_of(place: Place, environment: Mapping[str, str]) -> list[int] | None:
    """The indices of this process's GPUs among its visible ones; None: all. JAX ignores them without a GPU.

    Processes on one host divide its GPUs evenly, unless Slurm has assigned GPUs to each task.
    """
    if place.local_count == 1 or "SLURM_GPUS_PER_TASK" in environment or "JAX_LOCAL_DEVICE_IDS" in environment:
        return None
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    gpus = len(glob("/dev/nvidia[0-9]*")) if visible is None else len(visible.split(","))
    if gpus <= 1:  # one visible GPU is this process's own; without NVIDIA GPUs, one device per process
        return None if gpus else [place.local_number]
    if gpus % place.local_count:
        raise UserError(f"{gpus} GPUs cannot be divided evenly among the {place.local_count} processes of this host")
    each = gpus // place.local_count
    return list(range(each * place.local_number, each * (place.local_number + 1)))


def _timeout(environment: Mapping[str, str]) -> float:
    text = environment.get("MMJAX_INIT_TIMEOUT", "1800")
    if not re.fullmatch(r"\d+(\.\d+)?", text) or float(text) == 0:
        raise UserError(f"MMJAX_INIT_TIMEOUT should be a number of seconds, not '{text}'")
    return float(text)


def _number(environment: Mapping[str, str], name: str) -> int:
    if not re.fullmatch(r"\d+", environment.get(name, "")):
        raise UserError(f"{name} should be a number, not '{environment.get(name, '')}'")
    return int(environment[name])
