"""Endpoints that speak the OpenAI API: hosted models, vLLM, Ollama, servers of llama.cpp."""
