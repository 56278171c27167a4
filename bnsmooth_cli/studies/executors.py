"""Where the runs of a study execute: this process, worker processes on this machine, or a Dask cluster.

Each of them is a `concurrent.futures.Executor`. This module does not import torch, because a worker process chooses its
GPU before torch is imported.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing.connection import wait
from typing import Any, Final, ParamSpec, TypeVar

from bnsmooth_cli import __version__
from bnsmooth_cli.errors import InputError

P = ParamSpec("P")
T = TypeVar("T")

#: How long a Dask scheduler may take to answer, in seconds.
TIMEOUT: Final = 10


class InProcess(Executor):
    """Executes what is submitted immediately, in this thread.

    >>> InProcess().submit(sum, [1, 2]).result()
    3
    """

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call fn(*args, **kwargs) and return the finished future."""
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Processes(ThreadPoolExecutor):
    """`jobs` worker processes, each served by its own thread.

    When a worker dies, its own call raises BrokenExecutor and a new worker takes its place; the others are not
    affected, unlike in a ProcessPoolExecutor of several processes. With `gpus`, each worker sees one GPU.
    """

    def __init__(self, jobs: int, gpus: list[str] | None = None) -> None:
        self._next_gpus = itertools.cycle(gpus or [None])
        # By thread: its GPU, its pool of one process, and the id of that process.
        self._gpus: dict[int, str | None] = {}
        self._pools: dict[int, ProcessPoolExecutor] = {}
        self._processes: dict[int, int] = {}
        self._closing = False
        super().__init__(jobs, "bnsmooth-worker")

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call fn(*args, **kwargs) in a worker and return the future."""
        return super().submit(self._hand_over, fn, args, kwargs)

    def _hand_over(self, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        me = threading.get_ident()
        if me not in self._gpus:
            self._gpus[me] = next(self._next_gpus)
        try:
            if me not in self._pools:
                # Spawned, not forked: torch's threads and CUDA do not survive a fork.
                spawn = multiprocessing.get_context("spawn")
                self._pools[me] = ProcessPoolExecutor(1, spawn, _begin, (self._gpus[me],))
                with _interrupts_blocked():
                    started = self._pools[me].submit(os.getpid)
                self._processes[me] = started.result()
            if self._closing:
                raise CancelledError
            return self._pools[me].submit(fn, *args, **kwargs).result()
        except (BrokenExecutor, SystemExit) as error:  # SIGTERM becomes SystemExit
            self._processes.pop(me, None)
            self._pools.pop(me).shutdown(wait=False, cancel_futures=True)
            raise BrokenExecutor(f"a worker process died ({error})") from error

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers after their work, or with `cancel_futures` immediately."""
        self._closing = cancel_futures
        if cancel_futures:
            for process in list(self._processes.values()):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGTERM)
        super().shutdown(wait, cancel_futures=cancel_futures)
        for pool in self._pools.values():
            pool.shutdown(wait, cancel_futures=True)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Shield the processes that this thread starts from Ctrl-C, which a terminal sends to every process."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def gpus(count: int) -> list[str] | None:
    """The names of the first `count` GPUs of this process in CUDA_VISIBLE_DEVICES; None without any.

    >>> gpus(0), gpus(2)
    (None, ['0', '1'])
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in visible.split(",") if name.strip()] or [str(i) for i in range(count)]
    return names[:count] or None


def _begin(gpu: str | None) -> None:
    """Prepare a worker process: its GPU, an orderly end, and its death with the parent."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, which removes temporary files
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        wait([parent.sentinel])
        os._exit(1)  # or the worker of a killed command would keep its run locked

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def local(jobs: int, gpus: list[str] | None = None) -> Iterator[Executor]:
    """This process for one job, otherwise `jobs` worker processes. An error in the block ends them immediately."""
    executor = Processes(jobs, gpus) if jobs > 1 else InProcess()
    try:
        yield executor
    except BaseException:
        executor.shutdown(cancel_futures=True)
        raise
    executor.shutdown()


@contextmanager
def dask(address: str, jobs: int | None, message: Callable[[str], None]) -> Iterator[Executor]:
    """A Dask cluster.

    Args:
        address: The address of its scheduler, or `local` for a cluster on this machine.
        jobs: The number of workers of a local cluster; None for one for each CPU.
        message: Called with a text if the cluster has no workers yet.

    Raises:
        InputError: If Dask is not installed, no scheduler answers, or a worker has another version of bnsmooth.
    """
    try:
        import distributed
    except ImportError as error:
        raise InputError("--dask: Dask is not installed; pip install 'bnsmooth[dask]'") from error
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # a lost scheduler is reported for each run
    cluster: Any
    if address != "local":
        _check_listening(address)
        cluster = nullcontext(address)
    else:
        # One thread per worker, so that each run has its own process.
        with _interrupts_ignored():
            cluster = distributed.LocalCluster(
                n_workers=jobs or os.cpu_count() or 1, threads_per_worker=1, dashboard_address=None, memory_limit=0,
                silence_logs=logging.ERROR,
            )  # fmt: skip
    with cluster as scheduler, distributed.Client(scheduler, timeout=TIMEOUT, set_as_default=False) as client:
        versions = client.run(_version, on_error="return")
        for worker, version in versions.items():
            check_version(version if isinstance(version, str) else None, worker)
        if not versions:
            message(f"--dask {address}: no worker has joined yet; the runs start when one does")
        yield client.get_executor(pure=False)


def _check_listening(address: str) -> None:
    # Before a client exists: a client that never reaches a scheduler prints errors for a long time.
    from distributed.comm.addressing import get_address_host_port

    try:
        socket.create_connection(get_address_host_port(address), timeout=TIMEOUT).close()
    except (OSError, ValueError) as error:
        raise InputError(
            f"--dask {address}: no scheduler answers there ({error}); give its address, as in tcp://host:8786"
        ) from error


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Shield the processes that start here from Ctrl-C, even if other threads start them, as Dask does."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread gets signals
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _version() -> str:
    return __version__


def check_version(version: str | None, worker: str) -> None:
    """Raise InputError if a worker has another version of bnsmooth, or none."""
    if version != __version__:
        has = "no bnsmooth" if version is None else f"bnsmooth {version}"
        raise InputError(f"the worker {worker} has {has}, this is {__version__}; install the same on all")
