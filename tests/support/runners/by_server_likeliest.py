"""llama.cpp through xllamacpp, which is asked for few tokens as if the vocabulary were large."""

from importlib import import_module

from gptoss_convert.verify.runners import llama_cpp_server

llama_cpp_server.LARGEST_WHOLE_VOCABULARY = 0
llama_cpp_server.LIKELIEST = 50

RUNNER = import_module("by_server").RUNNER
