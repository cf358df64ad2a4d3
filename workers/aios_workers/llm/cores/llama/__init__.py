"""The llama.cpp core process: the model, its sampler and its batch, and nothing of syscalls."""
