"""Texts of items to vectors, and vectors to clusters."""
