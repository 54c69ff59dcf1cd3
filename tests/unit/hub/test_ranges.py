"""Ranges of a file on the Hub: what is tried again, what is refused, and that no wrong byte gets through."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

import numpy as np
import pytest

from gptoss_convert.errors import InputError
from gptoss_convert.formats.storage import FileRef
from gptoss_convert.hub.path import HubPath, Snapshot, open_remote
from gptoss_convert.hub.reference import HubReference
from tests.support import hub_server
from tests.support.hub_server import Fault, HubServer
from tests.unit.hub.conftest import WEIGHTS

MODEL = HubReference("owner", "model")


@pytest.fixture
def file(server: HubServer) -> FileRef:
    return FileRef.at(open_remote(MODEL) / "model.safetensors")


def test_bytes_are_read_from_any_place(file: FileRef, server: HubServer) -> None:
    assert file.size == len(WEIGHTS)
    assert file.read(0, 10) == WEIGHTS[:10]
    assert file.read(99_990, 10) == WEIGHTS[-10:]
    assert file.read(500, 0) == b""
    assert file.read(0, len(WEIGHTS)) == WEIGHTS
    assert [request.range for request in server.ranges] == ["bytes=0-9", "bytes=99990-99999", "bytes=0-99999"]


def test_end_of_the_file_is_an_error(file: FileRef) -> None:
    with pytest.raises(InputError, match="truncated"):
        file.read(99_990, 20)


def test_address_is_asked_for_once_whatever_is_read(file: FileRef, server: HubServer) -> None:
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda start: file.read(start, 1000), range(0, 100_000, 1000)))
    assert b"".join(parts) == WEIGHTS
    assert len([request for request in server.seen if request.method == "HEAD"]) == 1
    assert server.sent == len(WEIGHTS)


def test_file_is_a_value_that_another_process_can_read(file: FileRef) -> None:
    copy = pickle.loads(pickle.dumps(file))
    assert copy == file
    assert hash(copy) == hash(file)
    assert copy.read(3, 4) == WEIGHTS[3:7]


@pytest.mark.parametrize(
    "fault",
    [hub_server.broken_connection, hub_server.short_body, hub_server.unavailable, hub_server.too_many_requests],
)
def test_failure_that_passes_is_tried_again(
    fault: Fault, file: FileRef, server: HubServer, waits: list[float]
) -> None:
    server.faults = {0: fault, 1: fault}
    assert file.read(1000, 4000) == WEIGHTS[1000:5000]
    assert len(waits) == 2


def test_what_came_before_a_connection_broke_is_kept(file: FileRef, server: HubServer) -> None:
    server.faults = {0: hub_server.broken_connection}
    assert file.read(0, 8000) == WEIGHTS[:8000]
    assert [request.range for request in server.ranges] == ["bytes=0-7999", "bytes=4000-7999"]
    assert server.sent == 8000


def test_waits_double_and_servers_may_ask_for_more(file: FileRef, server: HubServer, waits: list[float]) -> None:
    server.faults = dict.fromkeys(range(4), hub_server.unavailable)
    file.read(0, 10)
    for number, wait in enumerate(waits):
        assert 0.5 * 2**number <= wait <= 0.5 * 2**number + 0.5
    waits.clear()
    server.faults = {len(server.ranges): hub_server.too_many_requests}
    file.read(0, 10)
    assert waits == [7]


def test_address_that_expired_is_asked_for_again(file: FileRef, server: HubServer) -> None:
    server.faults = {0: hub_server.expired}
    assert file.read(0, 10) == WEIGHTS[:10]
    assert len([request for request in server.seen if request.method == "HEAD"]) == 2


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (hub_server.another_range, "another range.*found bytes 11-20/100000, expected bytes 10-19/100000"),
        (hub_server.another_size, "another range.*found bytes 10-19/100001"),
        (hub_server.no_ranges, "does not serve ranges"),
        (hub_server.long_body, "more than the range"),
        (hub_server.compressed, "compressed"),
        (hub_server.not_found, "refused a range.*status 404"),
    ],
)
def test_wrong_answer_is_refused_at_once(
    fault: Fault, message: str, file: FileRef, server: HubServer, waits: list[float]
) -> None:
    server.faults = {-1: fault}
    with pytest.raises(InputError, match=message) as caught:
        file.read(10, 10)
    assert waits == []
    assert "signature" not in str(caught.value)


def test_other_version_of_a_file_is_refused(file: FileRef, server: HubServer) -> None:
    file.read(0, 10)
    server.faults = {-1: hub_server.another_version}
    with pytest.raises(InputError, match="changed while it was read"):
        file.read(0, 10)


def test_server_that_stays_down_is_given_up(file: FileRef, server: HubServer, waits: list[float]) -> None:
    server.faults = {-1: hub_server.broken_connection}
    with pytest.raises(InputError, match="gave up after 8 attempts: connection failed") as caught:
        file.read(0, 100_000)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    assert len(waits) == 7


def test_file_that_is_not_as_listed_is_refused(server: HubServer) -> None:
    snapshot = Snapshot.of(MODEL)
    (server.folder / "model.safetensors").write_bytes(WEIGHTS[::-1])
    with pytest.raises(InputError, match="Hub has another contents than it listed"):
        FileRef.at(HubPath(snapshot, PurePosixPath("model.safetensors")))  # type: ignore[arg-type]


def test_token_goes_to_the_hub_alone(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.token = "hf_secret"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    file = FileRef.at(open_remote(MODEL) / "model.safetensors")
    assert file.read(0, 4) == WEIGHTS[:4]
    assert {request.authorization for request in server.ranges} == {None}


def test_rows_are_read_into_arrays(file: FileRef) -> None:
    buffer = np.empty(1000, "<u2")
    file.read_into(buffer, 8)
    assert buffer.tobytes() == WEIGHTS[8:2008]
