"""Methods of others beside ours, on one network, data and budget, written from their papers."""
