"""Where the runs of a study execute: this process, worker processes on this machine, or a Dask cluster.

Each of them is a `concurrent.futures.Executor`. This module does not import torch, because a worker process chooses its
GPU before torch is imported.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Final, ParamSpec, TypeVar

from bnsmooth_cli import __version__, stopping
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.stopping import Interrupted, Terminated
from bnsmooth_cli.studies.progress import INTERVAL

P = ParamSpec("P")
T = TypeVar("T")

#: How long a Dask scheduler may take to answer, in seconds.
TIMEOUT: Final = 10
_SIGNALS: Final = {signal.SIGINT, signal.SIGTERM}


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
        except (Exception, Interrupted, Terminated) as error:
            future.set_exception(error)
        return future


class Processes(ThreadPoolExecutor):
    """`jobs` worker processes, each served by its own thread.

    When a worker dies, its own call raises BrokenExecutor and a new worker takes its place; the others are not
    affected, unlike in a ProcessPoolExecutor of several processes. With `gpus`, each worker sees one GPU.
    """

    def __init__(self, jobs: int, gpus: list[str] | None = None) -> None:
        self._next_gpus = itertools.cycle(gpus or [None])
        # By thread: its GPU, and its worker.
        self._gpus: dict[int, str | None] = {}
        self._workers: dict[int, _Worker] = {}
        _start_tracker()
        super().__init__(jobs, "bnsmooth-worker")

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call fn(*args, **kwargs) in a worker and return the future."""
        return super().submit(self._hand_over, fn, args, kwargs)

    def _hand_over(self, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        me = threading.get_ident()
        if me not in self._gpus:
            self._gpus[me] = next(self._next_gpus)
        if me not in self._workers:
            self._workers[me] = _Worker(self._gpus[me])
        try:
            return self._workers[me].call(fn, args, kwargs)
        except (BrokenExecutor, Retired):
            del self._workers[me]
            raise

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers after their work; with `cancel_futures`, begin no more of it."""
        super().shutdown(wait, cancel_futures=cancel_futures)
        for worker in [*self._workers.values()]:
            worker.end()

    def kill(self) -> None:
        """End the workers at once."""
        for worker in [*self._workers.values()]:
            worker.kill()
        self.shutdown(cancel_futures=True)


class Retired(Exception):
    """Raised for a call whose worker process was told to stop. Its results are kept."""


class _Worker:
    """A worker process, which calls one function after another.

    The functions come through a pipe. The queues of a ProcessPoolExecutor have semaphores, which outlive a process that
    ends at once, and which the interpreter then reports on the terminal.
    """

    def __init__(self, gpu: str | None) -> None:
        spawn = multiprocessing.get_context("spawn")  # torch's threads and CUDA do not survive a fork
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, gpu))
        with _signals_blocked():
            self._process.start()
        theirs.close()

    def call(self, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        """Call fn(*args, **kwargs) there.

        Raises:
            Retired: If the process was told to stop.
            BrokenExecutor: If it has died.
        """
        try:
            self._pipe.send_bytes(pickle.dumps((fn, args, kwargs)))
            # A process that the worker has forked can hold the pipe open when the worker has died.
            while not self._pipe.poll(INTERVAL):
                if not self._process.is_alive() and not self._pipe.poll():
                    raise EOFError
            raised, result = self._pipe.recv()
        except (EOFError, OSError) as error:
            self.end()
            if self._process.exitcode == 128 + signal.SIGTERM:
                raise Retired("its worker process was told to stop") from error
            raise BrokenExecutor(f"a worker process died (exit status {self._process.exitcode})") from error
        if raised:
            raise result
        return result

    def end(self) -> None:
        """Wait until the process has ended; if it is idle, it ends now."""
        self._pipe.close()
        self._process.join()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()


def _serve(pipe: Connection, gpu: str | None) -> None:
    """The life of a worker process: call what comes through the pipe until it is closed, and send back the results.

    A first SIGTERM ends it after the present step or point. Ctrl-C, which a terminal sends to every process, is left to
    the study's main process.
    """
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        wait([parent.sentinel])
        os._exit(1)  # or the worker of a killed command would keep its run locked

    threading.Thread(target=follow, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stopping.obey(lambda number: None)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    while True:
        try:
            content = pipe.recv_bytes()
        except EOFError:
            return
        with stopping.deferred():
            try:
                fn, args, kwargs = pickle.loads(content)
                raised, result = False, fn(*args, **kwargs)
            except Exception as error:
                raised, result = True, error
        try:
            content = pickle.dumps((raised, result))
            pickle.loads(content)
        except Exception:  # a user's exception may hold anything, and its constructor may take other arguments
            content = pickle.dumps((True, RuntimeError(f"{type(result).__name__}: {_text(result)}")))
        pipe.send_bytes(content)


def _text(result: object) -> str:
    """What a result says of itself. A user's class may fail at that too."""
    try:
        return str(result)
    except Exception as error:
        return f"its text cannot be made ({type(error).__name__})"


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Shield the processes that start here from signals, which would arrive before they can heed them."""
    if os.name != "posix":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_tracker() -> None:
    """Start the interpreter's tracker of semaphores, before other threads do.

    The first process would start it, and would be left without the shield of `_signals_blocked`. The tracker removes
    what is left of a process that ends at once. It has no stderr here, because it would report that.
    """
    if os.name != "posix":
        return
    with suppress(OSError):  # stderr is closed
        stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            resource_tracker.ensure_running()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            os.close(nowhere)


def gpus(count: int) -> list[str] | None:
    """The names of the first `count` GPUs of this process in CUDA_VISIBLE_DEVICES; None without any.

    >>> gpus(0), gpus(2)
    (None, ['0', '1'])
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in visible.split(",") if name.strip()] or [str(i) for i in range(count)]
    return names[:count] or None


