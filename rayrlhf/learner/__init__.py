"""The update step of every stage: one optimizer core, the supervised objectives, and PPO."""
