"""The stages before training in their order, and how each reaches a language model."""
