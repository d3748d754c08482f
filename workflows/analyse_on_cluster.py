"""Analyse many recordings on a Dask cluster: copy this file and put your cluster in.

    python analyse_on_cluster.py RUN [RUN ...]

A ``LocalCluster`` is two processes on this machine; ``dask_jobqueue.SLURMCluster`` or ``Client("tcp://HOST:PORT")`` in
its place is the only change. Workers need ``dynome[analysis]``, the folder of the recordings, and no torch.
"""

import sys

from distributed import Client, LocalCluster

import dynome_analysis as dya


def main(runs: list[str]) -> None:
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster):
        for run in runs:
            analysis = dya.analyze(
                dya.open_recording(run)
            )  # finds the client by itself; a second call reads the result
            change = analysis["reconfiguration_deaths"].values
            print(f"{run}: {analysis.sizes['snapshot']} snapshots, last change {change[-1]:.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
