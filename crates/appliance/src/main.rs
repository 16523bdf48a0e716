//! Turns a fresh Ubuntu or Debian server into an appliance that runs your web apps.

fn main() {}
