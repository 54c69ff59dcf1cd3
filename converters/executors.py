"""Executors beyond one machine: a Dask cluster whose machines share a file system does the tasks of a plan.

Tasks are plain values and idempotent: each writes the same bytes to its own range of files that exist already. So
whoever does a task, and how often, changes nothing, and the cluster may hand one out again when a worker is gone.
"""

from __future__ import annotations

import pickle
import platform
import re
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from gptoss_convert import __version__
from gptoss_convert.converters.plan import Plan
from gptoss_convert.converters.tasks import Resources
from gptoss_convert.errors import OptionError, OutputError, UnsupportedError

SECONDS_TO_CONNECT = 10
CALLS_AT_ONCE = 8
"""Calls that one message to a worker holds, of some megabytes each."""
_ADDRESS = re.compile(r"dask://(?P<place>(?:[\w.-]+|\[[0-9a-fA-F:]+\]):\d{1,5})")

Value = TypeVar("Value")


@contextmanager
def opened_executor(address: str | None) -> Iterator[Executor | None]:
    """Connect to the cluster at `address`, such as `dask://scheduler:8786`, while the block runs.

    Yields:
        What does tasks on all workers of the cluster; None for no address, which leaves the choice to `execute`.

    Raises:
        OptionError: the address is none, nobody answers there, or the cluster cannot do our tasks: it has no
            workers, or other versions.
        UnsupportedError: the library `distributed` is not installed.
    """
    if address is None:
        yield None
        return
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise OptionError("no such executor", found=address, expected="dask://HOST:PORT")
    client = _connected(match["place"])
    try:
        yield ClusterExecutor(client, _threads(client))
    finally:
        client.close()


