"""The methods by name, one file each, and the parts that they share."""
