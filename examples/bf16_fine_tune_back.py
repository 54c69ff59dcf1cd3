"""Bring a fine-tune in BF16 back to MXFP4, and show how much of the tuning is left in four bits.

python examples/bf16_fine_tune_back.py my-finetune gpt-oss-20b my-finetune-mxfp4
"""

import sys

import gptoss_convert as gc


def main(tuned: str, base: str, output: str) -> int:
    """Return 0 if what was written is as good as four bits can be and most of the tuning is left, else 1."""
    written = gc.convert(tuned, output, gc.Mxfp4Options(), scales_from=base)
    print(f"{'tensor':42} {'change':>8} {'tuned':>8} {'moved':>8} {'left':>8}")
    rounded_away = 0
    for tensor in written.report.tensors:
        left = tensor.findings.survival  # empty for tensors that are not in MXFP4
        if not left.tuned:
            continue
        size, kept = left.relative_change or 0, left.share_kept or 0
        name = tensor.transfer.source.name
        print(f"{name:42} {size:8.3%} {left.share_tuned:8.2%} {left.share_moved:8.2%} {kept:8.1%}")
        rounded_away += left.rounded_away
    if rounded_away:
        print(f"most of the tuning of {rounded_away} tensors was rounded away: train longer, or keep them in BF16")
    (artifact,) = gc.verify(tuned, output).artifacts
    print(f"{artifact.verdict.outcome}: {artifact.verdict.reason}")
    return 1 if rounded_away or not artifact.passed else 0


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(f"usage: {sys.argv[0]} TUNED BASE OUTPUT")
    sys.exit(main(*sys.argv[1:]))
