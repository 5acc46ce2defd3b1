"""Everything a person sees of a run: the metric names, the files and W&B, the terminal, the report."""
