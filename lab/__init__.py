"""A fleet in a laptop: software TPMs, firmware images, virtual devices. Never needed in production."""


class LabFailure(RuntimeError):
    """Something of the lab cannot be made or run; the message is one line."""
