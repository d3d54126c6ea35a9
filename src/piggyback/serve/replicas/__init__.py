"""The network as it runs: made fast, copied, and tasks as bits to write into the copies."""
