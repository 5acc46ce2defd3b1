"""Models: made or loaded, run on micro-batches, sharded over processes, exported as plain directories."""
