"""What `multisagd evaluate` compares and how it tells: the sets, the kinds of metrics, the table and the pictures."""