@contextmanager
def local(jobs: int, gpus: list[str] | None = None) -> Iterator[Executor]:
    """This process for one job, otherwise `jobs` worker processes.

    After an error in the block, they end their present work. KeyboardInterrupt and SystemExit end them at once.
    """
    executor = Processes(jobs, gpus) if jobs > 1 else InProcess()
    try:
        yield executor
    except Exception:
        executor.shutdown(cancel_futures=True)
        raise
    except BaseException:
        if isinstance(executor, Processes):
            executor.kill()
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
        # One thread per worker, so that each run has its own process. The processes are started by a thread that
        # starts here, and inherit what is blocked.
        _start_tracker()
        with _signals_blocked(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Port .* is already in use")  # by another study; any port will do
            cluster = distributed.LocalCluster(
                n_workers=jobs or os.cpu_count() or 1, threads_per_worker=1, dashboard_address=None, memory_limit=0,
                silence_logs=logging.CRITICAL,
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


def lost() -> tuple[type[Exception], ...]:
    """The exceptions of a Dask cluster for a task whose workers have died, or closed, several times."""
    if "distributed" not in sys.modules:
        return ()
    from distributed import KilledWorker

    return (KilledWorker,)


def closing() -> Callable[[], bool]:
    """A check for `stopping.heeding`: whether the Dask worker that executes this task is closing; never elsewhere."""
    if "distributed" in sys.modules:
        from distributed import Status, get_worker

        with suppress(ValueError):
            worker = get_worker()
            return lambda: worker.status not in (Status.running, Status.paused)
    return lambda: False


def _version() -> str:
    return __version__


def check_version(version: str | None, worker: str) -> None:
    """Raise InputError if a worker has another version of bnsmooth, or none."""
    if version != __version__:
        has = "no bnsmooth" if version is None else f"bnsmooth {version}"
        raise InputError(f"the worker {worker} has {has}, this is {__version__}; install the same on all")
