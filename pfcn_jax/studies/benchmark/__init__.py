"""The `benchmark` verb: what the programs cost on this machine, against what the machine can do."""
