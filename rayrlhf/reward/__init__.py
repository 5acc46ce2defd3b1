"""What frozen models say of responses: scores, and the reference's log-probabilities."""
