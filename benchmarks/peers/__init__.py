"""Methods from other papers compared with ours, with the same network, data and budget; implemented from the papers."""
