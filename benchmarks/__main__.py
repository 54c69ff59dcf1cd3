"""`python -m benchmarks`."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import click

from benchmarks import (
    everything,
    folders,
    footprint,
    headers,
    kernels,
    kill_loop,
    onnx_runtime,
    quantisers,
    reference_runner,
    to_gguf,
    to_onnx,
)


@click.group()
def benchmarks() -> None:
    """Measure conversions side by side with `cp` and with peer tools. Makes and removes its own checkpoints."""


@benchmarks.command("all")
@click.option("--gguf-layers", type=int, multiple=True, default=(2, 6, 12, 24), help="Layers for to-gguf.")
@click.option("--folder-layers", type=int, multiple=True, default=(2, 6), help="Layers for to-bf16 and to-mxfp4.")
@click.option("--onnx-layers", type=int, multiple=True, default=(2,), help="Layers for to-onnx.")
@click.option("--rounds", type=int, default=5, show_default=True, help="Runs of ours and of cp, in turn.")
@click.option("--peer-rounds", type=int, default=1, show_default=True, help="Runs of the peers.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to work (default: a temporary folder).")
@click.option("--json", "results", type=click.Path(path_type=Path), help="File for every single run.")
def run_all(
    gguf_layers: tuple[int, ...],
    folder_layers: tuple[int, ...],
    onnx_layers: tuple[int, ...],
    rounds: int,
    peer_rounds: int,
    folder: Path | None,
    results: Path | None,
) -> None:
    """Run all conversions, and print the table of docs/performance.md.

    24 layers take 45 GB of disk for to-gguf, 6 layers 30 GB for folders.
    """
    rows = []
    for row in everything.measure(
        folder,
        gguf_layers=gguf_layers,
        folder_layers=folder_layers,
        onnx_layers=onnx_layers,
        rounds=rounds,
        peer_rounds=peer_rounds,
    ):
        rows.append(row)
        print(" ".join(row.cells()), file=sys.stderr, flush=True)
        if results is not None:  # what is known stays known if a later benchmark fails
            results.write_text(everything.as_json(rows))
    print("\n".join(everything.markdown(rows)))


@benchmarks.command("headers")
@click.option("--rounds", type=int, default=5, show_default=True, help="Runs of each command, in turn.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to work (default: a temporary folder).")
def run_headers(rounds: int, folder: Path | None) -> None:
    """Time start-up, and the headers of a hollow checkpoint of the size of gpt-oss-120b."""
    with tempfile.TemporaryDirectory(dir=folder) as work:
        total, runs = headers.measure(Path(work) / "work", rounds=rounds)
    rows = [everything.Row(name, headers.REAL_120B.layers, each) for name, each in runs.items()]
    print(f"{total} bytes of weights")
    print("\n".join(everything.markdown(rows)))


@benchmarks.command("to-gguf")
@click.option("--layers", type=int, multiple=True, default=(2,), help="Full-width layers (default: 2). Repeatable.")
@click.option("--rounds", type=int, default=5, show_default=True, help="Runs of cp and of ours, in turn.")
@click.option("--peer-rounds", type=int, default=1, show_default=True, help="Runs of llama.cpp's converter.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to work (default: a temporary folder).")
def run_to_gguf(layers: tuple[int, ...], rounds: int, peer_rounds: int, folder: Path | None) -> None:
    """Convert full-width slices of gpt-oss-20b with the real tokenizer."""
    for count in layers:
        with tempfile.TemporaryDirectory(dir=folder) as work:
            result = to_gguf.measure(Path(work) / "work", layers=count, rounds=rounds, peer_rounds=peer_rounds)
        print("\n".join(result.lines()), flush=True)


@benchmarks.command("to-onnx")
@click.option("--layers", type=int, multiple=True, default=(2,), help="Full-width layers (default: 2). Repeatable.")
@click.option("--rounds", type=int, default=3, show_default=True, help="Runs of our command and of cp, in turn.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to work (default: a temporary folder).")
def run_to_onnx(layers: tuple[int, ...], rounds: int, folder: Path | None) -> None:
    """Convert full-width slices of gpt-oss-20b to ONNX."""
    for count in layers:
        with tempfile.TemporaryDirectory(dir=folder) as work:
            result = to_onnx.measure(Path(work) / "work", layers=count, rounds=rounds)
        print("\n".join(result.lines()), flush=True)


@benchmarks.command("onnx-runtime")
@click.option("--layers", type=int, default=2, show_default=True, help="Full-width layers.")
@click.option("--rounds", type=int, default=1, show_default=True, help="Runs of every folder, in turn.")
@click.option(
    "--tokens", "prompts", type=int, multiple=True, default=(256, 1024), show_default=True,
    help="Lengths of prompts; after the first, single tokens are computed.",
)  # fmt: skip
@click.option("--decode", type=int, default=8, show_default=True, help="Single tokens.")
@click.option(
    "--way", "ways", type=click.Choice([*onnx_runtime.WAYS, onnx_runtime.BUILDER]), multiple=True,
    help="Folders (default: all). Repeatable.",
)  # fmt: skip
@click.option("--json", "document", type=click.Path(path_type=Path), help="Also write the figures to this file.")
@click.option("--compare/--no-compare", default=True, help="Compare distributions with the reference runner's.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to work (default: a temporary folder).")
def run_onnx_runtime(
    layers: int,
    rounds: int,
    prompts: tuple[int, ...],
    decode: int,
    ways: tuple[str, ...],
    document: Path | None,
    compare: bool,
    folder: Path | None,
) -> None:
    """Run ONNX folders of a full-width slice on the processor, beside one by onnxruntime-genai's builder.

    The builder needs 13 GB of memory for two layers.
    """
    with tempfile.TemporaryDirectory(dir=folder) as work:
        result = onnx_runtime.measure(
            Path(work) / "work",
            layers=layers,
            rounds=rounds,
            prompts=prompts,
            decode=decode,
            ways=ways or (*onnx_runtime.WAYS, onnx_runtime.BUILDER),
            compared=compare,
        )
    if document is not None:
        document.write_text(json.dumps(result.as_dict(), indent=2) + "\n", encoding="utf-8")
    print("\n".join(result.lines()), flush=True)


@benchmarks.command("kernels")
@click.option("--rounds", type=int, default=7, show_default=True, help="Runs of every kernel, in turn.")
def run_kernels(rounds: int) -> None:
    """Run the conversion and hashing kernels on one expert in memory."""
    print("\n".join(kernels.measure(rounds)))


@benchmarks.command("folders")
@click.option("--layers", type=int, multiple=True, default=(2,), help="Full-width layers (default: 2). Repeatable.")
@click.option("--rounds", type=int, default=3, show_default=True, help="Runs of each of our commands and of cp.")
@click.option("--peer-rounds", type=int, default=1, show_default=True, help="Runs of transformers.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to work (default: a temporary folder).")
def run_folders(layers: tuple[int, ...], rounds: int, peer_rounds: int, folder: Path | None) -> None:
    """Convert full-width slices of gpt-oss-20b to BF16, and back to MXFP4."""
    for count in layers:
        with tempfile.TemporaryDirectory(dir=folder) as work:
            result = folders.measure(Path(work) / "work", layers=count, rounds=rounds, peer_rounds=peer_rounds)
        print("\n".join(result.lines()), flush=True)


@benchmarks.command("quantisers")
@click.option("--rows", type=int, default=1024, show_default=True, help="Rows of the made-up weights.")
@click.option("--columns", type=int, default=2880, show_default=True, help="Columns of the made-up weights.")
@click.option("--rounds", type=int, default=5, show_default=True, help="Runs of each quantiser for its speed.")
def run_quantisers(rows: int, columns: int, rounds: int) -> None:
    """Compare the loss of MXFP4 quantisers, what they leave of fine-tunes, and the speed of ours."""
    for line in quantisers.measure(rows, columns, rounds):
        print(line, flush=True)


@benchmarks.command("reference-runner")
@click.option("--layers", type=int, multiple=True, default=(2,), help="Full-width layers (default: 2). Repeatable.")
@click.option("--tokens", type=int, default=512, show_default=True, help="Length of the prompt.")
@click.option("--rounds", type=int, default=3, show_default=True, help="Runs of ours.")
@click.option(
    "--peer-rounds", type=int, default=3, show_default=True, help="Runs of transformers, in turn with ours."
)
@click.option("--folder", type=click.Path(path_type=Path), help="Where to work (default: a temporary folder).")
def run_reference_runner(
    layers: tuple[int, ...], tokens: int, rounds: int, peer_rounds: int, folder: Path | None
) -> None:
    """Run full-width slices of gpt-oss-20b in float32, with the reference runner and with transformers.

    Transformers needs 6 GB for each layer or two, and 10 GB besides.
    """
    for count in layers:
        with tempfile.TemporaryDirectory(dir=folder) as work:
            result = reference_runner.measure(
                Path(work) / "work", layers=count, tokens=tokens, rounds=rounds, peer_rounds=peer_rounds
            )
        print("\n".join(result.lines()), flush=True)


@benchmarks.command("footprint")
@click.option(
    "--runtime", "runtimes", multiple=True, default=footprint.RUNTIMES, help="Of these runtimes (default: all)."
)
@click.option("--prompt", type=int, default=1024, show_default=True, help="Tokens that are computed.")
@click.option("--threads", type=int, default=2, show_default=True, help="Of the runtimes.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to work (default: a temporary folder).")
def run_footprint(runtimes: tuple[str, ...], prompt: int, threads: int, folder: Path | None) -> None:
    """Predict and measure the memory of models of three sizes. Takes 14 GB of disk, and 8 GB of memory."""
    with tempfile.TemporaryDirectory(dir=folder) as work:
        rows = footprint.measure(Path(work), runtimes=runtimes, prompt=prompt, threads=threads)
        for line in footprint.lines(rows):
            print(line, flush=True)


@benchmarks.command("kill-loop")
@click.option("--rounds", type=int, default=200, show_default=True, help="Conversions to kill and resume.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the random moments.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to work (default: a temporary folder).")
def run_kill_loop(rounds: int, seed: int, folder: Path | None) -> None:
    """Kill conversions of a tiny model at random moments, resume them, and compare the bytes."""
    with tempfile.TemporaryDirectory(dir=folder) as work:
        print("\n".join(kill_loop.measure(Path(work), rounds, seed)))


if __name__ == "__main__":
    benchmarks()
