"""Runs of a reference that was recorded: they are taken out of the pack."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from gptoss_convert.verify.pack.reader import Pack
from gptoss_convert.verify.runners import RUNTIMES
from gptoss_convert.verify.runners.launch import Run, Status
from gptoss_convert.verify.runs import Runs


@dataclass(frozen=True, kw_only=True)
class PackedRuns(Runs):
    """Runs artifacts, and knows what the reference computed."""

    pack: Pack

    def reference(self, path: Path, *, dtype: str = "float32", imitates: str | None = None) -> Run:
        """Return the run of the pack's reference, a missing one if it was not recorded; all else as in `Runs`.

        Raises:
            BudgetError: the recording would not fit on the disk.
            InputError: the pack is damaged.
        """
        if path.absolute() != self.pack.path.absolute():
            return super().reference(path, dtype=dtype, imitates=imitates)
        own = RUNTIMES["reference"]
        settings = self.settings(own, dtype=dtype, imitates=imitates)
        key = (own.name, path.absolute(), settings)
        if key not in self.made:
            folder = self.new_folder()
            run = Run(runtime=own.name, artifact=path, settings=settings, folder=folder, status=Status.MISSING)
            recorded = self.pack.runs.get(imitates) if dtype == "float32" else None
            if recorded is None:
                manner = f"as {imitates} computes" if imitates else f"in {dtype}"
                self.made[key] = replace(run, reason=f"the pack has no run {manner}; record the reference again")
            else:
                recorded.extract(folder)
                self.made[key] = replace(
                    run, status=Status.COMPLETED, versions=recorded.versions, run_seconds=recorded.seconds
                )
        return self.made[key]
