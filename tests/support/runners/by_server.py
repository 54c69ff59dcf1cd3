"""llama.cpp through xllamacpp, whatever else is installed."""

from gptoss_convert.verify.runners import llama_cpp_server
from gptoss_convert.verify.runners.llama_cpp import LlamaCppRunner

RUNNER = LlamaCppRunner(llama_cpp_server)
