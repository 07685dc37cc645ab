"""The Ray executor: a cluster of two nodes on this machine, one of which is lost in the middle."""

import threading
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from experiments import registry
from experiments.publish import collect
from pipelines.shared.assets import default_cache
from pipelines.shared.errors import StepFailed, UserError
from pipelines.shared.executors import run_local
from pipelines.shared.ray_executor import run_ray
from pipelines.shared.specs import Runtime
from pipelines.shared.steps import Step

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow
KEPT = ("scores.parquet", "completions.parquet", "pairs.parquet")


@pytest.fixture
def nodes():
    """The cluster and the node that may be lost; the driver is connected to the other."""
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, **memory})
    other = cluster.add_node(num_cpus=2, **memory)
    ray.init(address=cluster.address, log_to_driver=False)
    cluster.wait_for_nodes()
    yield cluster, other
    ray.shutdown()
    cluster.shutdown()


def at_work(node) -> bool:
    """Whether a worker of a node is in the middle of a step: Ray names processes by their tasks."""
    (raylet,) = node.all_processes["raylet"]
    names = [" ".join(worker.cmdline()) for worker in psutil.Process(raylet.process.pid).children()]
    return any(name.startswith("ray::") and "IDLE" not in name for name in names)


def runtime(results):
    return Runtime(results=results, cache=default_cache())


def test_a_lost_node_costs_time_and_changes_nothing(nodes, tmp_path):
    cluster, other = nodes
    study = registry.find("sentiment").resolve("smoke")
    steps, lost, told = study.steps(), threading.Event(), []

    def lose_the_node() -> None:
        """Once it is at work on a step of some length, take it away as a power cut would."""
        while not lost.is_set():
            if len(told) > 4 and at_work(other):
                cluster.remove_node(other, allow_graceful=False)
                lost.set()
            time.sleep(0.2)

    killer = threading.Thread(target=lose_the_node, daemon=True)
    killer.start()

    def tell(event):
        if event.kind == "done":
            told.append(event.step.fingerprint)

    there = runtime(tmp_path / "there")
    try:
        records = run_ray(steps, there, tell=tell)
    finally:
        was_lost = lost.is_set()
        lost.set()
        killer.join()
    assert was_lost, "the study was done before the node was lost: the test showed nothing"
    assert sorted(told) == sorted(records) == sorted(step.fingerprint for step in steps)
    assert not list((tmp_path / "there" / "runs").glob("*/.partial-*"))
    assert not list((tmp_path / "there" / "runs").glob("*/failed-*"))
    here = runtime(tmp_path / "here")
    run_local(steps, here, cores=2)
    for step in steps:
        for name in KEPT:
            if (step.folder(here.results) / name).is_file():
                pd.testing.assert_frame_equal(
                    pd.read_parquet(step.folder(there.results) / name),
                    pd.read_parquet(step.folder(here.results) / name),
                )
    assert tables(study, there.results) == tables(study, here.results)


def tables(study, results: Path) -> dict[str, bytes]:
    """The frontier, win-rate and training tables of a report on these results."""
    study.write_report(collect(study, results))
    folder = study.folder(results) / "tables"
    return {
        f"{name}.csv": (folder / f"{name}.csv").read_bytes()
        for name in ("frontier", "frontier_summary", "dominance", "win_rates", "training")
    }


def step(function, threads=1):
    return Step(
        stage="test",
        label=function,
        function=f"pipelines.shared.ray_executor:{function}",
        version=1,
        recipe={},
        threads=threads,
    )


def test_what_goes_wrong_is_one_line(nodes, tmp_path):
    with pytest.raises(UserError, match="takes 64 CPU, and no node of the cluster has more than 2"):
        run_ray([step("run_here", threads=64)], runtime(tmp_path))
    with pytest.raises(StepFailed, match="step test none failed: AttributeError") as error:
        run_ray([step("none")], runtime(tmp_path))
    assert "\n" not in str(error.value)
    assert list((tmp_path / "runs" / "test").glob("failed-none-*"))


def test_no_cluster_at_an_address(tmp_path):
    with pytest.raises(UserError, match=r"no cluster at 127\.0\.0\.1:1 "):
        run_ray([step("run_here")], runtime(tmp_path), address="127.0.0.1:1")
