"""The agent: gives its device an identity, keeps it, and updates what the device runs. Light: no asyncio."""
