"""Runs of models on one set of prompts, each made once."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from gptoss_convert.errors import BudgetError
from gptoss_convert.verify.decode import Decoding
from gptoss_convert.verify.prompts import PromptSet
from gptoss_convert.verify.runners import RUNTIMES, Runtime
from gptoss_convert.verify.runners.launch import Run, run_in_child
from gptoss_convert.verify.runners.protocol import Settings

BYTES_PER_LOGPROB = 4

Say = Callable[[str], None]
"""Takes a line that tells what is being done."""


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Runs models and keeps what they computed."""

    prompts: PromptSet
    vocab_size: int
    folder: Path
    """Where recordings go; they are as long as all positions times the vocabulary, in float32."""
    threads: int | None = None
    timeout: float | None = None
    """Seconds for each run."""
    provider: str | None = None
    """Execution provider of the runtimes that have any."""
    say: Say = lambda line: None
    made: dict[tuple[str, Path, Settings], Run] = field(default_factory=dict)

    def of(self, runtime: Runtime, path: Path, *, dtype: str = "float32", imitates: str | None = None) -> Run:
        """Return the run of the model at `path`, which is made if there is none yet.

        Raises:
            BudgetError: the recording would not fit on the disk.
        """
        manner = f" as {imitates} computes" if imitates else "" if dtype == "float32" else f" in {dtype}"
        what = f"{manner}: {self.prompts.positions} positions"
        return self._made(runtime, path, self.settings(runtime, dtype=dtype, imitates=imitates), self.prompts, what)

    def decoded(self, runtime: Runtime, path: Path, decoding: Decoding) -> Run:
        """Return the run of the model at `path` token by token, which is made if there is none yet.

        Raises:
            BudgetError: the recording would not fit on the disk.
        """
        settings = replace(self.settings(runtime), prefixes=decoding.prefixes)
        what = f" token by token: {decoding.positions} positions"
        return self._made(runtime, path, settings, decoding.prompts, what)

    def _made(self, runtime: Runtime, path: Path, settings: Settings, prompts: PromptSet, what: str) -> Run:
        key = (runtime.name, path.absolute(), settings)
        if key not in self.made:
            self.say(f"running {path} in {runtime.name}{what}")
            ids = [prompt.ids for prompt in prompts.prompts]
            folder = self.new_folder(prompts)
            self.made[key] = run_in_child(runtime, path, ids, folder, settings, self.timeout)
        return self.made[key]

    def settings(self, runtime: Runtime, *, dtype: str = "float32", imitates: str | None = None) -> Settings:
        """Return how a model is run."""
        provider = self.provider if runtime.has_providers else None
        return Settings(threads=self.threads, dtype=dtype, imitates=imitates, provider=provider)

    def forget(self, path: Path) -> None:
        """Remove what runs of the model at `path` left; it can no longer be compared."""
        for key in [key for key in self.made if key[1] == path.absolute()]:
            shutil.rmtree(self.made.pop(key).folder, ignore_errors=True)

    def reference(self, path: Path, *, dtype: str = "float32", imitates: str | None = None) -> Run:
        """Return the run of the model at `path` in our own arithmetic, as `of` does."""
        return self.of(RUNTIMES["reference"], path, dtype=dtype, imitates=imitates)

    def new_folder(self, prompts: PromptSet | None = None) -> Path:
        """Return a new folder for a recording of `prompts`; None for all.

        Raises:
            BudgetError: it would not fit on the disk.
        """
        needed = (prompts or self.prompts).positions * self.vocab_size * BYTES_PER_LOGPROB
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise BudgetError(
                "log-probabilities of a run do not fit on the disk",
                file=self.folder,
                found=f"{free} bytes free",
                expected=f"{needed} bytes",
                hint="choose fewer prompts, or another folder with --work",
            )
        return Path(tempfile.mkdtemp(dir=self.folder, prefix="run-"))
