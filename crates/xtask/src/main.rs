//! Project tasks: demo, test, bench, dist.

fn main() {}
