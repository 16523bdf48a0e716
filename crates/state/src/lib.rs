//! What a host remembers: JSON ledgers with a generation, and the hash-chained audit log.
