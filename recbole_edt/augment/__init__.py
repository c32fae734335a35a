"""Items of the other domain for each user's history: proposed, filtered, inserted (paper section 3.2)."""
