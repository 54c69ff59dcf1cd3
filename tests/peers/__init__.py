"""Foreign programs the tests compare against: llama.cpp, its converter, and transformers."""
