"""Where the concrete parts meet."""
