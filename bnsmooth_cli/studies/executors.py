"""Where a study's runs execute: this process, worker processes of its own, or a Dask cluster.

Each is a `concurrent.futures.Executor`, so nothing else knows which one it is. No torch here: a worker process chooses
its GPU before torch sees any.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, Final, ParamSpec, TypeVar

from bnsmooth_cli import __version__
from bnsmooth_cli.errors import InputError

P = ParamSpec("P")
T = TypeVar("T")

#: How long a scheduler may take to answer.
PATIENCE: Final = 10  # seconds


class InProcess(Executor):
    """Runs what is submitted at once, in this thread.

    >>> InProcess().submit(sum, [1, 2]).result()
    3
    """

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """The finished future of fn(*args, **kwargs)."""
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@dataclass(frozen=True)
class _Worker:
    """A worker process: the pool that it is all of, its id, its GPU."""

    pool: ProcessPoolExecutor
    process: int
    gpu: str | None


class Processes(ThreadPoolExecutor):
    """`jobs` worker processes, each handed its work by a thread of its own.

    A worker that dies raises BrokenExecutor for what it was doing and for nothing else, and another takes its place.
    With `gpus`, worker i sees the GPU numbered i modulo their number, and no other.
    """

    def __init__(self, jobs: int, gpus: list[str] | None = None) -> None:
        self._gpus: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        for i in range(jobs):
            self._gpus.put(gpus[i % len(gpus)] if gpus else None)
        self._workers: dict[int, _Worker] = {}  # by thread
        self._closing = False
        super().__init__(jobs, "bnsmooth-worker")

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """The future of fn(*args, **kwargs) in one of the workers."""
        return super().submit(self._hand_over, fn, args, kwargs)

    def _hand_over(self, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        me = threading.get_ident()
        try:
            worker = self._workers.get(me) or self._start()
            if self._closing:
                raise CancelledError
            self._workers[me] = worker
            return worker.pool.submit(fn, *args, **kwargs).result()
        except (BrokenExecutor, SystemExit) as error:  # SystemExit is a SIGTERM's
            if gone := self._workers.pop(me, None):
                self._drop(gone)
            raise BrokenExecutor(f"a worker process died ({error})") from error

    def _start(self) -> _Worker:
        gpu = self._gpus.get()
        # Spawned, not forked: torch's threads and CUDA do not survive a fork.
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin, (gpu,))
        try:
            with _interrupts_blocked():
                started = pool.submit(os.getpid)
            return _Worker(pool, started.result(), gpu)
        except BaseException:
            self._drop(_Worker(pool, 0, gpu))
            raise

    def _drop(self, worker: _Worker) -> None:
        self._gpus.put(worker.gpu)
        worker.pool.shutdown(wait=False, cancel_futures=True)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers: after their work, or with `cancel_futures` at once."""
        self._closing = cancel_futures
        if cancel_futures:
            for worker in list(self._workers.values()):
                with suppress(ProcessLookupError):
                    os.kill(worker.process, signal.SIGTERM)
        super().shutdown(wait, cancel_futures=cancel_futures)
        for worker in self._workers.values():
            worker.pool.shutdown(wait, cancel_futures=True)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes that this thread starts within never see the Ctrl-C that a terminal sends to all."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows, where a worker's own process group is out of reach too
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def gpus(count: int) -> list[str] | None:
    """What each GPU of this process is called in CUDA_VISIBLE_DEVICES; None without any.

    >>> gpus(0), gpus(2)
    (None, ['0', '1'])
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in given.split(",") if name.strip()] or [str(i) for i in range(count)]
    return names[:count] or None


def _begin(gpu: str | None) -> None:
    """What a worker process does first."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so that temporary files are removed
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        wait([parent.sentinel])
        os._exit(1)  # a killed command leaves no worker behind that would hold its run

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def local(jobs: int, gpus: list[str] | None = None) -> Iterator[Executor]:
    """This process for one job, else so many worker processes; ended at once where the block ends in an error."""
    executor = Processes(jobs, gpus) if jobs > 1 else InProcess()
    try:
        yield executor
    except BaseException:
        executor.shutdown(cancel_futures=True)
        raise
    executor.shutdown()


@contextmanager
def dask(address: str, jobs: int | None = None, tell: Callable[[str], None] = print) -> Iterator[Executor]:
    """The Dask cluster of a scheduler's address, or with `local` one of `jobs` worker processes on this machine.

    A cluster that has no worker yet is waited for, and `tell` told so.

    Raises InputError where Dask is not installed, no scheduler answers, or a worker has another version of bnsmooth.
    """
    try:
        import distributed
    except ImportError as error:
        raise InputError("--dask: Dask is not installed; pip install 'bnsmooth[dask]'") from error
    if address != "local" and jobs is not None:
        raise InputError("--jobs: with --dask ADDRESS the cluster has its own workers; leave it out")
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # a lost scheduler is told run by run
    cluster = None
    if address != "local":
        _check_listening(address)
    else:
        # One thread a worker: a run has its process to itself, as anywhere else.
        with _interrupts_ignored():
            cluster = distributed.LocalCluster(
                n_workers=jobs or os.cpu_count() or 1, threads_per_worker=1, dashboard_address=None, memory_limit=0,
                silence_logs=logging.ERROR,
            )  # fmt: skip
    try:
        with distributed.Client(cluster or address, timeout=PATIENCE, set_as_default=False) as client:
            versions = client.run(_version, on_error="return")
            for worker, version in versions.items():
                check_version(version if isinstance(version, str) else None, worker)
            if not versions:
                tell(f"--dask {address}: no worker has joined yet; the runs start when one does")
            yield client.get_executor(pure=False)
    finally:
        if cluster is not None:
            cluster.close()


def _check_listening(address: str) -> None:
    # Before a client is made: one that has never reached a scheduler complains for long, and at its end again.
    from distributed.comm.addressing import get_address_host_port

    try:
        socket.create_connection(get_address_host_port(address), timeout=PATIENCE).close()
    except (OSError, ValueError) as error:
        raise InputError(
            f"--dask {address}: no scheduler answers there ({error}); give its address, as in tcp://host:8786"
        ) from error


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Processes that start within never see Ctrl-C, which a terminal sends to all: this one ends them."""
    if threading.current_thread() is not threading.main_thread():  # of no terminal's concern
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _version() -> str:
    return __version__


def check_version(found: str | None, where: str) -> None:
    """Raise InputError for a worker that would compute with another version of bnsmooth, or has none."""
    if found != __version__:
        has = "no bnsmooth" if found is None else f"bnsmooth {found}"
        raise InputError(f"the worker {where} has {has}, this is {__version__}; install the same on all")
