"""The foundation of recipes. It imports no other part of recipes."""
