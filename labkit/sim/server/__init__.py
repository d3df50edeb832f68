"""Simulated servers: the engines' HTTP APIs on top of the core, on the wall clock.

``clock`` runs the core's steps at their times, ``tokens`` and ``script`` stand in for tokenizer and model,
``replies`` writes answers while the engine runs, ``ollama_api`` and ``vllm_api`` speak as the engines do.
Started as ``python -m labkit.sim.server``.
"""