class ClusterExecutor(Executor):
    """Does tasks on the workers of a Dask cluster, as a client that is connected to it hands them out.

    What is called is sent with its arguments, and has to be the same on all machines. Some calls are sent together,
    since a scheduler takes milliseconds for each message. What a worker has in hand when it dies is done again by
    another one.
    """

    def __init__(self, client: Any, threads: int) -> None:
        """Take a `distributed.Client`, and the number of threads that all workers have together."""
        self._client = client
        self._executor = client.get_executor(pure=False)
        self._threads = threads
        self._unsent: list[tuple[_Answer, bytes]] = []

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have a worker call `function`; an exception arrives with its cause. To be used by one thread."""
        answer = _Answer(self)
        self._unsent.append((answer, pickle.dumps((function, args, kwargs))))
        if len(self._unsent) == CALLS_AT_ONCE:
            self.send()
        return answer

    def send(self) -> None:
        """Send the calls that wait for company."""
        calls = [(answer, call) for answer, call in self._unsent if not answer.cancelled()]
        self._unsent = []
        if not calls:
            return
        sent = self._executor.submit(_call_all, pickle.dumps([call for _, call in calls]))
        for answer, _ in calls:
            answer.sent = sent
        sent.add_done_callback(partial(_deliver, [answer for answer, _ in calls]))

    def resources(self, local: Resources) -> Resources:
        """Return what a run may use if every thread of the cluster may use what a job of `local` may."""
        jobs = self._threads * CALLS_AT_ONCE
        return replace(local, jobs=jobs, memory=jobs * local.memory_per_job)

    def has_begun(self) -> bool:
        """Return whether any worker has a call of ours in hand."""
        try:
            return any(self._client.processing().values())
        except Exception:  # the cluster cannot be asked any more
            return False


class _Answer(Future[Any]):
    """What a worker will answer."""

    def __init__(self, executor: ClusterExecutor) -> None:
        super().__init__()
        self._executor = executor
        self.sent: Future[bytes] | None = None
        """The message that the call is part of; None before there is one."""

    def result(self, timeout: float | None = None) -> Any:
        """As that of `Future`."""
        if self.sent is None:
            self._executor.send()
        return super().result(timeout)

    def cancel(self) -> bool:
        """Take the call back, with those that were sent together, unless a worker may have begun one.

        Nobody can stop it then.
        """
        if self.done() or (self.sent is not None and self._executor.has_begun()):
            return self.cancelled()
        cancelled = super().cancel()
        if self.sent is not None:
            self.sent.cancel()
        return cancelled


def _deliver(answers: list[_Answer], sent: Future[bytes]) -> None:
    """Give each caller what became of its call."""
    try:
        outcomes = [pickle.loads(outcome) for outcome in pickle.loads(sent.result())]
    except CancelledError as lost:
        outcomes = [(None, OutputError("connection to the cluster was lost"), lost)] * len(answers)
    except Exception as lost:
        outcomes = [(None, OutputError(f"cluster gave up: {lost}"), lost)] * len(answers)
    for answer, (value, error, cause) in zip(answers, outcomes, strict=True):
        if not answer.set_running_or_notify_cancel():
            continue
        if error is None:
            answer.set_result(value)
        else:
            error.__cause__ = cause
            answer.set_exception(error)


def _call_all(calls: bytes) -> bytes:
    """Call on a worker what a client sent, one after the other, and return what became of each."""
    return pickle.dumps([_call(call) for call in pickle.loads(calls)])


def _call(payload: bytes) -> bytes:
    """Call on a worker what a client sent; return result, exception and its cause: None for what there is not."""
    function, args, kwargs = pickle.loads(payload)
    try:
        return pickle.dumps((function(*args, **kwargs), None, None))
    except Exception as error:
        return _packed(error)


def _packed(error: Exception) -> bytes:
    """Pack an exception with its cause as far as they can be sent."""
    cause = error.__cause__
    if isinstance(cause, FileNotFoundError) and isinstance(error, OutputError):
        error = error.with_hint("every worker has to see the folder of the output under the same name")
    for facts in ((None, error, cause), (None, error, None)):
        try:
            packed = pickle.dumps(facts)
            pickle.loads(packed)
        except Exception:
            continue
        return packed
    return pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}"), None))


def require_files(plan: Plan) -> None:
    """Refuse a plan whose source is no files that all machines could read.

    Raises:
        OptionError: the source is streamed: other machines are not given what opens it, such as access tokens.
    """
    for source in plan.inputs:
        if not isinstance(source, Path):
            raise OptionError(
                "a cluster does not stream its source", found=source, hint="download it to the shared file system"
            )


def _connected(place: str) -> Any:
    """Return a client of the scheduler at `place`."""
    try:
        import distributed
    except ImportError as error:
        raise UnsupportedError("distributed is not installed", hint="pip install 'gptoss-convert[dask]'") from error
    try:
        with warnings.catch_warnings():  # versions are compared below, in one line
            warnings.simplefilter("ignore")
            return distributed.Client(f"tcp://{place}", timeout=SECONDS_TO_CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        hint = "start one with `dask scheduler`, or look for a firewall"
        raise OptionError(f"no Dask scheduler answers at {place}", hint=hint) from error


def _threads(client: Any) -> int:
    """Return the number of threads of all workers, after a look at who they are."""
    threads: dict[str, int] = client.nthreads()
    if not threads:
        raise OptionError("cluster has no workers", hint="start some with `dask worker`")
    ours = _versions()
    try:
        found = client.run(_versions)
    except Exception as error:
        hint = "install the same version of gptoss-convert on every machine of the cluster"
        raise OptionError(f"workers cannot run gptoss-convert: {error}", hint=hint) from error
    for address, theirs in found.items():
        if theirs != ours:
            raise OptionError(
                f"worker {address} has other versions",
                found=_told(theirs),
                expected=_told(ours),
                hint="install the same ones on every machine of the cluster",
            )
    return sum(threads.values())


def _versions() -> dict[str, str]:
    """Return the versions that have to be the same, so that what is sent is understood and written alike."""
    import distributed

    python = ".".join(platform.python_version_tuple()[:2])
    return {"gptoss-convert": __version__, "distributed": distributed.__version__, "Python": python}


def _told(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
