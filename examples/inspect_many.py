"""Compare checkpoints by the numbers in them, whatever their format: those with equal hashes are the same model.

python examples/inspect_many.py gpt-oss-20b gpt-oss-20b.gguf gpt-oss-20b-bf16
"""

import sys
from collections import Counter
from collections.abc import Sequence

import gptoss_convert as gc


def encodings(checkpoint: gc.Checkpoint) -> str:
    """Return in which encodings the tensors are, and how much of each."""
    stored = Counter[str]()
    for tensor in checkpoint.tensors.values():
        stored[tensor.encoding.name] += tensor.nbytes
    return ", ".join(f"{name} {nbytes / 1e6:.1f} MB" for name, nbytes in stored.most_common())


def main(paths: Sequence[str]) -> int:
    """Print what each checkpoint is, its hash, and what it lost against the first; return 1 for unreadable ones."""
    first, exit_code = "", 0
    print(f"{'hash':16}  {'format':12}  checkpoint")
    for path in paths:
        try:
            checkpoint = gc.open(path)
            digest = gc.hash_checkpoint(checkpoint, jobs=2).model  # reads every tensor
        except gc.GptossConvertError as error:
            exit_code = 1
            print(f"{'-':16}  {'-':12}  {path}: {error}")
            continue
        print(f"{digest[:16]}  {checkpoint.format:12}  {path}: {encodings(checkpoint)}")
        first = first or digest
        if digest != first:
            (artifact,) = gc.verify(paths[0], path).artifacts
            print(f"{'':32}{artifact.verdict.reason}")
    return exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
