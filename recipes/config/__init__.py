"""Configurations: the groups and their files, composing them, and building objects from them."""
