"""Many images, many processes: the units of a table, spread over Dask workers.

Every probe of this method is about one image, so images are what is shared out: a worker loads the
model once, measures an image, writes its part file itself (`redlib.store`) and takes the next. No
row travels through the scheduler, and a worker that is killed costs the image in its hands, which
another worker measures again.

    workers = Workers(2)                                  # two processes of this machine
    workers = Workers(scheduler="tcp://node1:8786")       # those that joined a running scheduler
    for unit, value in workers.each(call, units):         # as they are finished
        ...

What travels is `call`, once per worker: a function with all that it refers to. A model in it goes
as its name and is loaded where it arrives (`redlib.models.VLM`). The sums of a matrix product
depend, in their last digits, on the number of threads; so a worker computes with as many threads as
the process that sends the work, and the rows are those that this process would have made.

One worker is the process itself: nothing is started, and Dask is not imported.
"""

import contextlib
import functools
import logging
import platform
import sys
import threading
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

from redlib.errors import RedlibError
from redlib.fingerprint import code_version

PATIENCE = 10
"""Seconds after which a scheduler that does not answer is given up."""

_ONE_AT_A_TIME = threading.Lock()
"""Of one worker process, whatever its number of threads: they share one model."""


class Workers:
    """The processes that a session's tables are measured in, started when first needed.

    workers: processes of this machine; 1 is this one.
    scheduler: address of a running Dask scheduler, whose workers are taken instead.
    """

    def __init__(self, workers: int = 1, scheduler: str | None = None) -> None:
        self.workers = workers
        self.scheduler = scheduler
        self._client: Any = None
        self._cluster: Any = None

    def __reduce__(self) -> tuple[type, tuple]:
        return Workers, ()  # what arrives at a worker is at work there alone

    @property
    def several(self) -> bool:
        """Whether the work leaves this process."""
        return self.workers > 1 or self.scheduler is not None

    def start(self) -> Any:
        """The Dask client, connected; made at the first call.

        Raises RedlibError if no scheduler answers at the address within PATIENCE seconds, or
        something that is none.
        """
        if self._client is None:
            self._client = self._join() if self.scheduler else self._local()
        return self._client

    def close(self) -> None:
        """Let the processes of this machine end; those of a scheduler stay."""
        for one in (self._client, self._cluster):
            # What does not end in time, on a busy machine, ends with this process.
            with contextlib.suppress(OSError):
                if one is not None:
                    one.close()
        self._client = self._cluster = None

    def note(self) -> str:
        """How many are at work, for a progress bar."""
        try:
            count = len(self.start().nthreads())
        except OSError:
            return "connection lost"
        return f"{count} workers" if count > 1 else "1 worker" if count else "waiting for a worker"

    def each(
        self, call: Callable[[Any], Any], units: Iterable[Hashable]
    ) -> Iterator[tuple[Hashable, Any]]:
        """(unit, call(unit)) for every unit, as they are finished; lost ones are done again.

        What `call` raises is raised here, and what has not begun is called off. Raises RedlibError
        if the scheduler is lost, or if one unit kills worker after worker.
        """
        from distributed import CancelledError, KilledWorker, as_completed
        from distributed.comm import CommClosedError
        from distributed.protocol import pickle

        client, units = self.start(), list(units)
        with warnings.catch_warnings():
            # The scenes that a function refers to weigh megabytes; they travel once.
            warnings.filterwarnings("ignore", message="Sending large graph")
            # A task's result, unlike scattered data, is made again when its holder is killed.
            packed = pickle.dumps((_threads(), _own_code(), call))
            sent = client.submit(_same, packed, pure=False)
            futures = client.map(_call, [sent] * len(units), units, pure=False)
        unit_of = dict(zip(futures, units, strict=True))
        try:
            for future in as_completed(futures, loop=client.loop):
                unit = unit_of.pop(future)
                try:
                    value = future.result()
                except KilledWorker:
                    raise RedlibError(
                        f"workers: one after another died, with {unit!r} in hand or next; most "
                        "likely memory ran out, so take fewer workers or a smaller model"
                    ) from None
                except (CancelledError, CommClosedError):
                    # Or Dask would log, with a traceback, that it no longer tries to connect.
                    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
                    raise RedlibError(
                        f"scheduler: the connection to {client.scheduler.address} was lost; what "
                        "was finished is kept, and the same command goes on from there"
                    ) from None
                yield unit, value
        finally:
            if client.status == "running":
                client.cancel(list(unit_of))

    def _local(self) -> Any:
        import dask.config
        from distributed import Client, LocalCluster

        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        environment: dict[str, int | None] = {name: _threads() or 1 for name in names}
        # Dask makes glibc hand freed memory back at once, and a thread's own arena does so too: the
        # pages of every large tensor would be fetched anew, at twice the time of a bare process.
        environment |= {"MALLOC_TRIM_THRESHOLD_": None, "MALLOC_ARENA_MAX": 1}
        spawned = {f"distributed.nanny.pre-spawn-environ.{n}": v for n, v in environment.items()}
        # No worker is handed an image before it is free: one that waits may find another idle.
        with dask.config.set({**spawned, "distributed.scheduler.worker-saturation": 1.0}):
            self._cluster = LocalCluster(
                n_workers=self.workers,
                threads_per_worker=1,
                memory_limit=None,  # by default a worker that takes its share is killed
                silence_logs=logging.CRITICAL,  # what goes wrong is raised here, in one line
                dashboard_address="127.0.0.1:0",  # any free port, for this machine alone
            )
        return Client(self._cluster, set_as_default=False)

    def _join(self) -> Any:
        from distributed import Client

        answers: list[Any] = []

        def join() -> None:
            # Whatever listens there may not be Dask, and what its bytes then bring about is beyond
            # a list of exceptions.
            try:
                answers.append(Client(self.scheduler, timeout=PATIENCE, set_as_default=False))
            except Exception as error:
                answers.append(error)

        # The timeout holds for the connection, not for a handshake that is never answered.
        thread = threading.Thread(target=join, daemon=True)
        thread.start()
        thread.join(PATIENCE + 2)
        if answers and isinstance(answers[0], Client):
            return answers[0]
        advice = "start one with `dask scheduler`, correct the address, or leave scheduler out"
        if not answers or isinstance(answers[0], OSError | ValueError):
            raise RedlibError(
                f"scheduler: nothing answers at {self.scheduler!r} within {PATIENCE} s; {advice}"
            )
        raise RedlibError(
            f"scheduler: what answers at {self.scheduler!r} cannot be joined "
            f"({type(answers[0]).__name__}); {advice}"
        )


def _same(value: bytes) -> bytes:
    return value


def _call(sent: bytes, unit: Hashable) -> Any:
    """Run in a worker: one unit."""
    with _ONE_AT_A_TIME:
        threads, call = _unpack(sent)
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        return call(unit)


@functools.lru_cache(maxsize=1)
def _unpack(sent: bytes) -> tuple[int | None, Callable[[Any], Any]]:
    """What was sent, once per process; with the function comes the model that it refers to."""
    from distributed.protocol import pickle

    threads, code, call = pickle.loads(sent)
    if code != _own_code():
        raise RedlibError(
            f"workers: the one on {platform.node()} runs another version of redlib than this "
            "process; start both again from the same files"
        )
    return threads, call


@functools.cache
def _own_code() -> str:
    """The version this process works by: asked once, since files may change under a worker."""
    return code_version()


def _threads() -> int | None:
    """Threads of this process's matrix products; None where torch plays no part."""
    torch = sys.modules.get("torch")
    return None if torch is None else torch.get_num_threads()
