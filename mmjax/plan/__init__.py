"""What a run will need on a machine that is not here: its step, compiled for that machine or estimated."""
