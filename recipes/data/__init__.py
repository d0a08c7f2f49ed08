"""The data of a run: built, corrupted or restored, held out, ordered and measured."""
