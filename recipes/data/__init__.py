"""The data of a run: building, corruption or restoration, splitting, order and measuring."""
