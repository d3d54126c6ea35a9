"""What of a network is masked, held, and told apart."""
