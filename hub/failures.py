"""What goes wrong between here and the Hub: what is tried again, and the one line that says what is given up."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx2
import tenacity
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import parse_ratelimit_headers

from gptoss_convert.errors import GptossConvertError, InputError, OutputError

Result = TypeVar("Result")

TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that say that the same request may succeed later."""


class TransientError(ConnectionError):
    """A request that failed in a way that may pass; for readers of files an `OSError` as any other."""

    def __init__(self, what: str, *, wait: float | None = None) -> None:
        super().__init__(what)
        self.wait = wait
        """Seconds that the server asks to wait."""


@dataclass(frozen=True, kw_only=True)
class Retries:
    """How often and how patiently a request is repeated."""

    attempts: int = 8
    first_wait: float = 0.5
    """Seconds before the second attempt, doubled each time, with up to as much again by chance."""
    longest_wait: float = 30.0
    longest_asked: float = 330.0
    """Seconds that a server may ask for: the Hub counts requests in windows of five minutes."""

    def run(self, attempt: Callable[[], Result]) -> Result:
        """Return what `attempt` returns, called again after each `TransientError` until it is enough.

        Raises:
            TransientError: the last attempt failed too.
        """
        backoff = tenacity.wait_exponential(multiplier=self.first_wait, max=self.longest_wait)
        chance = tenacity.wait_random(0, self.first_wait)

        def wait(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome is not None else None
            asked = error.wait if isinstance(error, TransientError) else None
            own = backoff(state) + chance(state)
            return own if asked is None else max(own, min(asked, self.longest_asked))

        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self.attempts),
            retry=tenacity.retry_if_exception_type(TransientError),
            wait=wait,
            reraise=True,
        )
        try:
            return retrying(attempt)
        except TransientError as error:
            raise TransientError(f"gave up after {self.attempts} attempts: {error}") from error


RETRIES = Retries()


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a refusal asks to wait: `Retry-After`, or the Hub's own header of rate limits."""
    with contextlib.suppress(ValueError):
        return max(float(headers.get("Retry-After", "")), 0.0)
    limit = parse_ratelimit_headers(headers)
    return None if limit is None or limit.remaining > 0 else float(limit.reset_in_seconds)


@contextlib.contextmanager
def transient_failures() -> Iterator[None]:
    """Turn failures of a call of `huggingface_hub` that may pass into `TransientError`."""
    try:
        yield
    except OfflineModeIsEnabled:
        raise
    except HfHubHTTPError as error:
        if error.response.status_code in TRANSIENT_STATUS:
            raise TransientError(
                f"the Hub answered {error.response.status_code}", wait=asked_wait(error.response.headers)
            ) from error
        raise
    except httpx2.TransportError as error:
        raise TransientError(f"no answer from the Hub ({type(error).__name__})") from error
    except IncompleteSnapshotError:
        raise
    except LocalEntryNotFoundError as error:  # it was not in the cache, and the Hub could not be asked
        cause = error.__cause__
        if isinstance(cause, httpx2.TransportError) or (
            isinstance(cause, HfHubHTTPError) and cause.response.status_code in TRANSIENT_STATUS
        ):
            raise TransientError(f"no answer from the Hub ({type(cause).__name__})") from error
        raise


@contextlib.contextmanager
def reported(place: str, *, cache: Path | None = None) -> Iterator[None]:
    """Turn every failure of a call of `huggingface_hub` into one line about `place`.

    What the library itself says is left out: it may go on for several lines and name addresses that hold secrets.

    Args:
        place: what the user named.
        cache: where downloads are written.

    Raises:
        InputError: the Hub does not have it, does not give it, or does not answer.
        OutputError: the cache cannot be written.
    """
    try:
        yield
    except GptossConvertError:
        raise
    except TransientError as error:
        raise InputError(str(error), file=place) from error
    except GatedRepoError as error:
        raise InputError(
            "access to this repository is restricted",
            file=place,
            hint="ask for access on its page, and log in with `hf auth login`",
        ) from error
    except RepositoryNotFoundError as error:
        raise InputError(
            "no such path here, and no such repository on the Hub, or it is private",
            file=place,
            hint="check the name; for a private one, log in with `hf auth login`",
        ) from error
    except RevisionNotFoundError as error:
        raise InputError("repository has no such revision", file=place) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise InputError(
            "not in the cache, or not all of it",
            file=place,
            hint="download it without --offline (and without HF_HUB_OFFLINE)",
        ) from error
    except EntryNotFoundError as error:
        raise InputError("repository has no such file", file=place) from error
    except HfHubHTTPError as error:
        raise InputError(
            "the Hub refused",
            file=place,
            found=f"status {error.response.status_code}",
            hint="log in with `hf auth login`" if error.response.status_code in (401, 403) else None,
        ) from error
    except HFValidationError as error:
        raise InputError("the Hub has no repositories of such a name", file=place) from error
    except httpx2.HTTPError as error:
        raise InputError(f"cannot reach the Hub ({type(error).__name__})", file=place) from error
    except OSError as error:
        no_space = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))
        raise OutputError(
            f"cannot write to the cache: {error.strerror or type(error).__name__}",
            file=error.filename or cache or constants.HF_HUB_CACHE,
            hint="free some space, or set HF_HUB_CACHE to another disk" if no_space else None,
        ) from error
