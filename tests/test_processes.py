"""Which launcher started a process, which GPUs are its own, and who is missing when a launch does not come together."""

import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import pytest

from mmjax.check import free_port
from mmjax.cli import main
from mmjax.errors import Preempted, UserError
from mmjax.parallel import processes
from mmjax.parallel.processes import Place, cloud_tpu, devices_of, find
from mmjax.parallel.roll_call import call_roll
from mmjax.parallel.runtime import simulated
from mmjax.parallel.watch import Watch

# What Slurm 22.05 tells the sixth task of `srun --ntasks-per-node 4` on two nodes, in an allocation of four.
TASK = {
    "SLURM_JOB_ID": "61441",
    "SLURM_NTASKS": "16",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
}
RANK = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}


def test_a_launch_script_says_it_all():
    named = {"MMJAX_COORDINATOR": "lead.net:8476", "MMJAX_PROCESSES": "4", "MMJAX_PROCESS": "3"}
    assert find(named) == Place(launcher="MMJAX_COORDINATOR", address="lead.net:8476", count=4, number=3)
    here = find({**named, "MMJAX_COORDINATOR": "localhost:8476"})
    assert (here.local_count, here.local_number) == (4, 3)
    assert find({**named, "MMJAX_PROCESSES": "1"}) is None


def test_a_task_of_slurm_knows_its_place():
    place = find(TASK)
    assert place == Place(launcher="Slurm", address="gpu07:61441", count=8, number=5, local_count=4, local_number=1)
    assert find({**TASK, "MMJAX_COORDINATOR": "10.0.0.7:9000"}).address == "10.0.0.7:9000"


@pytest.mark.parametrize(
    "nodes, first",
    [
        ("node", "node"),
        ("a,b", "a"),
        ("node[001-015],other", "node001"),
        ("node[7,9-12]", "node7"),
        ("rack[0-1]node[03-17]-ib,other", "rack0node03-ib"),
        ("gpu-1.cluster.net,gpu-2", "gpu-1.cluster.net"),
    ],
)
def test_the_first_of_slurms_nodes_is_where_process_0_runs(nodes, first):
    assert find({**TASK, "SLURM_STEP_NODELIST": nodes}).address == f"{first}:61441"


def test_slurms_tasks_are_counted_per_node():
    uneven = {**TASK, "SLURM_STEP_TASKS_PER_NODE": "8(x2),3", "SLURM_STEP_NUM_TASKS": "19", "SLURM_NODEID": "2"}
    assert find(uneven).local_count == 3


def test_alone_in_an_allocation_of_slurm_is_alone():
    """An interactive shell (a step of one task), a batch script (no step): SLURM_NTASKS is the room, not the tasks."""
    assert find({**TASK, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) is None
    assert find({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}) is None
    assert find({**TASK, "MMJAX_PROCESSES": "1"}) is None


def test_a_rank_of_open_mpi_knows_its_place_even_when_slurm_started_mpirun():
    place = Place(launcher="Open MPI", address="10.96.0.1:62624", count=4, number=3, local_count=2, local_number=1)
    assert find(RANK) == place == find({**TASK, **RANK})
    six = {**RANK, "OMPI_MCA_orte_hnp_uri": "1314521088.0;tcp6://[fe80::b9b:ac5d,2620:10d::2]:43370"}
    assert find(six).address == "[fe80::b9b:ac5d]:62880"
    with pytest.raises(UserError, match="-x MMJAX_COORDINATOR=HOST:PORT"):  # Open MPI 5
        find({name: value for name, value in RANK.items() if "uri" not in name})


@pytest.mark.parametrize(
    "environment, message",
    [
        ({"MMJAX_COORDINATOR": "lead:1"}, "also set MMJAX_PROCESSES and MMJAX_PROCESS"),
        ({"MMJAX_COORDINATOR": ":8476", "MMJAX_PROCESSES": "2", "MMJAX_PROCESS": "0"}, "should be HOST:PORT"),
        ({"MMJAX_PROCESSES": "2", "MMJAX_PROCESS": "0"}, "also set MMJAX_COORDINATOR=HOST:PORT"),
        ({"MMJAX_COORDINATOR": "a:1", "MMJAX_PROCESSES": "2"}, "MMJAX_PROCESS should be a number, not ''"),
        ({"MMJAX_COORDINATOR": "a:1", "MMJAX_PROCESSES": "2", "MMJAX_PROCESS": "2"}, "process 2, counted from 0, of 2"),
    ],
)
def test_what_makes_no_sense_is_refused(environment, message):
    with pytest.raises(UserError, match=message):
        find(environment)


def test_a_cloud_tpu_of_several_hosts_is_left_to_jax_and_one_host_is_alone():
    assert cloud_tpu({"TPU_WORKER_HOSTNAMES": "slice-0,slice-1"}) == "gketpu"
    assert cloud_tpu({"TPU_WORKER_HOSTNAMES": "slice-0", "MEGASCALE_NUM_SLICES": "2"}) == "gketpu"
    assert cloud_tpu({"TPU_WORKER_HOSTNAMES": "localhost"}) is None
    assert cloud_tpu({"TPU_PROCESS_ADDRESSES": "local", "TPU_SKIP_MDS_QUERY": "1"}) is None  # a notebook's
    assert cloud_tpu({}) == "gcetpu"
    assert cloud_tpu({"MMJAX_PROCESSES": "1", "TPU_WORKER_HOSTNAMES": "slice-0,slice-1"}) is None


def test_jax_knows_the_detections_by_these_names():
    from jax._src.clusters import ClusterEnv

    assert {"gketpu", "gcetpu"} <= {kind.name for kind in ClusterEnv._cluster_types}


@pytest.mark.parametrize("platforms, joins", [("tpu,cpu", True), ("cpu", False), (None, False)])
def test_only_a_tpu_asks_for_the_other_hosts_of_a_slice(monkeypatch, platforms, joins):

    called = []
    before = jax.config.jax_platforms
    monkeypatch.setattr(processes.os, "environ", {"TPU_WORKER_HOSTNAMES": "a,b", "MMJAX_INIT_TIMEOUT": "60"})
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **options: called.append(options))
    jax.config.update("jax_platforms", platforms)
    try:
        processes.join()
    finally:
        jax.config.update("jax_platforms", before)
    assert called == ([{"cluster_detection_method": "gketpu", "initialization_timeout": 60}] if joins else [])


