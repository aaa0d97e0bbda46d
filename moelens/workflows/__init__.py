"""What a person asks for in one call: open or compute what is missing, and show or write it."""
