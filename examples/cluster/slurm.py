"""A cluster under Slurm, by dask-jobqueue: `python slurm.py KEYS WORKERS`; see docs/cluster.md.

The scheduler lives in this process, on the login node; the workers are Slurm's jobs. It prints the command
that uses them and ends with Ctrl-C.
"""

import signal
import sys
from pathlib import Path

from dask_jobqueue import SLURMCluster

from vpmu.cluster.certificates import security_of

INTERFACE = "eth0"  # the network that login and compute nodes share; often ib0
QUEUE = "batch"
PROCESSES_PER_JOB = 8


def main(keys: Path, workers: int) -> None:
    """Keep a cluster of `workers` processes until Ctrl-C."""
    with SLURMCluster(
        queue=QUEUE,
        cores=PROCESSES_PER_JOB,
        processes=PROCESSES_PER_JOB,
        memory="16GB",
        walltime="04:00:00",
        interface=INTERFACE,
        protocol="tls://",
        security=security_of(keys.resolve()),
        shared_temp_directory=str(keys.resolve()),
        scheduler_options={"dashboard_address": "127.0.0.1:8787"},
    ) as cluster:
        cluster.scale(workers)
        print(cluster.job_script())
        print(
            f"vpmu run FILE --scheduler {cluster.scheduler_address} --keys {keys} --workers {workers} "
            f"--bind {INTERFACE} --wait-workers 3600",
            flush=True,
        )
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