@pytest.mark.parametrize(
    "tasks, environment, expected",
    [
        ((8, 5), {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, [5]),  # a task per GPU
        ((2, 1), {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, [2, 3]),
        ((1, 0), {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, None),  # a task per node: all of its GPUs, not the first
        ((8, 5), {"CUDA_VISIBLE_DEVICES": "5"}, None),  # each task sees its own
        ((2, 1), {"CUDA_VISIBLE_DEVICES": "2,3", "SLURM_GPUS_PER_TASK": "2"}, None),
    ],
)
def test_processes_that_share_a_host_share_its_gpus(tasks, environment, expected):
    place = Place(launcher="Slurm", address="a:1", count=8, number=0, local_count=tasks[0], local_number=tasks[1])
    assert devices_of(place, environment) == expected


def test_gpus_that_cannot_be_shared_evenly_are_refused():
    place = Place(launcher="Slurm", address="a:1", count=3, number=0, local_count=3)
    with pytest.raises(UserError, match="8 GPUs cannot be divided evenly among the 3 processes"):
        devices_of(place, {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"})


def processes_run(script, count, devices, *arguments):
    """The exit codes of so many processes, of so many devices each, that run a script together."""
    shared = (
        os.environ
        | simulated(devices)
        | {
            "MMJAX_COORDINATOR": f"localhost:{free_port()}",
            "MMJAX_PROCESSES": str(count),
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
    )
    joined = f"from mmjax.parallel import processes\nwatch = processes.join()\n{script}\nif watch: watch.leave(0)\n"
    both = [
        subprocess.Popen([sys.executable, "-c", joined, *arguments], env={**shared, "MMJAX_PROCESS": str(number)})
        for number in range(count)
    ]
    return [process.wait(timeout=300) for process in both]


def roll_call(numbers, count, timeout, port=None):
    """What each process of a launch says after the roll call: None, or its error."""
    links = {}
    address = f"localhost:{port or free_port()}"

    def one(number):
        try:
            links[number] = call_roll(address, count, number, timeout)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(len(numbers)) as pool:
        said = list(pool.map(one, numbers))
    for link in (link for of_one in links.values() for link in of_one.values()):
        link.close()
    return said


def watched(count, silence=60.0):
    """Watches of processes that came together, and the list of (number, exit code, message) of those that they end."""
    address, ended = f"localhost:{free_port()}", []
    with ThreadPoolExecutor(count) as pool:
        links = list(pool.map(lambda number: call_roll(address, count, number, 20), range(count)))
    watches = [
        Watch(number, count, links[number], silence, lambda code, message, n=number: ended.append((n, code, message)))
        for number in range(count)
    ]
    return watches, links, ended


def wait_for(condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    assert condition()


@pytest.mark.parametrize("lost", [0, 2])
def test_a_process_that_goes_without_a_word_is_named_to_all_others_at_once(lost):
    watches, links, ended = watched(3)
    watches[lost]._left.set()  # a killed process says nothing: it would call the others lost between two shutdowns
    watches[lost]._thread.join()
    for link in links[lost].values():
        link.shutdown(socket.SHUT_RDWR)  # as the kernel does for a process that is killed
    wait_for(lambda: {number for number, *_ in ended} >= {0, 1, 2} - {lost})
    assert all(
        code == 75 and f"process {lost} of 3 has gone" in said for number, code, said in ended if number != lost
    ), ended


def test_a_process_that_stands_still_is_named():
    watches, _, ended = watched(2, silence=1.0)
    watches[1]._left.set()  # its thread ends, its link stays open: SIGSTOP
    wait_for(lambda: ended)
    assert ended[0][:2] == (0, 75) and "process 1 of 2 has not answered for 1 s" in ended[0][2]


def test_a_process_that_is_lost_while_jax_starts_is_named(monkeypatch):
    """JAX would wait for it until its timeout, half an hour, and then abort."""
    address, ended = f"localhost:{free_port()}", []
    place = {"MMJAX_COORDINATOR": address, "MMJAX_PROCESSES": "2", "MMJAX_PROCESS": "0"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, "Watch", partial(Watch, end=lambda *said: ended.append(said)))
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: wait_for(lambda: ended))
    with ThreadPoolExecutor(1) as pool:
        lost = pool.submit(lambda: call_roll(address, 2, 1, 20)[0].close())
        processes.join()
        lost.result()
    assert ended[0][0] == 75 and "process 1 of 2 has gone without a message" in ended[0][1]


def test_an_error_of_one_process_ends_all_with_its_code_and_an_orderly_end_none():
    watches, _, ended = watched(3)
    watches[1].leave(75, "stopped by a signal")
    watches[0].settle(1)
    assert not ended
    watches[2].leave(2, "there is no such file")
    with ThreadPoolExecutor(1) as pool:
        pool.submit(watches[0].settle, 5)  # as a process does whose step failed
        wait_for(lambda: ended)
    assert ended[0] == (0, 2, "process 2 of 3 has ended: there is no such file")
    watches[0].leave(0)


def test_a_roll_call_waits_for_all_and_then_lets_all_go():
    assert roll_call([2, 3, 0, 1], 4, 20) == [None] * 4


def test_a_roll_call_names_who_is_missing_to_everybody():
    said = roll_call([0, 1, 4], 5, 1)
    assert all("not all of the 5 processes came to localhost:" in one and "missing 2, 3;" in one for one in said), said


def test_without_process_0_the_address_is_named():
    (said,) = roll_call([1], 2, 1)
    assert "waited 1 s for process 0 at localhost:" in said and "Connection refused" in said


def test_a_roll_call_ignores_strangers_and_processes_of_other_launches():
    port = free_port()

    def disturb():
        for words in (b"GET / HTTP/1.1\r\n\r\n", b"mmjax 1 of 9\n", b"mmjax 7 of 2\n", b""):
            for _ in range(100):
                try:
                    with socket.create_connection(("localhost", port)) as link:
                        link.sendall(words)
                        break
                except OSError:
                    pass

    with ThreadPoolExecutor(1) as pool:
        pool.submit(disturb)
        said = roll_call([0], 2, 1, port)
    assert "missing 1;" in said[0]


def test_a_taken_port_is_one_clear_line():
    with socket.create_server(("", 0)) as taken:
        (said,) = roll_call([0], 2, 1, taken.getsockname()[1])
    assert "process 0 cannot listen on port" in said and "MMJAX_COORDINATOR=HOST:PORT" in said


def test_a_launch_that_does_not_come_together_ends_in_time_and_says_why(tmp_path):
    environment = {**os.environ, "MMJAX_COORDINATOR": f"localhost:{free_port()}", "MMJAX_INIT_TIMEOUT": "1"}
    process = subprocess.run(
        [sys.executable, "-m", "mmjax", "train", str(tmp_path / "no.py")],
        env={**environment, "MMJAX_PROCESSES": "2", "MMJAX_PROCESS": "0"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 2 and "missing 1;" in process.stderr and "Traceback" not in process.stderr


def test_the_time_to_wait_is_a_number_of_seconds(monkeypatch, capsys):
    monkeypatch.setenv("MMJAX_INIT_TIMEOUT", "30m")
    assert main(["train", "no.py"]) == 2
    assert "MMJAX_INIT_TIMEOUT should be a number of seconds, not '30m'" in capsys.readouterr().err


def test_the_exit_code_of_preemption_is_that_of_sysexits():
    assert Preempted.exit_code == os.EX_TEMPFAIL == 75 != UserError.exit_code
