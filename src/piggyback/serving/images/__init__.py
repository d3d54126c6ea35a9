"""Images from strangers, to the network's input."""
