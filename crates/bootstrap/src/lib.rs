//! A fresh server becomes an appliance: observe, plan, apply, verify.
