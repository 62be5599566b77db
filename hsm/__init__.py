"""Keys in a PKCS#11 token that are cryptography's private keys. The only package that imports `pkcs11`.

`uri` names a key, `token` opens a token and finds or makes keys, `key` is what a certificate builder signs with,
`ceremony` checks that keys cannot leave, `softhsm` makes a SoftHSM2 token, `errors` holds everything that is raised.
"""
