"""Questions to a language model and their stored answers."""
