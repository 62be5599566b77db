"""The change of what devices trust: CAs, the command key, the log's key, the trust root itself.

One lifecycle (`lifecycle`); one way for each step: `prepare` (key, certificate), `bundles` (publish, acknowledgements),
`change` (activate, retire), `status` (who holds what, and what would break).
"""
