"""Settings of a command: YAML files and options in one place, checked all at once."""
