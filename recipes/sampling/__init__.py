"""Drawing samples: what is asked for, drawing it, and the folder that a set of samples is kept in."""
