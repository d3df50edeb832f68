"""What an engine does beside answering, shown once: a pull, a load, a start, a refusal, an eviction."""
