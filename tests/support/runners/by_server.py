"""llama.cpp through xllamacpp, whatever else is installed."""

from contextlib import AbstractContextManager
from pathlib import Path

from gptoss_convert.formats import open_checkpoint
from gptoss_convert.verify.runners import llama_cpp_server
from gptoss_convert.verify.runners.llama_cpp import LlamaCppRunner
from gptoss_convert.verify.runners.protocol import Session, Settings


class Runner(LlamaCppRunner):
    def open(self, artifact: Path, settings: Settings) -> AbstractContextManager[Session]:
        return llama_cpp_server.open_session(artifact, open_checkpoint(artifact).config, settings)


RUNNER = Runner()
