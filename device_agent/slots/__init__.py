"""Where releases are installed: two slots, of which one runs while the other is written."""
