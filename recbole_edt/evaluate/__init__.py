"""Candidates, ranks of held-out items, metrics and tests of significance."""
