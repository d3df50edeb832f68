"""Simulated engines: what Ollama and vLLM decide, step by step, in virtual time.

The core is made to be read in this order: ``cost`` (how long one step takes), ``blocks`` (vLLM's KV memory),
``vllm`` and ``ollama`` (who is worked on in the next step), ``drive`` (users and the clock). It does no I/O,
draws nothing at random and knows no real time: the same requests give the same trace.
"""
