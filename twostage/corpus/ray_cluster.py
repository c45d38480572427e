"""Restores a corpus on many machines, or with many processes on one: the only module that imports Ray.

Every actor holds a model and processes some files at a time. If an actor dies, Ray repeats its work on another one.
Work that kills every actor is repeated file by file, so that only the file at fault fails.
"""

import logging
import os
import socket
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

from twostage.corpus.corpus import CorpusJob, Item, ModelWeights, Worker, failure
from twostage.corpus.storage import Store, require
from twostage.corpus.table import Result, Table, to_arrow
from twostage.utils.errors import ConfigError
from twostage.utils.logs import quieted
from twostage.utils.signals import termination_kept

RETRIES = 2  # of work after the death of its process
TASKS = 16  # per worker, so that all of them finish at about the same time
MOST = 32  # maximum number of files at a time, which a death costs
MEMORY = 256 * 2**20  # bytes of the object store of a local cluster, for names and weights


@dataclass(frozen=True)
class ClusterConfig:
    """The cluster and its size: ``workers`` with a model each (0: as many as fit) and ``threads`` each.

    ``address`` is that of a running cluster ("auto": the one that includes this machine); without it, one is started
    on this machine. ``device`` "auto" is cuda, with one GPU for each worker, if the cluster has GPUs.
    """

    address: str = ""
    workers: int = 0
    threads: int = 1
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ConfigError(f"workers is {self.workers}, must be 0 or more")
        if self.threads < 1:
            raise ConfigError(f"threads is {self.threads}, must be at least 1")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"device is {self.device!r}, must be auto, cpu or cuda")


@dataclass(frozen=True)
class ClusterResources:
    """The resources of a cluster that a job uses."""

    workers: int
    threads: int
    device: str


class Actor:
    """A worker as a callable for Ray Data, from Arrow table to Arrow table."""

    def __init__(self, worker: type[Worker], job: CorpusJob, weights: Any, device: str, threads: int) -> None:
        import ray

        self._worker = worker(job, ray.get(weights), device, threads)

    def __call__(self, table: Any) -> Any:
        return to_arrow(self._worker([Item(**row) for row in table.to_pylist()]))


@contextmanager
def cluster(config: ClusterConfig) -> Iterator[ClusterResources]:
    """Join a cluster, or start one, within the block.

    Within the block, Ray's loggers are silent, and so is stdout, where Ray reports deaths of workers: keep a copy from
    before. Raises ConfigError if there is no cluster, or it is too small.
    """
    require("ray", "pyarrow", "pandas")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray
    import ray.data  # sets the levels of its loggers on import

    with (
        quieted("ray", level=logging.CRITICAL + 1),
        open(os.devnull, "w") as null,
        redirect_stdout(null),
        termination_kept(),  # Ray installs its own handler
    ):
        try:
            with _silenced_stderr():
                _join(config)
            yield _resources(config, ray.cluster_resources())
        finally:
            ray.shutdown()


def restored(
    items: Sequence[Item],
    job: CorpusJob,
    weights: ModelWeights,
    resources: ClusterResources,
    *,
    worker: type[Worker] = Worker,
) -> Iterator[list[Result]]:
    """Restore ``items`` on the joined cluster; yields results as they arrive, one for each item in the end.

    Raises ConfigError if the cluster cannot do any work.
    """
    missing = {item.source: item for item in items}
    size = max(1, min(MOST, len(items) // (resources.workers * TASKS)))
    for files in (size, 1):  # a single file can only kill its own work
        for results in _map(list(missing.values()), files, (worker, job, weights), resources):
            for result in results:
                missing.pop(result.path, None)
            yield results
    lost = [
        failure(item, f"{item.source}: the process that restored it died, or could not write its results", job.model)
        for item in missing.values()
    ]
    Table(Store(job.dest)).add(lost)
    if lost:
        yield lost


def _map(
    items: Sequence[Item], files: int, work: tuple[type[Worker], CorpusJob, ModelWeights], resources: ClusterResources
) -> Iterator[list[Result]]:
    """Results of ``items``, ``files`` of them at a time, except for those whose work kept dying."""
    if not items:
        return
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.max_errored_blocks = -1
    worker, job, weights = work
    blocks = ceil(len(items) / files)
    workers = min(resources.workers, blocks)
    dataset = ray.data.from_items([asdict(item) for item in items], override_num_blocks=blocks)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray deprecates the last two
        mapped = dataset.map_batches(
            Actor,
            batch_size=None,
            batch_format="pyarrow",
            fn_constructor_args=(worker, job, ray.put(weights), resources.device, resources.threads),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers, initial_size=workers),
            num_cpus=resources.threads,
            num_gpus=1 if resources.device == "cuda" else 0,
            max_restarts=-1,
            max_task_retries=RETRIES,
        )
    try:
        for table in mapped.iter_batches(batch_size=None, batch_format="pyarrow"):
            rows: Any = table
            yield [Result(**row) for row in rows.to_pylist()]
    except ray.exceptions.RayError as error:
        last = str(error).strip().rpartition("\n")[2]
        raise ConfigError(f"the cluster cannot work: {last}") from None


def _join(config: ClusterConfig) -> None:
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    try:
        if config.address:
            _check_reachable(config.address)
            ray.init(config.address, **quiet)
            return
        # more workers than cores are slow, but must not wait forever
        cores = max(os.cpu_count() or 1, config.workers * config.threads)
        ray.init("local", num_cpus=cores, include_dashboard=False, object_store_memory=MEMORY, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = config.address or "on this machine"
        raise ConfigError(f"no cluster {where}: {str(error).strip().partition(chr(10))[0]}") from None


def _check_reachable(address: str) -> None:
    """Fail immediately where Ray would retry for minutes. Other kinds of addresses, such as auto, are not checked."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


@contextmanager
def _silenced_stderr() -> Iterator[None]:
    """Redirect the descriptor of stderr, to which Ray's C++ code writes."""
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 2)
            yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _resources(config: ClusterConfig, resources: dict[str, float]) -> ClusterResources:
    """The part of ``resources`` that a job can use.

    >>> _resources(ClusterConfig(threads=4), {"CPU": 16.0})
    ClusterResources(workers=4, threads=4, device='cpu')
    >>> _resources(ClusterConfig(), {"CPU": 16.0, "GPU": 2.0})
    ClusterResources(workers=2, threads=1, device='cuda')
    """
    gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    device = ("cuda" if gpus else "cpu") if config.device == "auto" else config.device
    if device == "cuda" and not gpus:
        raise ConfigError("device is 'cuda', but the cluster has no GPU")
    fit = min(cores // config.threads, gpus) if device == "cuda" else cores // config.threads
    if not fit:
        raise ConfigError(f"threads is {config.threads}, but the cluster has {cores} cores")
    return ClusterResources(min(config.workers, fit) or fit, config.threads, device)
