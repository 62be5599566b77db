"""The CA's rules: what a certificate or CRL says. Pure: no key enters; the HSM signs the bytes that are built here."""
