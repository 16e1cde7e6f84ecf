"""Memory, step time and cost of a run on another machine, from the step compiled for it or from an estimate."""
