"""The network as it runs: made fast, copied, with tasks as bits to write into copies."""
