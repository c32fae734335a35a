"""Raw files to two atomic files, their split and their statistics."""
