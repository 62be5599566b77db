"""A fleet in a laptop: software TPMs, firmware images, virtual devices. Never needed in production."""
