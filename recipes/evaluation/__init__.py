"""The parts of `multisagd evaluate`: sets, metrics, table and pictures."""
