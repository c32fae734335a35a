"""From rows to batches to a trained run with its files."""
