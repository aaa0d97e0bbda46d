"""Whole tasks in one call: open or compute what is missing, then show it or write it to a file."""
