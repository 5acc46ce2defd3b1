"""How what was measured is drawn: the report of a run, and the pages of reward models and preference data."""
