"""The commands of multisagd: each module reads from top to bottom as the procedure that it runs."""
