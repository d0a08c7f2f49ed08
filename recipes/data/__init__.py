"""The data of a run: building, corrupting or restoring, splitting, ordering and measuring them."""
