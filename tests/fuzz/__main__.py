"""Fuzz one reader: `python -m tests.fuzz gguf --seconds 600`, from the root of the repository.

Needs `pip install atheris`. New inputs that reach more code go to the folder that `--corpus` names, and an input
that crashes the reader to the current folder. Figures are printed at the end.
"""

import argparse
import re
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["gptoss_convert"]):
    from tests.fuzz.targets import TARGETS, prepared

KEPT = Path(__file__).parent / "corpus"
_WORDS = re.compile(rb'"[\w.<>|-]{2,40}"|[\w.-]{3,40}')


def main() -> None:
    """Parse the command line and fuzz until the time is over; never returns."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, help="folder for inputs that reach new code")
    parser.add_argument("--longest", type=int, default=16384, help="bytes of an input")
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-"))
    target = prepared(options.target, scratch / "model")
    seeds = scratch / "seeds"
    seeds.mkdir()
    for index, seed in enumerate(target.seeds):
        (seeds / str(index)).write_bytes(seed)
    words = {word for seed in target.seeds for word in _WORDS.findall(seed)}
    escaped = [word.replace(b"\\", b"\\\\").replace(b'"', b'\\"') for word in sorted(words)[:500]]
    (scratch / "words").write_bytes(b"".join(b'"%s"\n' % word for word in escaped))
    for seed in target.seeds:  # imports and caches are made before memory is counted
        target.run(seed, extra=1 << 30)
    corpus = options.corpus or scratch / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    folders = [corpus, seeds, *([KEPT / options.target] if (KEPT / options.target).is_dir() else [])]
    arguments = [f"-max_total_time={options.seconds}", f"-dict={scratch / 'words'}", *map(str, folders)]
    common = ["-timeout=10", "-rss_limit_mb=2048", f"-max_len={options.longest}", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *common, *arguments], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
