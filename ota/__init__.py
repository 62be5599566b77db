"""Update trust: TUF repositories, the Director, and the device's verification of both. Needs no HSM package."""
