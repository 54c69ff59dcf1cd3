"""What a deviation is made of.

The way from the reference to what a user gets is cut where the causes part:

    reference ── departures ─→ reference as the runtime computes it ─┐
        │                                                             │ arithmetic
        │ file                                                        ▼
        ▼                                                    most exact file, in the runtime
    artifact, computed exactly ── runtime ─→ artifact, in the runtime ◄── conversion ┘
        │                                         │ cache
        └──────────────────── decode ───────────→ artifact, in the runtime, token by token

`arithmetic` and `conversion` need another file; the others need nothing but the artifact.
"""

TOTAL = "total"
"""Reference, and artifact in the runtime."""
DEPARTURES = "departures"
"""Reference, and reference computed as the runtime is known to."""
FILE = "file"
"""Reference, and artifact, both computed exactly."""
RUNTIME = "runtime"
"""Artifact computed exactly, but for known departures, and artifact in the runtime."""
ARITHMETIC = "arithmetic"
"""Reference computed exactly, but for known departures, and the most exact file in the runtime."""
CONVERSION = "conversion"
"""The most exact file in the runtime, and the artifact in the runtime."""
DECODE = "decode"
"""Artifact computed exactly, and artifact in the runtime, token by token on its KV cache."""
CACHE = "cache"
"""Artifact in the runtime, many positions at once, and token by token."""

ARTIFACT = "artifact"
"""Reference computed exactly, but for known departures, and artifact in the runtime: `file` and `runtime` in one,
where the artifact cannot be computed exactly."""

PARTS = (TOTAL, FILE, DEPARTURES, RUNTIME, ARTIFACT, ARITHMETIC, CONVERSION, DECODE, CACHE)

IN_WORDS = {
    TOTAL: "all together",
    FILE: "the file, computed exactly",
    DEPARTURES: "known departures of {}",
    RUNTIME: "arithmetic of {}, this file",
    ARTIFACT: "the file and {}",
    ARITHMETIC: "... and the most exact file",
    CONVERSION: "the two files in {}",
    DECODE: "decode, token by token",
    CACHE: "... and many at once",
}
"""What the figures of a part are shown under; `{}` stands for the runtime."""
