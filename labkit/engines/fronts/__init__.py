"""Proxies in front of the engines: nginx, its simulated stand-in, and LiteLLM."""
