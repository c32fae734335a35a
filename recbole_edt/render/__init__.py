"""Values to tables, figures, console text and HTML."""
