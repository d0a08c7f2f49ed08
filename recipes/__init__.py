"""The commands of multisagd. Each module describes, from top to bottom, the procedure that its command runs."""
