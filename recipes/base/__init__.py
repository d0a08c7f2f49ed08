"""The foundation of recipes; it imports nothing else of recipes."""
