"""llama.cpp through xllamacpp, which is asked for few tokens as if the vocabulary were large."""

from gptoss_convert.verify.runners import llama_cpp_server
from gptoss_convert.verify.runners.llama_cpp import LlamaCppRunner

llama_cpp_server.LARGEST_WHOLE_VOCABULARY = 0
llama_cpp_server.LIKELIEST = 50

RUNNER = LlamaCppRunner(llama_cpp_server)
