"""Networks: loaded by name, weights chosen, head found, content fingerprinted."""
