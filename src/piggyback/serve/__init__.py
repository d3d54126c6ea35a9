"""Many tasks answered from one network in memory: an engine, and what carries its answers to others."""
