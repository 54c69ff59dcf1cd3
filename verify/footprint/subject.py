"""What is asked about: an artifact, or a form of a model of which only the configuration is there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from gptoss_convert.assets import CONFIG, read_json_object
from gptoss_convert.checkpoint import Checkpoint, ModelConfig
from gptoss_convert.errors import OptionError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.formats.huggingface import parse_config
from gptoss_convert.verify.footprint.weights import (
    FORMS,
    Form,
    WeightGroup,
    total,
    weights_of_checkpoint,
    weights_of_form,
)
from gptoss_convert.verify.runners.genai_config import read_genai_config

PUBLISHED_MERGES_PER_TOKEN = 446_189 / 201_088
"""Of the tokenizer that all published models have; taken where no tokenizer is there to be counted."""
PUBLISHED_FORM = "mxfp4"
"""The form of the repositories on the Hub."""
ROPE_TABLE_TYPE_BYTES = 4
"""Graphs hold the sines and cosines of every position in float32."""


@dataclass(frozen=True, kw_only=True)
class GraphFacts:
    """What only an ONNX folder says."""

    provider: str = "cpu"
    """Execution provider that it is made for, by onnxruntime-genai's name."""
    prepacks: bool = False
    """Whether the runtime may copy weights into an order of its own when it loads them."""
    window_cells: int | None = None
    """Positions that layers with a window keep; None for all."""
    positions_at_once: int | None = None
    """The most positions that the folder asks to be computed at once."""
    file_bytes: int = 0
    """Bytes of the graph itself, without weights."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model in some form."""

    path: Path
    form: str | None
    """The form that was asked for in place of the one on disk; None for an artifact as it is."""
    format: str
    """Name of the format in `gptoss_convert.formats.FORMATS`."""
    config: ModelConfig
    weights: tuple[WeightGroup, ...]
    header_bytes: int
    """Bytes of the files that are no weights."""
    vocabulary_entries: int
    """Tokens and merges of the tokenizer."""
    graph: GraphFacts | None = None
    """None unless it is an ONNX folder."""

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        return total(self.weights)


def open_subject(path: Path, form: str | None = None) -> Subject:
    """Read headers of an artifact, and say what it would be in `form` if one is named.

    A folder with nothing but a `config.json` of Hugging Face's needs a form.

    Raises:
        InputError: the artifact is damaged or not sound.
        OptionError: there is no such form, or one is needed.
        UnsupportedError: it is another kind of model.
    """
    if form is not None and form not in FORMS:
        raise OptionError("no such form", found=form, expected=" or ".join(FORMS))
    if _is_bare_configuration(path):
        if form is None:
            raise OptionError(
                "there are no weights beside the configuration",
                file=path,
                hint="say with --as in which form: " + ", ".join(FORMS),
            )
        config = parse_config(read_json_object(path / CONFIG), path / CONFIG)
        return _imagined(path, config, FORMS[form], int(config.vocab_size * (1 + PUBLISHED_MERGES_PER_TOKEN)))
    checkpoint = open_checkpoint(path)
    checkpoint.require_sound()
    entries = _vocabulary_entries(checkpoint)
    if form is not None:
        return _imagined(path, checkpoint.config, FORMS[form], entries)
    return _found(checkpoint, entries)


def open_source(path: Path) -> Subject:
    """Read headers of a model that is to be converted.

    One of which only the configuration is there is taken for what is published: experts in MXFP4, all else in
    bfloat16.

    Raises:
        InputError: the model is damaged or not sound.
        UnsupportedError: it is another kind of model.
    """
    return open_subject(path, PUBLISHED_FORM if _is_bare_configuration(path) else None)


def in_form(source: Subject, form: str) -> Subject:
    """Return what a model would be in `form`, one of `FORMS`."""
    return _imagined(source.path, source.config, FORMS[form], source.vocabulary_entries)


def _is_bare_configuration(path: Path) -> bool:
    if not path.is_dir() or not (path / CONFIG).is_file():
        return False
    return not any(file.suffix in (".safetensors", ".onnx", ".gguf") for file in path.iterdir())


def _found(checkpoint: Checkpoint, entries: int) -> Subject:
    weights = weights_of_checkpoint(checkpoint)
    graph = graph_facts(checkpoint.path) if checkpoint.format == "onnx" else None
    stored = sum(file.stat().st_size for file in checkpoint.files)
    return Subject(
        path=checkpoint.path,
        form=None,
        format=checkpoint.format,
        config=checkpoint.config,
        weights=weights,
        header_bytes=max(stored - total(weights), 0),
        vocabulary_entries=entries,
        graph=graph,
    )


def _imagined(path: Path, config: ModelConfig, form: Form, entries: int) -> Subject:
    graph, tables = None, 0
    if form.format == "onnx":
        assert form.provider is not None
        tables = 2 * config.max_position_embeddings * (config.head_dim // 2) * ROPE_TABLE_TYPE_BYTES
        graph = GraphFacts(
            provider=form.provider,
            prepacks=form.provider == "cpu" and form.experts != "int8-block",
            window_cells=None,
            positions_at_once=256,
        )
    return Subject(
        path=path,
        form=form.name,
        format=form.format,
        config=config,
        weights=weights_of_form(config, form),
        header_bytes=tables,
        vocabulary_entries=entries,
        graph=graph,
    )


def graph_facts(folder: Path) -> GraphFacts:
    """Return what an ONNX folder says of how it is to be run.

    Raises:
        InputError: its genai_config.json is missing or damaged.
    """
    said = read_genai_config(folder)
    decoder = said.model.decoder
    providers = [name for options in decoder.session_options.provider_options for name in options]
    facts = GraphFacts(
        provider=providers[0].lower() if providers else "cpu",
        prepacks=decoder.session_options.disable_prepacking != "1",
        positions_at_once=said.search.chunk_size,
        file_bytes=(folder / decoder.filename).stat().st_size,
    )
    window = decoder.sliding_window
    return facts if window is None else replace(facts, window_cells=window.window_size)


def _vocabulary_entries(checkpoint: Checkpoint) -> int:
    if checkpoint.tokenizer is None:
        return int(checkpoint.config.vocab_size * (1 + PUBLISHED_MERGES_PER_TOKEN))
    vocabulary = checkpoint.tokenizer.vocabulary()
    return len(vocabulary.tokens) + len(vocabulary.merges)
