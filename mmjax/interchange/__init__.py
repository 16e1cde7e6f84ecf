"""Checkpoints of others, in and out: Hugging Face's layout of safetensors on one side, our parts on the other."""
