"""What the data costs: padding, the sampler at 10^8 examples, loading beside PyTorch's DataLoader, waiting in a run."""
