"""What every part of the package needs; imports nothing else of it."""
