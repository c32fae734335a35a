"""Comparisons, studies of the paper, searches and audits: many runs and what they show."""
