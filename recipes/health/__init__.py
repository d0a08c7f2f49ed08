"""What `multisagd doctor` looks at: one file for each area, and how checks are kept apart from one another."""
