"""What is measured of a run, and where it goes: the metric names, the files and W&B, the terminal."""
