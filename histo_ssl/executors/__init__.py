"""Where work on slides is done: in processes of this machine, or by the workers of a cluster."""
