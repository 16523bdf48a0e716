//! Signed changes, the OCI store, and how both travel over SSH.
