"""Scored trajectories between the scoring pool and the learner: the ledger, the buffer, and how to read them."""
