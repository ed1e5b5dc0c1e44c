"""Take this machine out of a Ray cluster without losing work: its runs checkpoint and go on elsewhere.

Run it on the machine that is to go, in the environment that Ray was started in: before maintenance, or from whatever
hears that a spot instance will be taken away. Ray itself is left to `ray stop`, or to the end of the machine.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time

import psutil

RAYS_OWN = ("IDLE", "Agent")
"""Ends of the titles of workers that execute nothing, and of Ray's own processes."""


def main() -> int:
    """Returns 0 where every run has left, 1 where one took longer than it was given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grace", type=int, default=90, metavar="SECONDS", help="time that runs get to checkpoint")
    parser.add_argument("--address", default="auto", metavar="HOST:PORT", help="the cluster's head")
    args = parser.parse_args()
    raylet = drain(args.address)
    runs = [worker for worker in raylet.children() if executes(worker)]
    for run in runs:
        run.terminate()
    print(f"asked {len(runs)} run(s) to checkpoint", flush=True)
    deadline = time.monotonic() + args.grace
    while (late := [run for run in runs if executes(run)]) and time.monotonic() < deadline:
        time.sleep(0.2)
    print(f"{len(runs) - len(late)} of {len(runs)} have; `ray stop` ends what there is left of Ray")
    return 1 if late else 0


def drain(address: str) -> psutil.Process:
    """Have the cluster give this machine no more work; returns its raylet, whose children the workers are."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # it is there
    from ray.core.generated import autoscaler_pb2

    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    context = ray.get_runtime_context()
    node = context.get_node_id()
    no_deadline = 0  # with one, Ray would end the runs by then, whether they have written or not
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why_not = GcsClient(address=context.gcs_address).drain_node(node, reason, "taken away", no_deadline)
    ray.shutdown()
    if not accepted:
        print(f"the cluster goes on giving this machine work: {why_not}", file=sys.stderr)
    raylets = (process for process in psutil.process_iter(["cmdline"]) if process.name() == "raylet")
    return next(raylet for raylet in raylets if f"--node_id={node}" in raylet.info["cmdline"])


def executes(worker: psutil.Process) -> bool:
    """Whether a child of the raylet is a worker with something to do."""
    try:
        title = " ".join(worker.cmdline())
    except psutil.NoSuchProcess:
        return False
    return title.startswith("ray::") and not title.rstrip().endswith(RAYS_OWN)


if __name__ == "__main__":
    sys.exit(main())
