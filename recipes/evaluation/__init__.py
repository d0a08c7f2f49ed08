"""The parts of `multisagd evaluate`: sets, metrics, table and figures."""
