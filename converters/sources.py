"""What a conversion demands of its source, whatever the target."""

from __future__ import annotations

from collections.abc import Iterable

from gptoss_convert.converters.plan import Transfer
from gptoss_convert.errors import UnsupportedError

ALLOW_LOSSY_SOURCE = "--allow-lossy-source"
"""The option of the command line that lifts `require_faithful`."""


def require_faithful(transfers: Iterable[Transfer], *, allow_lossy: bool) -> None:
    """Refuse to decode numbers that were rounded when the source was stored, unless that is allowed.

    Such a source is not the published model any more, which its copy in a wider encoding would hide. Copying its
    codes needs no permission.

    Raises:
        UnsupportedError: a tensor in a rounding encoding would get another one; the first is named.
    """
    if allow_lossy:
        return
    for transfer in transfers:
        source, target = transfer.source.encoding, transfer.target.encoding
        if source.rounds and source != target:
            raise UnsupportedError(
                f"numbers of the source were rounded when it was stored, and would become {target.name}",
                file=transfer.source.file,
                tensor=transfer.source.name,
                found=source.name,
                expected="an encoding that gpt-oss is published in: bf16 or mxfp4",
                hint=f"keep {source.name}, or convert the rounded numbers with {ALLOW_LOSSY_SOURCE}",
            )


def require_decodable(transfers: Iterable[Transfer]) -> None:
    """Refuse to convert numbers whose encoding has no codec; copying them needs none.

    Raises:
        UnsupportedError: there is such a tensor; the first is named.
    """
    for transfer in transfers:
        source = transfer.source
        if not source.encoding.can_decode and source.encoding != transfer.target.encoding:
            raise UnsupportedError(
                "numbers of the source cannot be decoded",
                file=source.file,
                tensor=source.name,
                found=source.encoding.name,
            )
