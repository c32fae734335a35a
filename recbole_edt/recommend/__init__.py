"""Top items for users, from a trained run."""
