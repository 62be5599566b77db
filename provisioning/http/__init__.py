"""The three HTTP listeners. A handler decodes, calls and encodes; what is true or allowed is decided elsewhere."""
