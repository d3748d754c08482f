"""From a module's output to host arrays: the probe, reductions, hooks, copies."""
