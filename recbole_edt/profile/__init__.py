"""A text on each user's taste, and its vector (paper section 3.4)."""
