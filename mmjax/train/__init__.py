"""The training run: state, step, loop, optimizer, checkpoints."""
