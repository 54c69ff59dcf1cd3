"""Recordings come back as they were written, and damaged ones are refused."""

import numpy as np
import pytest

from gptoss_convert.errors import InputError
from gptoss_convert.verify.recording import Recording, RecordingWriter
from gptoss_convert.verify.runners.protocol import Scores
from tests.support.recordings import log_softmax
from tests.support.recordings import recording as made

LENGTHS = (3, 5)
VOCAB = 11


def blocks(tokens=False, routing=False):
    random = np.random.default_rng(1)
    for prompt, start, count in ((0, 0, 3), (1, 0, 2), (1, 2, 3)):
        yield Scores(
            prompt=prompt,
            start=start,
            logprobs=random.normal(size=(count, VOCAB)).astype(np.float32),
            tokens=np.array([random.permutation(100)[:VOCAB] for _ in range(count)], np.int32) if tokens else None,
            routing=random.integers(0, 32, (count, 4, 2)).astype(np.int16) if routing else None,
            router_margins=random.random((count, 4)).astype(np.float32) if routing else None,
        )


def record(folder, scores):
    with RecordingWriter(folder, LENGTHS) as writer:
        for item in scores:
            writer.add(item)
        writer.finish()
    return Recording(folder)


def test_whole_distributions_come_back_normalised(tmp_path):
    recording = record(tmp_path, blocks())
    written = np.concatenate([item.logprobs for item in blocks()]).astype(np.float64)
    read = recording.distributions(0, 8)
    assert read.tokens is None
    assert recording.is_whole
    np.testing.assert_allclose(np.exp(read.logprobs).sum(axis=1), 1, rtol=1e-12)
    difference = read.logprobs - written
    np.testing.assert_allclose(difference, np.broadcast_to(difference[:, :1], difference.shape), atol=1e-12)
    np.testing.assert_array_equal(recording.distributions(2, 6).logprobs, read.logprobs[2:6])


def test_likeliest_tokens_and_routing_come_back(tmp_path):
    recording = record(tmp_path, blocks(tokens=True, routing=True))
    read = recording.distributions(0, 8)
    assert not recording.is_whole
    np.testing.assert_array_equal(read.tokens, np.concatenate([item.tokens for item in blocks(True, True)]))
    np.testing.assert_array_equal(read.logprobs, np.concatenate([item.logprobs for item in blocks(True, True)]))
    np.testing.assert_array_equal(
        recording.routing(), np.concatenate([item.routing for item in blocks(True, True)])
    )
    np.testing.assert_array_equal(
        recording.router_margins(), np.concatenate([item.router_margins for item in blocks(True, True)])
    )


def test_positions_know_their_prompts(tmp_path):
    recording = record(tmp_path, blocks())
    assert recording.prompt_of_position.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert recording.place_in_prompt.tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert recording.routing() is None
    assert recording.router_margins() is None


def test_a_run_that_ends_early_leaves_no_recording(tmp_path):
    with pytest.raises(ValueError, match="ended before prompt 1, position 2"):
        record(tmp_path, list(blocks())[:2])
    with pytest.raises(InputError, match="missing"):
        Recording(tmp_path)


@pytest.mark.parametrize("order", [[1], [0, 2], [0, 1, 1], [0, 0]])
def test_scores_out_of_order_are_refused(tmp_path, order):
    scores = list(blocks())
    with pytest.raises(ValueError, match="come at prompt"):
        record(tmp_path, [scores[index] for index in order])


def test_a_file_of_another_size_is_refused(tmp_path):
    record(tmp_path, blocks())
    with (tmp_path / "logprobs.f32").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(InputError, match=r"recording is damaged.*found 353 bytes, expected 352"):
        Recording(tmp_path)


@pytest.mark.parametrize(
    "facts",
    [
        b"{",
        b'{"schema_version": 2, "prompt_lengths": [1], "shapes": {"logprobs.f32": [1]}}',
        b'{"schema_version": 1, "prompt_lengths": [1], "shapes": {}}',
        b'{"schema_version": 1, "prompt_lengths": [1], "shapes": {"logprobs.f32": [1, 2]}}',
        b'{"schema_version": 1, "prompt_lengths": [-1], "shapes": {"logprobs.f32": [1]}}',
        b'{"schema_version": 1, "prompt_lengths": [1], "shapes": {"logprobs.f32": [-1]}}',
    ],
)
def test_damaged_facts_are_refused(tmp_path, facts):
    (tmp_path / "recording.json").write_bytes(facts)
    (tmp_path / "logprobs.f32").write_bytes(b"\0\0\0\0")
    with pytest.raises(InputError):
        Recording(tmp_path)


@pytest.fixture
def whole(tmp_path):
    """Three prompts of 4, 6 and 5 positions, of which the second is decoded from its third position on."""
    random = np.random.default_rng(2)
    logprobs = log_softmax(random.normal(size=(15, VOCAB)))
    return made(
        tmp_path / "whole",
        (4, 6, 5),
        logprobs,
        routing=random.integers(0, 8, (15, 2, 1)),
        margins=random.random((15, 2)),
        prefixes=(4, 2, 5),
    )


def test_decoded_positions_are_known(whole):
    assert np.flatnonzero(whole.decoded()).tolist() == [6, 7, 8, 9]


def test_positions_are_counted_as_they_were_computed(tmp_path):
    with RecordingWriter(tmp_path, (2,)) as writer:
        for start in range(2):
            writer.add(Scores(prompt=0, start=start, logprobs=np.zeros((1, 3), np.float32), decoded=start == 1))
        assert (writer.prefilled, writer.decoded) == (1, 1)


def test_an_excerpt_has_the_rows_of_its_prompts(whole):
    part = whole.excerpt([2, 1], [3, 5])
    rows = [10, 11, 12, 4, 5, 6, 7, 8]
    assert (part.prompt_lengths, part.positions) == ((3, 5), 8)
    assert part.place_in_prompt.tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    everything = whole.distributions(0, 15).logprobs
    for start, stop in ((0, 8), (2, 4), (0, 3), (4, 7), (3, 3)):
        np.testing.assert_array_equal(part.distributions(start, stop).logprobs, everything[rows[start:stop]])
    np.testing.assert_array_equal(part.routing(), whole.routing()[rows])
    np.testing.assert_array_equal(part.router_margins(), whole.router_margins()[rows])
    assert part.decoded().tolist() == [False] * 5 + [True] * 3
    assert whole.positions == 15


def test_an_excerpt_is_no_longer_than_the_prompts(whole):
    with pytest.raises(ValueError, match="no excerpt"):
        whole.excerpt([0], [5])
