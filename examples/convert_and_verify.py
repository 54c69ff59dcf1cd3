"""Convert a model to GGUF, prove that nothing was lost, and show what became of which numbers.

python examples/convert_and_verify.py gpt-oss-20b gpt-oss-20b.gguf
"""

import argparse
import sys
from pathlib import Path

import gptoss_convert as gc


def main() -> int:
    """Return 0 if the file is the model, and the exit code of the command line otherwise."""
    parser = argparse.ArgumentParser(description="Convert a model to GGUF and verify it.")
    parser.add_argument("source", type=Path, help="folder or GGUF file")
    parser.add_argument("output", type=Path, help="the new GGUF file")
    parser.add_argument("--dense", help="encoding of dense matrices, e.g. q8_0 (default: as in the source)")
    parser.add_argument("--prompts", help="also run the models on these prompts: quick, full or long")
    arguments = parser.parse_args()
    try:
        source = gc.open(arguments.source)
        written = gc.convert(source, arguments.output, gc.GgufOptions(dense=arguments.dense), manifest=True)
        result = gc.verify(source, written.output, prompts=arguments.prompts)
    except gc.GptossConvertError as error:  # one line: what is wrong, in which file, what to do
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{written.output}: {written.plan.nbytes:,} bytes, {written.report.loss}")
    for tensor in written.report.tensors:
        if tensor.findings.changed:
            facts = tensor.as_dict()
            print(f"  rounded to {facts['encoding']}: {facts['name']}")
    (artifact,) = result.artifacts
    print(f"{artifact.verdict.outcome}: {artifact.verdict.reason}")
    return 0 if artifact.passed else 1


if __name__ == "__main__":
    sys.exit(main())
